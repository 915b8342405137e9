"""Draws pictures from text: python scripts/txt2img.py "a red apple" """

import argparse
import sys
from pathlib import Path

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sd.cli.args import add_hires, drawing_parser, given_flags, load_pipeline, settings_of
from sd.cli.distributed import agreed, one_of_many, plan, share
from sd.cli.from_png import settings_again
from sd.cli.requests import Drawing
from sd.cli.run import draw_and_save, spelled_out
from sd.utils.errors import UserError, plain_errors
from sd.utils.files import check_outdir, read_prompts


@plain_errors
def main():
    parser = drawing_parser("Draws pictures from text.")
    parser.add_argument("--from-file", metavar="FILE", help="draw each line of a text file")
    parser.add_argument("--resume", action="store_true", help="leave out pictures that --outdir has already (--seed!)")
    parser.add_argument("--from-png", metavar="FILE", help="generate a saved image again, by the settings inside it")
    add_hires(parser)
    args = parser.parse_args()
    args.given = given_flags(parser)
    if args.resume and args.seed is None and not args.from_png:
        raise UserError("--resume needs the --seed that was drawn with: it is printed, and written into each picture.")
    with one_of_many():
        draw_all(args)


def draw_all(args: argparse.Namespace) -> None:
    folder = check_outdir(args.outdir)
    as_saved = False
    if args.from_png:
        todo, as_saved = settings_again(args.from_png, args)
    elif args.from_file:
        todo = [settings_of(args, prompt=prompt) for prompt in read_prompts(args.from_file)]
    else:
        todo = [settings_of(args)]
    first, count = todo[0].seed, todo[0].num_images
    again = [one for one in todo for _ in range(args.n_iter)]
    again = [one.replace(seed=first + i * count) for i, one in enumerate(again)]
    pipe = load_pipeline(args)

    def decide() -> list[Drawing]:
        drawings = [Drawing(one) for one in again] if as_saved else spelled_out(pipe, again, args)
        return plan(pipe, drawings, folder, args.resume)

    draw_and_save(pipe, share(agreed(decide)), args)


if __name__ == "__main__":
    main()
