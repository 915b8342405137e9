"""Draws from a picture and text: python scripts/img2img.py "a red apple" --init-img sketch.png"""

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
    parser = drawing_parser("Draws from a picture and text.")
    parser.add_argument("--init-img", "--image", required=True, metavar="FILE", help="the picture to start from")
    parser.add_argument("--strength", type=float, default=0.75, help="0 leaves it as it is, 1 forgets it (0.75)")
    args = parser.parse_args()
    check_outdir(args.outdir)
    settings, image = settings_of(args), open_image(args.init_img)
    pipe = load_pipeline(args)
    settings = with_picture_size(settings, image, pipe.image_size)
    todo = [settings.replace(seed=settings.seed + i * settings.num_images) for i in range(args.n_iter)]
    draw_and_save(pipe, spelled_out(pipe, todo, args), args, image)


if __name__ == "__main__":
    main()
