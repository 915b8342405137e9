"""Draws the same prompts and seeds with a base and with what was made of it, on one sheet.

python scripts/compare.py "a <rex> in the snow" "a <rex> on the beach" --with embedding=rex.safetensors \\
    --with "lora=rex-lora.safetensors:0.8" --with "ckpt=rex.ckpt" --word "<rex>" --class-word dog
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sd.checkpoints.discovery import choose_checkpoint
from sd.cli.args import add_vae, column_of, load_pipeline
from sd.evaluation.clip_score import Opened, load_clip
from sd.evaluation.comparison import Column, compare
from sd.pipeline.settings import Settings
from sd.pipeline.stable_diffusion import BUNDLED, WEIGHTS
from sd.prompts.wildcards import expand_wildcards
from sd.samplers import SAMPLERS
from sd.training.finetune.data.image_folder import ImageFolder
from sd.utils.device import DTYPES
from sd.utils.errors import UserError, plain_errors
from sd.utils.files import check_outdir, save_png


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("prompts", nargs="+", metavar="PROMPT", help="what to draw; each is a row for each of its seeds")
    what = "lora=FILE[:STRENGTH], embedding=FILE[:WORD] or ckpt=FILE, or several joined by ' + '"
    add("--with", dest="columns", action="append", default=[], metavar="WHAT", help=f"a column beside the base: {what}")
    add("--ckpt", "--model", metavar="FILE", help="the base, or its name in weights/ (default: yours, or ours)")
    add_vae(parser)
    add("--word", help="the new word in the prompts, which the base does not know")
    add("--class-word", default="", help="what the base draws, and CLIP reads, in its place (nothing)")
    add("--references", metavar="DIR", help="the pictures that were learnt from, for CLIP-I")
    add("--clip", metavar="PATH", help="a CLIP to score with (the bundled model is scored by its own)")
    add("--outdir", default="outputs", help="folder for the sheet (outputs)")
    add("--negative-prompt", default="", help="what to stay away from")
    add("--steps", type=int, default=30, help="how many steps (30)")
    add("--guidance-scale", type=float, default=7.5, help="how strictly to follow the prompt (7.5)")
    add("--sampler", default="dpmpp_2m", help=f"one of {', '.join(SAMPLERS)} (dpmpp_2m)")
    add("--seed", type=int, default=0, help="of each prompt's first picture; the next ones count up (0)")
    add("--num-images", type=int, default=1, help="pictures of each prompt (1)")
    add("--width", type=int, help="in pixels, a multiple of 8 (each model's own)")
    add("--height", type=int, help="in pixels, a multiple of 8 (each model's own)")
    add("--precision", choices=["auto", *DTYPES], default="auto", help="auto: fp32 on CPU, fp16 on GPU (auto)")
    add("--device", help="cpu, cuda, mps (a GPU where there is one)")
    parser.set_defaults(lora=[], embedding=[], taesd=None, optimize=None)
    return parser


@plain_errors
def main():
    args = parser().parse_args()
    if not args.columns:
        raise UserError("say what to compare the base with: give --with lora=FILE:0.8, embedding=FILE or ckpt=FILE.")
    given = {name: value for name, value in vars(args).items() if name in Settings.__dataclass_fields__}
    settings = [Settings(prompt=expand_wildcards(prompt, args.seed), **given) for prompt in args.prompts]
    columns = [Column(), *map(column_of, args.columns)]
    folder, bundled = check_outdir(args.outdir), choose_checkpoint(args.ckpt, WEIGHTS).resolve() == BUNDLED
    scorer = load_clip(args.clip, args.device) if args.clip or bundled else None
    references = Opened([photo.path for photo in ImageFolder(args.references).images]) if args.references else None

    def load(ckpt):
        return load_pipeline(argparse.Namespace(**vars(args) | {"ckpt": ckpt or args.ckpt}))

    def show(part):
        print(f"\rdrawing {part:4.0%}", end="" if part < 1 else "\n", file=sys.stderr, flush=True)

    done = compare(load, columns, settings, scorer, references, args.word, args.class_word, show)
    print(done)
    print(f"{save_png(done.sheet(), folder, prefix='compare-')}  {len(columns)} columns, {len(done.rows)} rows")


if __name__ == "__main__":
    main()
