"""Teaches the text encoder a new word for a thing or a style: textual inversion (Gal et al. 2022)."""

import sys
from pathlib import Path

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sd.training.finetune.args import teach_from, teaching_parser
from sd.utils.errors import plain_errors

EXAMPLES = """
  python scripts/train_ti.py --images photos/ --word my-dog --init dog
  python scripts/train_ti.py --images paintings/ --word my-style --kind style
  python scripts/txt2img.py "my-dog on a beach" --embedding weights/embeddings/my-dog.safetensors

Given again, a command goes on where it was stopped. Several GPUs: torchrun --nproc-per-node=2 scripts/train_ti.py ...
"""


@plain_errors
def main() -> None:
    options = teaching_parser("ti", __doc__, EXAMPLES)
    options.begin("textual inversion")
    add = options.add
    add("--word", required=True, default="", help="the new word, which must not be one yet: my-dog, <my-dog>")
    add("--init", metavar="WORDS", default="--class-word, else emoji, object or painting", help="words to start from")
    add("--vectors", type=int, metavar="N", default="as many as --init has tokens", help="vectors of the new word")
    teach_from(options, "ti", "word")


if __name__ == "__main__":
    main()
