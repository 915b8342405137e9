"""Generates images from an image and text: python scripts/img2img.py "a red apple" --init-img sketch.png"""

import sys
from pathlib import Path

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sd.utils.errors import plain_errors, plain_imports

with plain_imports():
    from sd.cli.args import generation_parser
    from sd.cli.img2img import add_resume, generate_from_images
    from sd.utils.files import check_outdir


@plain_errors
def main() -> None:
    flags = generation_parser("Generates images from an image and text.", "image", {"strength": 0.75})
    flags.add(
        "img2img",
        "--init-img",
        "--image",
        required=True,
        metavar="FILE",
        help="image to start from, or a folder of images",
    )
    add_resume(flags)
    args = flags.parser.parse_args()
    check_outdir(args.outdir)
    generate_from_images(args, args.init_img)


if __name__ == "__main__":
    main()
