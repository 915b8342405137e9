"""What the three teaching scripts share: their flags, and what is done with them."""

import argparse
from dataclasses import fields
from pathlib import Path

from sd.checkpoint import DTYPES
from sd.cli import add_vae, choose_checkpoint
from sd.pipeline import WEIGHTS
from sd.training.personalize import Result, teach
from sd.training.preparing import load_to_teach
from sd.training.recipes import DIALECTS, KINDS, SCHEDULES, TARGETS, Recipe, recipe_for


def teaching_parser(description: str, examples: str) -> argparse.ArgumentParser:
    """The flags of all three; those that are left out take the method's and the model's defaults (`recipes.py`)."""
    parser = argparse.ArgumentParser(
        description=description, epilog=examples, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--images", required=True, metavar="DIR", help="a folder of pictures: 5 to 15 will do")
    add("--ckpt", "--model", metavar="FILE", help="a checkpoint, or its name in weights/ (yours, or ours)")
    add_vae(parser)
    add("--class-word", help="what kind of thing it is, such as dog")
    add("--kind", choices=KINDS, help="what the pictures have in common (object)")
    add("--steps", type=int, help="how many")
    add("--batch", type=int, help="pictures at once")
    add("--accumulate", type=int, help="batches to a step (1)")
    add("--lr", type=float, help="learning rate")
    add("--scale-lr", action="store_true", default=None, help="times the number of pictures of a step")
    add("--schedule", choices=SCHEDULES, help="of the learning rate")
    add("--warmup", type=int, help="steps in which the learning rate rises")
    add("--weight-decay", type=float)
    add("--min-snr", type=float, help="gamma of Min-SNR weighting (5); 0 weighs all times alike")
    add("--noise-offset", type=float, help="around 0.1, for very dark and bright pictures (0)")
    add("--size", type=int, help="in pixels (the model's own)")
    add("--no-flip", dest="flip", action="store_false", default=None, help="for faces, text, and all with a left side")
    add("--crops", type=int, help="how many of each picture; 1 is its middle")
    add("--no-buckets", dest="buckets", action="store_false", default=None, help="cut every picture to a square")
    add("--checkpointing", action="store_true", default=None, help="less memory, a third more time")
    add("--precision", choices=list(DTYPES), help="of mixed precision (what the device is fastest in)")
    add(
        "--prompt", dest="prompts", action="append", metavar="TEXT", help="of a preview; {} is the word; again for more"
    )
    add("--saves", type=int, help="how many files to choose from, with pictures of each")
    add("--preview-steps", type=int, help="sampling steps of those pictures")
    add("--guidance-scale", type=float, help="of those pictures")
    add("--save-minutes", type=float, help="how often to save what a stopped run goes on from")
    add("--seed", type=int, help="of everything random (0)")
    add(
        "--run-dir",
        dest="run",
        type=Path,
        metavar="DIR",
        help="where everything of this run is kept (runs/METHOD-NAME)",
    )
    add("--output", type=Path, metavar="FILE", help="where the result goes (weights/, where prompts find it)")
    add("--device", help="cpu, cuda, mps (a GPU where there is one)")
    return parser


def add_targets(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--rank", type=int, help="of each change (4)")
    add("--alpha", type=float, help="its scale is alpha / rank (the rank)")
    add("--targets", nargs="+", choices=TARGETS, help="cross-attention (default), all attention, feed-forward, text")
    add("--text-lr", type=float, help="learning rate of the text encoder (half of --lr)")
    add("--format", dest="dialect", choices=DIALECTS, help="of the file (kohya)")


def teach_from(args: argparse.Namespace, method: str, name: str) -> Result:
    """Teaches what the flags say."""
    pipe = load_to_teach(method, choose_checkpoint(args.ckpt, WEIGHTS), args.device, args.precision, args.vae)
    given = {field.name: getattr(args, field.name, None) for field in fields(Recipe)}
    for listed in ("targets", "prompts"):
        given[listed] = tuple(given[listed]) if given[listed] else None
    recipe = recipe_for(method, pipe, name, **given)
    return teach(method, args.images, name, pipe, recipe, run=args.run, output=args.output)
