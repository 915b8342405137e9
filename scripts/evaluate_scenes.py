"""Score a model on GenEval's six tasks with held-out combinations, beside rendered scenes as the detector's ceiling.

python scripts/train_scenes.py detector                                 the detector, once
python scripts/evaluate_scenes.py                                       the shipped model (some minutes)
python scripts/evaluate_scenes.py --model runs/scenes/emoji.safetensors --sheets out --note "250,000 images"
python scripts/evaluate_scenes.py --lora weights/emoji-turbo.safetensors --sampler lcm --steps 4 --guidance 1
python scripts/evaluate_scenes.py --regions                             two objects, each in its half of the image

Prints each task's fraction of right images with its 95 % interval, and the share of a noun's attention on its object.
"""

import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from sd.utils.errors import UserError, plain_errors, plain_imports

with plain_imports():
    import torch

    from sd.cli.parser import ArgumentParser
    from sd.pipeline.stable_diffusion import StableDiffusion
    from sd.samplers import SAMPLERS
    from sd.training.args import HelpFormatter
    from sd.training.pretrain.scenes import evaluation
    from sd.training.pretrain.scenes.detector import load_detector
    from sd.training.pretrain.scenes.tasks import TASKS
    from sd.training.pretrain.scenes.vocabulary import COMMON_NOUNS


@plain_errors
def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, default=ROOT / "data" / "emoji", help="folder of the prepared dataset")
    add("--model", type=Path, default=ROOT / "weights" / "emoji.safetensors", help="checkpoint to score")
    add("--detector", type=Path, default=ROOT / "runs" / "scenes" / "detector", help="folder of the trained detector")
    add("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS), metavar="TASK", help="tasks to score")
    add("--nouns", choices=["common", "all"], default="all", help="nouns of the prompts: the common ones or all")
    add("--prompts", type=int, default=100, help="number of prompts for each task")
    add("--steps", type=int, default=20, help="number of sampling steps")
    add("--sampler", choices=list(SAMPLERS), default="dpmpp_2m", metavar="NAME", help="sampler of the images")
    either = parser.add_mutually_exclusive_group().add_argument
    either("--lora", type=Path, metavar="FILE", help="LoRA to load, such as the turbo one")
    add("--guidance", type=float, default=4.0, help="classifier-free guidance scale")
    add("--sheets", type=Path, help="folder for one sheet for each task, with right and wrong images marked")
    add("--regions", action="store_true", help="score regions (ADDCOL) beside a plain prompt, instead of the tasks")
    either("--real-only", action="store_true", help="score only the rendered scenes (the detector's ceiling)")
    add("--curve", type=Path, help="append the scores as one JSON line to this file")
    add("--note", default="", help="text to store with the scores, such as the number of images seen")
    add("--threads", type=int, help="number of CPU threads (default: one for each core)")
    options = parser.parse_args()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    detector = load_detector(options.detector)
    pipe = None if options.real_only else StableDiffusion.from_pretrained(options.model)
    settings = {"steps": options.steps, "guidance_scale": options.guidance, "sampler": options.sampler}
    if pipe is not None and options.lora is not None:
        pipe.load_lora(options.lora)
    nouns = COMMON_NOUNS if options.nouns == "common" else None
    how: dict[str, Any] = {"settings": settings, "sheets": options.sheets, "seed": 1000, "nouns": nouns}
    if options.regions:
        if pipe is None:
            raise UserError("--regions scores generated images: leave --real-only out.")
        regions = evaluation.evaluate_regions(options.data, detector, pipe, options.prompts, **how)
        print(*(f"two objects, each in its half, {who}: {score}" for who, score in regions.items()), sep="\n")
        return
    scores = evaluation.evaluate_tasks(options.tasks, options.data, detector, pipe, options.prompts, **how)
    print(evaluation.table(scores))
    attention = None if pipe is None else evaluation.evaluate_attention(options.data, pipe, options.prompts, nouns)
    if attention is not None:
        print(f"attention of nouns: {attention}")
    if options.curve is not None:
        about = {"note": options.note, "model": str(options.model), "nouns": options.nouns}
        evaluation.append_scores(options.curve, about, scores, attention)


if __name__ == "__main__":
    main()
