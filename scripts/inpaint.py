"""Regenerates a part of an image, or extends it:

python scripts/inpaint.py "a red apple" --image room.png --mask mask.png
python scripts/inpaint.py "a room" --image room.png --outpaint 128 --outpaint-sides "left, right"
"""

import sys
from pathlib import Path

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sd.utils.errors import UserError, plain_errors, plain_imports

with plain_imports():
    from sd.cli.args import generation_parser
    from sd.cli.img2img import add_resume, generate_from_images
    from sd.utils.files import check_outdir

MASK_HELP = "white where to regenerate, black where to keep; or a folder with a mask of the same name for each image"


@plain_errors
def main() -> None:
    flags = generation_parser("Regenerates the part of an image where a mask is white.", "image", {"strength": 1.0})
    add = flags.add
    add(
        "img2img", "--image", "--init-img", required=True, metavar="FILE", help="image to change, or a folder of images"
    )
    add("img2img", "--mask", metavar="FILE", help=MASK_HELP, default_help="none, with --outpaint")
    add_resume(flags)
    args = flags.parser.parse_args()
    if args.mask is None and not args.outpaint:
        raise UserError("missing --mask; give a mask, or --outpaint 128 to extend the image.")
    check_outdir(args.outdir)
    generate_from_images(args, args.image, args.mask)


if __name__ == "__main__":
    main()
