"""Draws a part of a picture anew: python scripts/inpaint.py "a red apple" --image room.png --mask mask.png"""

import sys
from pathlib import Path

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sd.cli.args import drawing_parser, load_pipeline, settings_of, with_picture_size
from sd.cli.run import draw_and_save, spelled_out
from sd.utils.errors import plain_errors
from sd.utils.files import check_outdir
from sd.utils.images import open_image


@plain_errors
def main():
    parser = drawing_parser("Draws the part of a picture anew where a mask is white.")
    parser.add_argument("--image", "--init-img", required=True, metavar="FILE", help="the picture")
    parser.add_argument("--mask", required=True, metavar="FILE", help="white where to draw, black where to keep")
    parser.add_argument("--strength", type=float, default=1.0, help="below 1 something of the old stays (1)")
    args = parser.parse_args()
    check_outdir(args.outdir)
    settings, image, mask = settings_of(args), open_image(args.image), open_image(args.mask)
    pipe = load_pipeline(args)
    settings = with_picture_size(settings, image, pipe.image_size)
    todo = [settings.replace(seed=settings.seed + i * settings.num_images) for i in range(args.n_iter)]
    draw_and_save(pipe, spelled_out(pipe, todo, args), args, image, mask)


if __name__ == "__main__":
    main()
