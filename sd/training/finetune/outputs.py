"""The result of training: its path is checked before the first step and written after the last."""

import json
import os
import shutil
import tempfile
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace

from sd.adapters.embedding_files import read_embeddings, save_embedding
from sd.checkpoints.checkpoint import read_checkpoint, save_checkpoint
from sd.checkpoints.weight_files import read_weights, write_weights
from sd.pipeline.stable_diffusion import StableDiffusion
from sd.training.finetune.recipes import Recipe
from sd.utils.errors import UserError
from sd.utils.files import replacing

SUFFIXES = {
    "ti": (".safetensors", ".pt"),
    "lora": (".safetensors",),
    "dreambooth": (".safetensors", ".ckpt", ""),
    "controlnet": (".safetensors",),
}
WHAT = {"ti": "an embedding", "lora": "a LoRA", "dreambooth": "a checkpoint", "controlnet": "a ControlNet"}
TRAINED_FROM = "sd_trained_from"  # name of the base, in each trained checkpoint, which is never a default
DELIVERED = "delivered.json"  # in the run's folder: the output that this run has written


def resolve_output(method: str, name: str, folder: Path, given: Path | None, file_format: str = "") -> Path:
    """Return the file or folder for the result. Raises UserError where its suffix is not one of the method's.

    Into an existing folder goes a file of this name. A checkpoint without a suffix is a diffusers folder.
    """
    file = name.strip("<>") + ("" if file_format == "peft" else ".safetensors")
    if given is None:
        return folder / file
    output = Path(given).expanduser()
    is_ours = any((output / one).exists() for one in ("model_index.json", "unet"))
    if output.is_dir() and not is_ours:
        output = output / file
    suffixes = ("",) if file_format == "peft" and method == "lora" else SUFFIXES[method]
    if output.suffix.lower() not in suffixes:
        kinds = " or ".join(suffix or "a folder name without a suffix" for suffix in suffixes)
        raise UserError(f"--output {output}: {WHAT[method]} is written as {kinds}; give a path of that form.")
    return output


def check_output(output: Path, pipe: StableDiffusion, run: Path, where: str) -> None:
    """Raise UserError where the result would overwrite the base model or a file of another origin, or cannot be
    written.

    where: the option that chooses another path, for the message.
    """
    if pipe.path is not None and is_same_file(output, Path(pipe.path)):
        raise UserError(f"{output} is the base model of this training: {where} so that it is not overwritten.")
    if output.exists() and not is_delivered(output, run):
        raise UserError(
            f"{output} exists already, and this run ({run}) did not write it: {where}, or move that file away first."
        )
    parent = output.parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as error:
        raise UserError(f"cannot write into {parent} ({error.strerror}): give another --output.") from error


def is_same_file(output: Path, base: Path) -> bool:
    """Return whether both are the same file, also through links, in another case, or inside a base that is a folder."""
    with suppress(OSError):
        if os.path.samefile(output, base):
            return True
    return base.is_dir() and base.resolve() in output.resolve().parents


def is_delivered(output: Path, run: Path) -> bool:
    """Return whether this run has written the existing output."""
    with suppress(OSError, ValueError, AttributeError):
        if json.loads((run / DELIVERED).read_text(encoding="utf-8")).get("contents") == file_signature(output):
            return True
    return output.is_file() and any(have_same_bytes(output, path) for path in (run / "steps").glob("*.safetensors"))


def file_signature(path: Path) -> list:
    """Return path, size and modification time of the file, or of all files of the folder, for JSON."""
    files = sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path]
    return [[os.fsdecode(os.fsencode(one)), one.stat().st_size, one.stat().st_mtime_ns] for one in files]


def have_same_bytes(one: Path, other: Path) -> bool:
    if one.stat().st_size != other.stat().st_size:
        return False
    with open(one, "rb") as a, open(other, "rb") as b:
        while block := a.read(1 << 22):
            if block != b.read(1 << 22):
                return False
    return True


def copy_result(
    saved: Path, output: Path, step: int, pipe: StableDiffusion, recipe: Recipe, metadata: dict[str, str]
) -> None:
    """Copy the file of a step to where prompts find it, in the format of the suffix of `output`."""
    run = saved.parent.parent
    try:
        write_as(saved, output, step, pipe, recipe, metadata)
    except (UserError, OSError) as error:
        raise UserError(
            f"{error} All trained steps are in {saved.parent}, and step {step} is the best: copy {saved.name}, "
            "or free some disk space and run the same command again, which repeats no training."
        ) from error
    note_delivery(run, output, step)


def note_delivery(run: Path, output: Path, step: int) -> None:
    """Note in the run's folder that the output is its own, so that the same command may replace it."""
    with replacing(run / DELIVERED) as part:
        part.write_text(json.dumps({"output": str(output), "step": step, "contents": file_signature(output)}))


def write_as(saved: Path, output: Path, step: int, pipe: StableDiffusion, recipe: Recipe, metadata: dict) -> None:
    suffix = output.suffix.lower()
    if suffix == ".pt":
        (vectors,) = read_embeddings(saved, pipe.sizes["clip"]["width"]).vectors.values()
        save_embedding(output, recipe.word, vectors, step, metadata.get("ss_sd_model_name"))
    elif suffix == ".ckpt":
        weights = read_weights(saved)
        about = {key: text for key, text in weights.metadata.items() if key != "format"}
        write_weights(output, "ckpt", weights.content, about)
    elif suffix == "" and saved.is_file():
        write_diffusers(saved, output, metadata)
    else:
        with replacing(output) as part:
            (shutil.copytree if saved.is_dir() else shutil.copyfile)(saved, part)


def write_diffusers(saved: Path, output: Path, metadata: dict[str, str]) -> None:
    """Convert a checkpoint file to a diffusers folder, with the base model's name in `model_index.json`."""
    whole = read_checkpoint(saved)
    clip, vae, unet = (SimpleNamespace(state_dict=partial(getattr, whole, part)) for part in ("clip", "vae", "unet"))
    with replacing(output) as part:
        save_checkpoint(part, clip, vae, unet, whole.config, kind="diffusers")
        index = part / "model_index.json"
        about = json.loads(index.read_text(encoding="utf-8")) | {f"_{TRAINED_FROM}": metadata.get(TRAINED_FROM, "")}
        index.write_text(json.dumps(about, indent=2), encoding="utf-8")
