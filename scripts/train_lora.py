"""Teaches a thing or a style as a small file that changes some layers a little: LoRA (Hu et al. 2021)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sd.errors import plain_errors
from sd.training.cli import add_targets, teach_from, teaching_parser

EXAMPLES = """
  python scripts/train_lora.py --images photos/ --name my-dog --word sks --class-word dog
  python scripts/train_lora.py --images paintings/ --name my-style --kind style
  python scripts/txt2img.py "a photo of sks dog <lora:my-dog:0.8>"

Given again, a command goes on where it was stopped. Several GPUs: torchrun --nproc-per-node=2 scripts/train_lora.py ...
"""


@plain_errors
def main() -> None:
    parser = teaching_parser(__doc__, EXAMPLES)
    parser.add_argument("--name", required=True, help="of the file; prompts say <lora:NAME:1>")
    parser.add_argument("--word", help='what captions and prompts call it (the name); "" leaves captions alone')
    add_targets(parser)
    args = parser.parse_args()
    teach_from(args, "lora", args.name)


if __name__ == "__main__":
    main()
