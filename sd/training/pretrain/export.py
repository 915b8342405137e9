"""The shipped files: the networks that `run` has trained, in the key layout of v1-5, with the history of their
training.
"""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import torch

from sd.checkpoints.checkpoint import load_models, save_checkpoint
from sd.checkpoints.weight_files import write_weights
from sd.evaluation.clip_loader import read_clip
from sd.training.logger import last_line
from sd.training.loop import exists, load_model, save_model
from sd.training.pretrain import run as pretrain_run
from sd.utils.errors import UserError
from sd.vision.clip_vision import CLIP

EARLIER = "earlier.json"  # beside unpacked weights: the history of their training


def newest_folder(part: str, runs: Path) -> Path:
    """Return the folder of a part's newest weights: those of its own stage or, before that, the shipped ones.

    "decoder" is the whole VAE, before its own stage that of "vae".
    """
    parts = ("decoder", "vae") if part == "decoder" else (part,)
    return next((runs / name for name in parts if exists(runs / name)), runs / "shipped" / parts[-1])


def export(runs: Path, weights: Path, script: str = "train_scratch.py") -> list[Path]:
    """Write the newest weights to `weights/emoji.safetensors` and `weights/emoji-clip.safetensors`.

    `runs/decoder`, if it exists, takes the place of `vae`, from which it was made. The second file holds the rest of
    CLIP (vision tower and projections, with the keys of transformers' CLIPModel), for scoring; its text tower is in the
    first. Both are in fp16 and small enough to ship. script: the one that trained them, for the metadata.

    Raises UserError where a part has not been trained.
    """
    parts = ("clip", "decoder", "unet")
    clip, vae, unet = (load_model(pretrain_run.new_network(part), newest_folder(part, runs)).half() for part in parts)
    about = {"training": json.dumps(history(runs, script))}
    model, scorer = weights / "emoji.safetensors", weights / "emoji-clip.safetensors"
    save_checkpoint(model, clip.text_model, vae, unet, pretrain_run.SIZES, about)
    rest = {key: tensor for key, tensor in clip.state_dict().items() if not key.startswith("text_model.")}
    sizes = {"vision": pretrain_run.VISION, "projection_dim": pretrain_run.PROJECTION_DIM}
    write_weights(scorer, "safetensors", rest, about | {"sd_sizes": json.dumps(sizes)})
    return [model, scorer]


def unpack(weights: Path, runs: Path) -> None:
    """Write the shipped files to `runs/{clip,vae,unet}`, the reverse of `export`, as initial weights for each part.

    The history of their training is kept beside them, and becomes part of the next export. Raises UserError where a
    part has a state in `runs` already.
    """
    for part in pretrain_run.PARTS:
        if (runs / part / "state.pt").exists():
            raise UserError(f"{runs / part} already holds a run: give another folder with --runs.")
    _, vae, unet, checkpoint = load_models(weights / "emoji.safetensors", dtype=torch.float32)
    made = json.loads(checkpoint.metadata["training"])
    where = {key: value for key, value in made.items() if key not in pretrain_run.PARTS}
    for part in filter(made.get, pretrain_run.PARTS):
        (runs / part).mkdir(parents=True, exist_ok=True)
        (runs / part / EARLIER).write_text(json.dumps(made[part] | where), encoding="utf-8")
    for part, network in {"clip": load_scorer(weights), "vae": vae, "unet": unet}.items():
        save_model(network, runs / part)


def load_scorer(weights: Path) -> CLIP:
    """Return the bundled CLIP, both towers, from the two files that `export` wrote."""
    return read_clip(weights / "emoji-clip.safetensors")


def history(runs: Path, script: str) -> dict:
    """Return for each part its command, steps, seconds and last loss, with the machine and the code revision.

    A part that continued from shipped weights has their history under "earlier"; one that was only unpacked has nothing
    else.
    """
    parts = {}
    for part in pretrain_run.PARTS:
        run, made = runs / part if (runs / part).exists() else runs / "shipped" / part, {}
        if (run / "state.pt").exists():
            state = torch.load(run / "state.pt", map_location="cpu", weights_only=True, mmap=True)
            made = {"command": f"python scripts/{script} {part}", "settings": state["settings"]}
            made |= last_line(run)
        if (run / EARLIER).exists():
            made["earlier"] = json.loads((run / EARLIER).read_text(encoding="utf-8"))
        if made:
            parts[part] = made
    return parts | {"machine": machine(), "torch": torch.__version__, "revision": revision()}


def machine() -> str:
    """Return the GPU, or the processor and its number of cores."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    names = Path("/proc/cpuinfo").read_text().splitlines() if sys.platform == "linux" else []
    name = next((line.split(":")[1].strip() for line in names if line.startswith("model name")), platform.processor())
    return f"{name}, {os.cpu_count()} cores"


def revision() -> str:
    """Return the git revision of this code, with a + where files differ from it; "unknown" outside of git."""
    command = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"
