"""Measure approximations and samplers with the bundled model, with the same seeds for each.

python scripts/approximations.py --full-size 2              guidance intervals, step caching, token merging
python scripts/approximations.py --samplers --count 100     the steps at which each sampler reaches 50 steps of DDPM

Writes {approximations,samplers}.{md,json,png} in docs/benchmarks; the samplers need data/emoji and matplotlib.
"""

import json
import random
import sys
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from sd.utils.errors import plain_errors, plain_imports

with plain_imports():
    from benchmarks import approximations, sampler_steps
    from sd.cli.parser import ArgumentParser
    from sd.evaluation.clip_score import load_clip
    from sd.pipeline.settings import GenerationSettings
    from sd.pipeline.stable_diffusion import BUNDLED, StableDiffusion
    from sd.samplers import SAMPLERS
    from sd.training.pretrain.dataset import EmojiDataset

PROMPTS = "red apple, cat face, dog, rocket, tree, house, car, pizza, red heart, fish, snowman, banana, ghost, flower"


def parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--count", type=int, default=14, help="number of prompts (default: 14)")
    add("--images", type=int, default=4, help="images per prompt, for the approximations (default: 4)")
    add("--steps", type=int, default=30, help="steps of dpmpp_2m, for the approximations (default: 30)")
    add("--samplers", action="store_true", help="compare the samplers instead, over --count images")
    add("--only", nargs="+", choices=SAMPLERS, help="samplers to compare (default: all but lcm and euler_a)")
    add("--full-size", type=int, default=0, metavar="ROUNDS", help="also time the U-Net at v1-5's size in bf16 (0)")
    add("--data", type=Path, default=ROOT / "data" / "emoji", help="folder of the dataset (default: data/emoji)")
    add("--out", type=Path, default=ROOT / "docs" / "benchmarks", help="output folder (default: docs/benchmarks)")
    return parser


@plain_errors
def main() -> None:
    args = parser().parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    pipe, scorer = StableDiffusion.from_pretrained(BUNDLED), load_clip()
    name, text, figures = (compare_samplers if args.samplers else compare_approximations)(args, pipe, scorer)
    text += f"\n\nCLIP-T is by {scorer.name}.\n\n![Images or plot of the table]({name}.png)\n"
    (args.out / f"{name}.md").write_text(text, encoding="utf-8")
    (args.out / f"{name}.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print(text, end="")


def compare_approximations(args, pipe, scorer):
    prompts = [f"a {name}" for name in PROMPTS.split(", ")[: args.count]]
    every = dict(steps=args.steps, sampler="dpmpp_2m", guidance_scale=sampler_steps.GUIDANCE, num_images=args.images)
    requests = [GenerationSettings(prompt, seed=100 * i, **every) for i, prompt in enumerate(prompts)]
    ways = approximations.available_ways(pipe.device, pipe.dtype)
    found = approximations.measure(pipe, scorer, requests, ways, lambda done: print(f"{done:.0%}", file=sys.stderr))
    large = approximations.full_size_ratios(args.full_size, ways, args.out)
    approximations.sheet(found, prompts).save(args.out / "approximations.png", optimize=True)
    figures = [{key: value for key, value in vars(one).items() if key != "images"} for one in found]
    return "approximations", approximations.table(found, large), {"ways": figures, "full size": large}


def compare_samplers(args, pipe, scorer):
    dataset = EmojiDataset(args.data, ("train", "pair"))
    wanted = random.Random(0).sample(dataset.emoji, args.count)
    samplers = args.only or [name for name in SAMPLERS if name not in sampler_steps.EXCLUDED]
    rows = sampler_steps.measure(pipe, scorer, wanted, dataset, samplers, lambda row: print(row, file=sys.stderr))
    sampler_steps.plot(rows, args.out / "samplers.png")
    return "samplers", sampler_steps.table(rows), [asdict(row) for row in rows]


if __name__ == "__main__":
    main()
