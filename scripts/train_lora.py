"""Teaches a thing or a style as a small file that changes some layers a little: LoRA (Hu et al. 2021)."""

import sys
from pathlib import Path

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sd.training.finetune.args import add_targets, teach_from, teaching_parser
from sd.utils.errors import plain_errors

EXAMPLES = """
  python scripts/train_lora.py --images photos/ --name my-dog --word sks --class-word dog
  python scripts/train_lora.py --images paintings/ --name my-style --kind style
  python scripts/txt2img.py "a photo of sks dog <lora:my-dog:0.8>"

Given again, a command goes on where it was stopped. Several GPUs: torchrun --nproc-per-node=2 scripts/train_lora.py ...
"""


@plain_errors
def main() -> None:
    options = teaching_parser("lora", __doc__, EXAMPLES)
    add_targets(options)
    options.add("--name", required=True, default="", help="name of the file; prompts say <lora:NAME:1>")
    word = 'what captions and prompts call it; "" leaves captions as they are'
    options.add("--word", default="the name", help=word)
    teach_from(options, "lora", "name")


if __name__ == "__main__":
    main()
