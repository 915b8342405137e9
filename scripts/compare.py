"""Generates the same prompts and seeds with a base model and with fine-tuned ones, on one sheet.

python scripts/compare.py "a <rex> in the snow" "a <rex> on the beach" --with embedding=rex.safetensors \\
    --with "lora=rex-lora.safetensors:0.8" --with "ckpt=rex.ckpt" --word "<rex>" --class-word dog
"""

import argparse
import sys
from pathlib import Path

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sd.utils.errors import UserError, plain_errors, plain_imports

with plain_imports():
    from sd.checkpoints.discovery import BUNDLED, WEIGHTS, choose_checkpoint
    from sd.cli.args import FlagGroups, add_compute_flags, add_model_choices, add_options, load_pipeline, parse_column
    from sd.cli.parser import ArgumentParser
    from sd.evaluation.clip_score import LazyImages, load_clip
    from sd.evaluation.comparison import Column, compare
    from sd.pipeline.settings import OPTIONS, GenerationSettings
    from sd.pipeline.stable_diffusion import StableDiffusion
    from sd.prompts.wildcards import expand_wildcards
    from sd.training.finetune.data.image_folder import ImageFolder
    from sd.utils.files import check_outdir, save_png

SHARED = ("negative_prompt", "steps", "guidance_scale", "sampler", "seed", "width", "height", "num_images")
DEFAULTS = {"steps": 30, "sampler": "dpmpp_2m", "seed": 0}


def comparison_parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("prompts", nargs="+", metavar="PROMPT", help="text prompt (repeatable); a row for each of its seeds")
    column = "column beside the base (repeatable): lora=FILE[:STRENGTH], embedding=FILE[:WORD] or ckpt=FILE, or several"
    add("--with", dest="columns", action="append", default=[], metavar="COLUMN", help=f"{column} joined by ' + '")
    add("--ckpt", "--model", metavar="FILE", help="base checkpoint, or its name in weights/ (default: as txt2img.py)")
    add_model_choices(parser)
    add("--word", help="new word in the prompts, which the base does not know")
    add("--class-word", default="", help="word in place of --word for the base and for CLIP (default: none)")
    add("--references", metavar="DIR", help="folder of the training images, for CLIP-I")
    add("--clip", metavar="PATH", help="CLIP to score with (default: the bundled model's own, if that is the base)")
    add("--outdir", default="outputs", help="folder for the sheet (default: outputs)")
    flags = FlagGroups(parser)
    add_options(flags, [row for row in OPTIONS if row.name in SHARED], DEFAULTS)
    add_compute_flags(parser, flags)
    flags.add("performance", "--device", help="cpu, cuda or mps", default_help="a GPU where there is one")
    parser.set_defaults(lora=[], embedding=[], taesd=None)
    return parser


@plain_errors
def main() -> None:
    args = comparison_parser().parse_args()
    if not args.columns:
        raise UserError("missing --with; use --with lora=FILE:0.8, embedding=FILE or ckpt=FILE.")
    given = {name: getattr(args, name) for name in SHARED}
    settings = [GenerationSettings(prompt=expand_wildcards(prompt, args.seed), **given) for prompt in args.prompts]
    columns = [Column(), *map(parse_column, args.columns)]
    folder, bundled = check_outdir(args.outdir), choose_checkpoint(args.ckpt, WEIGHTS).resolve() == BUNDLED
    scorer = load_clip(args.clip, args.device) if args.clip or bundled else None
    references = LazyImages([photo.path for photo in ImageFolder(args.references).images]) if args.references else None

    def load(ckpt: str | None) -> StableDiffusion:
        return load_pipeline(argparse.Namespace(**vars(args) | {"ckpt": ckpt or args.ckpt}))

    def show(part: float) -> None:
        print(f"\rgenerating {part:4.0%}", end="" if part < 1 else "\n", file=sys.stderr, flush=True)

    done = compare(load, columns, settings, scorer, references, args.word, args.class_word, show, args.vae)
    print(done)
    print(f"{save_png(done.sheet(), folder, prefix='compare-')}  {len(columns)} columns, {len(done.rows)} rows")


if __name__ == "__main__":
    main()
