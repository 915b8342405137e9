"""Measure a ControlNet on held-out scenes: the agreement of edges, and how often the objects are still named right.

python scripts/train_scenes.py detector                                          the detector, once
python scripts/evaluate_controlnet.py --control emoji-edges --sheet out.png      100 scenes (some minutes)
python scripts/evaluate_controlnet.py --control emoji-edges --condition scribble
python scripts/evaluate_controlnet.py --control emoji-edges --edges-only         without a detector

Every caption is generated twice from the same seed, without and with the scene's edges or a scribble of it. Edges are
Canny's at the default thresholds; F1 counts edge pixels within 2 pixels of the other image's.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from sd.utils.errors import SettingError, plain_errors, plain_imports

with plain_imports():
    import torch

    from sd.cli.parser import ArgumentParser
    from sd.pipeline.stable_diffusion import StableDiffusion
    from sd.training.args import HelpFormatter
    from sd.training.controlnet.evaluate import control_table, evaluate_control, held_out_scenes
    from sd.training.pretrain.scenes.detector import detector_cutouts, load_detector


@plain_errors
def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add = parser.add_argument
    add("--control", required=True, help="name or file of the ControlNet, such as emoji-edges or emoji-edges:0.8")
    add("--model", type=Path, default=ROOT / "weights" / "emoji.safetensors", help="checkpoint that it controls")
    add("--data", type=Path, default=ROOT / "data" / "emoji", help="folder of the prepared dataset")
    add("--detector", type=Path, default=ROOT / "runs" / "scenes" / "detector", help="folder of the trained detector")
    add("--edges-only", action="store_true", help="measure the edges only, without a detector")
    add("--condition", choices=["canny", "scribble"], default="canny", help="condition image of each scene")
    add("--count", type=int, default=100, help="number of scenes")
    add("--seed", type=int, default=2000, help="seed of the first image")
    add("--steps", type=int, default=20, help="number of sampling steps")
    add("--guidance", type=float, default=4.0, help="classifier-free guidance scale")
    add("--sheet", type=Path, help="file for a sheet: condition, without, with")
    add("--threads", type=int, help="number of CPU threads (default: one for each core)")
    options = parser.parse_args()
    if options.count < 2:
        raise SettingError("count", f"must be 2 scenes or more, for an interval, not {options.count}")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    detector = None if options.edges_only else load_detector(options.detector)
    scenes = held_out_scenes(options.data, options.count)
    pipe = StableDiffusion.from_pretrained(options.model)
    settings = {"steps": options.steps, "guidance_scale": options.guidance, "sampler": "dpmpp_2m"}
    scores = evaluate_control(
        pipe, options.control, scenes, detector_cutouts(options.data), detector, settings, options.condition,
        options.seed, options.sheet,
    )  # fmt: skip
    print(control_table(scores))


if __name__ == "__main__":
    main()
