"""How much room a run needs, said before it starts, and what can be deleted when it has ended."""

import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from sd.pipeline.stable_diffusion import StableDiffusion
from sd.training.finetune.recipes import Recipe
from sd.utils.errors import UserError

OVERHEAD = 1 << 20  # bytes: headers, logs, what a file system rounds up
NEEDED_TO_GO_ON = ("state.pt", "latents.pt", "class.pt")


@dataclass(frozen=True)
class Need:
    """Bytes. run: of the run's folder at most, while it saves. kept: of it at the end. output: of the result."""

    run: int
    kept: int
    output: int


def need(method: str, module: nn.Module, pipe: StableDiffusion, recipe: Recipe, images: int) -> Need:
    trained = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
    every = sum(parameter.numel() for network in (pipe.clip, pipe.vae, pipe.unet) for parameter in network.parameters())
    output = 2 * every if method == "dreambooth" else 4 * trained
    state = 4 * trained * (4 if recipe.ema else 3)  # the weights, two moments, and their average
    views = images * (recipe.crops if recipe.crops else 1) * (2 if recipe.flip else 1)
    latents = views * 2 * 4 * 4 * (recipe.size // pipe.vae.downsample) ** 2
    rows = recipe.saves + 1
    previews = 2 * 3 * recipe.size**2 * rows * max(1, len(recipe.prompts))
    files = output * min(recipe.saves, recipe.keep_last or recipe.saves)
    kept = state + files + latents + previews + OVERHEAD
    extra = max(state, output if recipe.keep_last else 0, latents)  # written beside, then renamed
    return Need(kept + extra, kept, output + OVERHEAD)


def check_room(wanted: Need, run: Path, output: Path, say) -> None:
    """Says what the run takes. Raises UserError where there is not as much room."""
    have = used(run)
    already = output.stat().st_size if output.is_file() else 0
    say(
        f"disk: up to {spoken(wanted.run)} in {run} while training, {spoken(wanted.kept)} at the end, and "
        f"{spoken(wanted.output)} for {output}; --keep-last and --clean keep less"
    )
    places = [(run, max(0, wanted.run - have)), (output.parent, max(0, wanted.output - already))]
    if device(run) == device(output.parent):
        places = [(run, sum(size for _, size in places))]
    for place, size in places:
        if size > (free := shutil.disk_usage(existing(place)).free):
            raise UserError(
                f"there is not enough room in {place}: this run needs {spoken(size)} more, and {spoken(free)} "
                "are free; make room, give another --run-dir, or keep fewer files with --saves or --keep-last."
            )


def used(run: Path) -> int:
    """Bytes of what is in a folder."""
    total = 0
    for path in run.rglob("*") if run.is_dir() else ():
        with suppress(OSError):
            total += path.stat().st_size
    return total


def existing(path: Path) -> Path:
    """It, or the nearest folder above it that is there."""
    path = path.absolute()
    return next(one for one in (path, *path.parents) if one.is_dir())


def device(path: Path) -> int:
    return existing(path).stat().st_dev


def spoken(size: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def clean(run: Path) -> int:
    """Deletes what going on and choosing another step would need; pictures, scores and logs stay. Returns the bytes."""
    before = used(run)
    for name in NEEDED_TO_GO_ON:
        (run / name).unlink(missing_ok=True)
    shutil.rmtree(run / "steps", ignore_errors=True)
    return before - used(run)
