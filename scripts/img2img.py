"""Generates images from an image and text: python scripts/img2img.py "a red apple" --init-img sketch.png"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sd.cli.args import generation_parser
from sd.cli.img2img import generate_from_image
from sd.utils.errors import plain_errors
from sd.utils.files import check_outdir
from sd.utils.images import open_image


@plain_errors
def main() -> None:
    flags = generation_parser("Generates images from an image and text.", "image", {"strength": 0.75})
    flags.add("img2img", "--init-img", "--image", required=True, metavar="FILE", help="image to start from")
    args = flags.parser.parse_args()
    check_outdir(args.outdir)
    generate_from_image(args, open_image(args.init_img))


if __name__ == "__main__":
    main()
