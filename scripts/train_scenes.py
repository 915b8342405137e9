"""Train the bundled model on scenes, stage by stage. Given again, a command resumes from its last checkpoint.

python scripts/train_scenes.py vae        the autoencoder, from the shipped one
"""

import argparse
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from sd.errors import plain_errors
from sd.training.pretrain.pipeline import STAGES, run_stage, stage_settings, start_from_shipped

SETTINGS = {"steps": int, "batch": int, "lr": float, "ema": float, "seed": int, "device": str, "save_minutes": float}


@plain_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="+", choices=list(STAGES), help="stages to train, in this order")
    parser.add_argument("--data", type=Path, default=ROOT / "data" / "emoji", help="prepared data (default: data/emoji)")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "scenes", help="checkpoints (default: runs/scenes)")
    parser.add_argument("--weights", type=Path, default=ROOT / "weights", help="shipped weights (default: weights)")
    parser.add_argument("--threads", type=int, help="processor threads (default: one per core)")
    for name, kind in SETTINGS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, help="default: see STAGES in pretrain/pipeline.py")
    options = parser.parse_args()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    start_from_shipped(options.weights, options.runs)
    given = {name: value for name in SETTINGS if (value := getattr(options, name)) is not None}
    for stage in options.stages:
        settings = stage_settings(stage, **given)
        torch.manual_seed(settings.seed)
        run_stage(stage, options.runs, options.data, settings)


if __name__ == "__main__":
    main()
