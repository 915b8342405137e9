"""Regenerates a part of an image: python scripts/inpaint.py "a red apple" --image room.png --mask mask.png"""

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
    flags = generation_parser("Regenerates the part of an image where a mask is white.", "image", {"strength": 1.0})
    add = flags.add
    add("img2img", "--image", "--init-img", required=True, metavar="FILE", help="image to change")
    add("img2img", "--mask", required=True, metavar="FILE", help="white where to regenerate, black where to keep")
    args = flags.parser.parse_args()
    check_outdir(args.outdir)
    generate_from_image(args, open_image(args.image), open_image(args.mask))


if __name__ == "__main__":
    main()
