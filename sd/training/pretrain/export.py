"""The shipped files: all that `scratch` made, in the key layout of v1-5, with what it took to make it."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from sd.checkpoints.checkpoint import load_models, save_checkpoint
from sd.evaluation.clip_loader import read_clip
from sd.evaluation.clip_vision import CLIP
from sd.training.logger import last_line
from sd.training.loop import is_kept, keep, kept
from sd.training.pretrain import run as scratch
from sd.utils.errors import UserError

EARLIER = "earlier.json"  # beside unpacked weights: how they were made


def export(runs: Path, weights: Path) -> list[Path]:
    """`runs/{clip,vae,unet}` to `weights/emoji.safetensors` (what draws) and `weights/emoji-clip.safetensors`.

    `runs/decoder`, where it is there, takes the place of `vae`, of which it was made. The second file holds the rest of
    CLIP (vision tower and projections, transformers' CLIPModel keys), for scoring; its text tower is in the first. Both
    are fp16 and small enough to ship.

    Raises:
        UserError: a part has not been trained.
    """
    parts = ("clip", "decoder" if is_kept(runs / "decoder") else "vae", "unet")
    clip, vae, unet = (kept(scratch.new(part), runs / part).half() for part in parts)
    about = {"training": json.dumps(history(runs))}
    model, scorer = weights / "emoji.safetensors", weights / "emoji-clip.safetensors"
    save_checkpoint(model, clip.text_model, vae, unet, scratch.SIZES, about)
    rest = {key: tensor for key, tensor in clip.state_dict().items() if not key.startswith("text_model.")}
    sizes = {"vision": scratch.VISION, "projection_dim": scratch.PROJECTION_DIM}
    save_file(rest, scorer, about | {"sd_sizes": json.dumps(sizes)})
    return [model, scorer]


def unpack(weights: Path, runs: Path) -> None:
    """The opposite of `export`: the shipped files to `runs/{clip,vae,unet}`, for each part to go on from.

    How they were made so far stays beside them, and in what is exported next. Raises UserError where a part has a
    checkpoint in `runs` already.
    """
    for part in scratch.PARTS:
        if (runs / part / "state.pt").exists():
            raise UserError(f"{runs / part} holds a run of its own: name another folder with --runs.")
    _, vae, unet, checkpoint = load_models(weights / "emoji.safetensors", dtype=torch.float32)
    made = json.loads(checkpoint.metadata["training"])
    where = {key: value for key, value in made.items() if key not in scratch.PARTS}
    for part in filter(made.get, scratch.PARTS):
        (runs / part).mkdir(parents=True, exist_ok=True)
        (runs / part / EARLIER).write_text(json.dumps(made[part] | where), encoding="utf-8")
    for part, network in {"clip": load_scorer(weights), "vae": vae, "unet": unet}.items():
        keep(network, runs / part)


def load_scorer(weights: Path) -> CLIP:
    """The bundled CLIP, both towers, put together again from the two files that `export` wrote."""
    return read_clip(weights / "emoji-clip.safetensors")


def history(runs: Path) -> dict:
    """What each part took (command, steps, seconds, last loss), on which machine, from which revision of the code.

    A part that went on from shipped weights has what they took under "earlier"; one that only was unpacked has nothing
    but that.
    """
    parts = {}
    for part in scratch.PARTS:
        run, made = runs / part, {}
        if (run / "state.pt").exists():
            state = torch.load(run / "state.pt", map_location="cpu", weights_only=True, mmap=True)
            made = {"command": f"python scripts/train_scratch.py {part}", "settings": state["settings"]}
            made |= last_line(run)
        if (run / EARLIER).exists():
            made["earlier"] = json.loads((run / EARLIER).read_text(encoding="utf-8"))
        if made:
            parts[part] = made
    return parts | {"machine": machine(), "torch": torch.__version__, "revision": revision()}


def machine() -> str:
    """The GPU, or the processor and its number of cores."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    names = Path("/proc/cpuinfo").read_text().splitlines() if sys.platform == "linux" else []
    name = next((line.split(":")[1].strip() for line in names if line.startswith("model name")), platform.processor())
    return f"{name}, {os.cpu_count()} cores"


def revision() -> str:
    """The git revision of this code, with a + where files differ from it; "unknown" outside of git."""
    command = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"
