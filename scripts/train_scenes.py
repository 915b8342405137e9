"""Train the bundled model on scenes, stage by stage. The same command resumes a stage that was stopped.

python scripts/prepare_scenes.py           the cut-outs, once
python scripts/train_scenes.py clip        CLIP with scene captions and hard negatives, from the shipped one
python scripts/train_scenes.py latents     scenes as latents, once; more with --latents 20000
python scripts/train_scenes.py unet        the U-Net, on the results of these stages
python scripts/train_scenes.py turbo       a LoRA with which the U-Net needs 4 steps without guidance
python scripts/train_scenes.py decoder     the VAE's decoder, from the shipped one
python scripts/train_scenes.py detector    the detector for evaluate_scenes.py
python scripts/train_scenes.py export      the newest weights as one checkpoint

Several stages in one command run in this order, each to its end.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from sd.utils.errors import plain_errors, plain_imports

with plain_imports():
    import torch

    from sd.cli.parser import ArgumentParser
    from sd.training.args import HelpFormatter, add_train_options, given_train_options
    from sd.training.pretrain.export import export
    from sd.training.pretrain.pipeline import LATENTS, STAGES, run_stage, stage_settings, start_from_shipped


@plain_errors
def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    stages = ["clip", "latents", "unet", "turbo", "decoder", "detector", "export"]
    parser.add_argument("stages", nargs="+", choices=stages, help="stages to run")
    files = parser.add_argument_group("files")
    files.add_argument("--data", type=Path, default=ROOT / "data" / "emoji", help="folder of the prepared dataset")
    files.add_argument("--runs", type=Path, default=ROOT / "runs" / "scenes", help="folder of states and weights")
    files.add_argument("--weights", type=Path, default=ROOT / "weights", help="folder of the shipped weights")
    files.add_argument("--out", type=Path, help="folder that export writes emoji.safetensors to (default: RUNS)")
    add_train_options(parser, "STAGES in sd/training/pretrain/pipeline.py")
    parser.add_argument("--latents", type=int, default=LATENTS, help="number of scenes to encode as latents")
    options = parser.parse_args()
    given = given_train_options(options)
    start_from_shipped(options.weights, options.runs)
    for stage in options.stages:
        if stage == "export":
            print(*export(options.runs, options.out or options.runs, "train_scenes.py"), sep="\n")
            continue
        settings = stage_settings(stage, **given) if stage in STAGES else None
        torch.manual_seed(options.seed or 0)
        run_stage(stage, options.runs, options.data, settings, options.latents)


if __name__ == "__main__":
    main()
