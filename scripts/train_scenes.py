"""Train the bundled model on scenes, stage by stage. Given again, a command resumes from its last checkpoint.

python scripts/prepare_scenes.py           the cut-outs, once
python scripts/train_scenes.py vae         the autoencoder, from the shipped one
python scripts/train_scenes.py clip        CLIP with scene captions and hard negatives, from the shipped one
python scripts/train_scenes.py latents     scenes as latents, once; more of them with --latents 20000
python scripts/train_scenes.py unet        the U-Net, on what the other stages made
python scripts/train_scenes.py detector    the judge for evaluate_scenes.py
python scripts/train_scenes.py export      the newest weights as one checkpoint

Several stages can be named at once: each is trained to its end before the next.
"""

import argparse
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from sd.training.pretrain.pipeline import STAGES, export_scenes, run_stage, stage_settings, start_from_shipped
from sd.utils.errors import plain_errors

SETTINGS = {"steps": int, "batch": int, "lr": float, "ema": float, "seed": int, "device": str, "save_minutes": float}


@plain_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "stages", nargs="+", choices=["vae", "clip", "latents", "unet", "detector", "export"], help="in this order"
    )
    parser.add_argument(
        "--data", type=Path, default=ROOT / "data" / "emoji", help="prepared data (default: data/emoji)"
    )
    parser.add_argument(
        "--runs", type=Path, default=ROOT / "runs" / "scenes", help="checkpoints (default: runs/scenes)"
    )
    parser.add_argument("--weights", type=Path, default=ROOT / "weights", help="shipped weights (default: weights)")
    parser.add_argument("--out", type=Path, help="checkpoint that export writes (default: RUNS/scenes.safetensors)")
    parser.add_argument("--threads", type=int, help="processor threads (default: one per core)")
    parser.add_argument("--latents", type=int, default=6000, help="number of scenes to encode (default: 6000)")
    parser.add_argument(
        "--text-lr", type=float, help="the text tower's share of the U-Net's learning rate (default: 0)"
    )
    for name, kind in SETTINGS.items():
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=kind, help="default: see STAGES in pretrain/pipeline.py"
        )
    options = parser.parse_args()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    start_from_shipped(options.weights, options.runs)
    given = {name: value for name in SETTINGS if (value := getattr(options, name)) is not None}
    if options.text_lr is not None:
        given["shares"] = {"text": options.text_lr}
    for stage in options.stages:
        if stage == "export":
            print(*export_scenes(options.runs, options.out or options.runs / "scenes.safetensors"), sep="\n")
            continue
        settings = stage_settings(stage, **given) if stage in STAGES else None
        torch.manual_seed(options.seed or 0)
        run_stage(stage, options.runs, options.data, settings, options.latents)


if __name__ == "__main__":
    main()
