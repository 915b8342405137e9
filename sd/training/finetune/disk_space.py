"""The disk space that a run needs, checked before it starts, and the files that can be deleted after it."""

import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from sd.pipeline.stable_diffusion import StableDiffusion
from sd.training.finetune.recipes import Recipe
from sd.utils.errors import UserError

OVERHEAD = 1 << 20  # bytes: headers, logs, what a file system rounds up
NEEDED_TO_RESUME = ("state.pt", "latents.pt", "class.pt")


@dataclass(frozen=True)
class RequiredSpace:
    """The required space in bytes.

    run: of the run's folder at most, while saving. kept: of the folder at the end. output: of the result.
    """

    run: int
    kept: int
    output: int


def required_space(method: str, module: nn.Module, pipe: StableDiffusion, recipe: Recipe, images: int) -> RequiredSpace:
    """Estimate the disk space of a run."""
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
    return RequiredSpace(kept + extra, kept, output + OVERHEAD)


def check_free_space(wanted: RequiredSpace, run: Path, output: Path, say) -> None:
    """Print the space that the run takes. Raises UserError where less is free."""
    have = folder_size(run)
    already = output.stat().st_size if output.is_file() else 0
    say(
        f"disk: up to {format_size(wanted.run)} in {run} while training, {format_size(wanted.kept)} at the end, and "
        f"{format_size(wanted.output)} for {output}; --keep-last and --clean reduce it"
    )
    places = [(run, max(0, wanted.run - have)), (output.parent, max(0, wanted.output - already))]
    if device_id(run) == device_id(output.parent):
        places = [(run, sum(size for _, size in places))]
    for place, size in places:
        if size > (free := shutil.disk_usage(nearest_folder(place)).free):
            raise UserError(
                f"not enough disk space in {place}: this run needs {format_size(size)} more, and "
                f"{format_size(free)} are free; free some space, give another --run-dir, or keep fewer files with "
                "--saves or --keep-last."
            )


def folder_size(run: Path) -> int:
    """Return the total size of the files in a folder, in bytes."""
    total = 0
    for path in run.rglob("*") if run.is_dir() else ():
        with suppress(OSError):
            total += path.stat().st_size
    return total


def nearest_folder(path: Path) -> Path:
    """Return the path, or its nearest parent that exists."""
    path = path.absolute()
    return next(one for one in (path, *path.parents) if one.is_dir())


def device_id(path: Path) -> int:
    return nearest_folder(path).stat().st_dev


def format_size(size: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def clean_run(run: Path) -> int:
    """Delete the files for resuming and for choosing another step; images, scores and logs remain. Returns the bytes
    freed.
    """
    before = folder_size(run)
    for name in NEEDED_TO_RESUME:
        (run / name).unlink(missing_ok=True)
    shutil.rmtree(run / "steps", ignore_errors=True)
    return before - folder_size(run)
