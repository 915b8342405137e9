"""Train a small Stable Diffusion from nothing, part by part. Given again, a command goes on where it was stopped.

python scripts/prepare_emoji.py            the pictures, once
python scripts/train_scratch.py clip       text and vision towers
python scripts/train_scratch.py vae        pictures to latents and back
python scripts/train_scratch.py unet       the diffusion, on what the first two made
python scripts/train_scratch.py decoder    a better way back from the same latents, if there is time left
python scripts/train_scratch.py export     all of it into weights/emoji.safetensors
python scripts/train_scratch.py unpack     the shipped weights into runs/, for all of these to go on from

Several GPUs: torchrun --nproc-per-node=4 scripts/train_scratch.py unet --device cuda
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from sd.training.pretrain.dataset import EmojiPictures
from sd.training.pretrain.export import export, unpack
from sd.training.pretrain.run import PARTS, train_part
from sd.utils.errors import plain_errors

SETTINGS = {"steps": int, "batch": int, "lr": float, "ema": float, "seed": int, "device": str, "save_minutes": float}


@plain_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=[*PARTS, "export", "unpack"])
    parser.add_argument("--data", type=Path, default=ROOT / "data" / "emoji", help="default: data/emoji")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs", help="checkpoints and logs; default: runs")
    parser.add_argument(
        "--weights", type=Path, default=ROOT / "weights", help="where export writes and unpack reads; default: weights"
    )
    parser.add_argument("--threads", type=int, help="processor threads; default: one for each core")
    for name, kind in SETTINGS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, help="default: see PARTS in scratch.py")
    options = parser.parse_args()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    if options.part == "export":
        print(*export(options.runs, options.weights), sep="\n")
        return
    if options.part == "unpack":
        unpack(options.weights, options.runs)
        return
    given = {name: value for name in SETTINGS if (value := getattr(options, name)) is not None}
    settings = replace(PARTS[options.part], **given)
    torch.manual_seed(settings.seed)  # the networks at random
    train_part(options.part, options.runs, EmojiPictures(options.data), settings)


if __name__ == "__main__":
    main()
