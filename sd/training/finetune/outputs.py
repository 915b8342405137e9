"""Where the result of training goes: checked before the first step, written after the last."""

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

SUFFIXES = {"ti": (".safetensors", ".pt"), "lora": (".safetensors",), "dreambooth": (".safetensors", ".ckpt", "")}
WHAT = {"ti": "an embedding", "lora": "a LoRA", "dreambooth": "a checkpoint"}
TRAINED_FROM = "sd_trained_from"  # the base's name, in every checkpoint made by training: such a one is never a default
DELIVERED = "delivered.json"  # in the run's folder: what this run has put where


def output_for(method: str, name: str, recipe: Recipe, folder: Path, asked: Path | None) -> Path:
    """The file or folder that the result goes to. Raises UserError where its ending says something else.

    An existing folder gets a file of this name into it. A checkpoint without an ending is a folder for diffusers.
    """
    file = name.strip("<>") + ("" if recipe.dialect == "peft" else ".safetensors")
    if asked is None:
        return folder / file
    output = Path(asked).expanduser()
    is_ours = any((output / one).exists() for one in ("model_index.json", "unet"))
    if output.is_dir() and not is_ours:
        output = output / file
    suffixes = ("",) if recipe.dialect == "peft" and method == "lora" else SUFFIXES[method]
    if output.suffix.lower() not in suffixes:
        kinds = " or ".join(suffix or "a folder's name, without an ending" for suffix in suffixes)
        raise UserError(f"--output {output}: {WHAT[method]} is written as {kinds}; give such a name.")
    return output


def check_output(output: Path, pipe: StableDiffusion, run: Path, where: str) -> None:
    """Raises UserError where the result would overwrite the base or what this run did not make, or cannot be written.

    where: which option chooses another place, for the sentence.
    """
    if pipe.path is not None and is_same_place(output, Path(pipe.path)):
        raise UserError(f"{output} is the base model that is trained from: {where} so that it is not overwritten.")
    if output.exists() and not is_delivered(output, run):
        raise UserError(
            f"{output} exists already, and this run ({run}) did not make it: {where}, or move that file away first."
        )
    parent = output.parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as error:
        raise UserError(f"cannot write into {parent} ({error.strerror}): give another --output.") from error


def is_same_place(output: Path, base: Path) -> bool:
    """Also by a link, by another spelling where the system ignores case, and inside a base that is a folder."""
    with suppress(OSError):
        if os.path.samefile(output, base):
            return True
    return base.is_dir() and base.resolve() in output.resolve().parents


def is_delivered(output: Path, run: Path) -> bool:
    """Whether what is there now is what this run put there."""
    with suppress(OSError, ValueError, AttributeError):
        if json.loads((run / DELIVERED).read_text(encoding="utf-8")).get("contents") == contents_of(output):
            return True
    return output.is_file() and any(same_bytes(output, path) for path in (run / "steps").glob("*.safetensors"))


def contents_of(path: Path) -> list:
    """Name, size and time of change of the file, or of all files of the folder: fit for JSON."""
    files = sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path]
    return [[os.fsdecode(os.fsencode(one)), one.stat().st_size, one.stat().st_mtime_ns] for one in files]


def same_bytes(one: Path, other: Path) -> bool:
    if one.stat().st_size != other.stat().st_size:
        return False
    with open(one, "rb") as a, open(other, "rb") as b:
        while block := a.read(1 << 22):
            if block != b.read(1 << 22):
                return False
    return True


def deliver(saved: Path, output: Path, step: int, pipe: StableDiffusion, recipe: Recipe, facts: dict[str, str]) -> None:
    """Puts the file of a step where prompts find it, in the format that the name of `output` says."""
    run = saved.parent.parent
    try:
        write_as(saved, output, step, pipe, recipe, facts)
    except (UserError, OSError) as error:
        raise UserError(
            f"{error} All trained steps are in {saved.parent}, and step {step} is the one to take: copy {saved.name}, "
            "or make room and give the same command again, which trains nothing twice."
        ) from error
    with replacing(run / DELIVERED) as part:
        part.write_text(json.dumps({"output": str(output), "step": step, "contents": contents_of(output)}))


def write_as(saved: Path, output: Path, step: int, pipe: StableDiffusion, recipe: Recipe, facts: dict) -> None:
    suffix = output.suffix.lower()
    if suffix == ".pt":
        (vectors,) = read_embeddings(saved, pipe.sizes["clip"]["width"]).vectors.values()
        save_embedding(output, recipe.word, vectors, step, facts.get("ss_sd_model_name"))
    elif suffix == ".ckpt":
        weights = read_weights(saved)
        about = {key: text for key, text in weights.metadata.items() if key != "format"}
        write_weights(output, "ckpt", weights.content, about)
    elif suffix == "" and saved.is_file():
        write_diffusers(saved, output, facts)
    else:
        with replacing(output) as part:
            (shutil.copytree if saved.is_dir() else shutil.copyfile)(saved, part)


def write_diffusers(saved: Path, output: Path, facts: dict[str, str]) -> None:
    """A checkpoint's file as a folder for diffusers, with the base's name in `model_index.json`."""
    whole = read_checkpoint(saved)
    networks = [SimpleNamespace(state_dict=partial(getattr, whole, part)) for part in ("clip", "vae", "unet")]
    with replacing(output) as part:
        save_checkpoint(part, *networks, whole.config, kind="diffusers")
        index = part / "model_index.json"
        about = json.loads(index.read_text(encoding="utf-8")) | {f"_{TRAINED_FROM}": facts.get(TRAINED_FROM, "")}
        index.write_text(json.dumps(about, indent=2), encoding="utf-8")
