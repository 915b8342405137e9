"""Train an embedding for an object or a style: textual inversion, a new word of the text encoder (Gal et al. 2022)."""

import sys
from pathlib import Path

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sd.utils.errors import plain_errors

EXAMPLES = """
  python scripts/train_ti.py --images photos/ --word my-dog --init dog
  python scripts/train_ti.py --images paintings/ --word my-style --kind style
  python scripts/txt2img.py "my-dog on a beach" --embedding weights/embeddings/my-dog.safetensors

The same command resumes a run that was stopped. Several GPUs: torchrun --nproc-per-node=2 scripts/train_ti.py ...
"""


@plain_errors
def main() -> None:
    # Importing PyTorch takes seconds; in here, a Ctrl-C during it ends without a traceback.
    from sd.training.finetune.args import train_from_args, training_parser

    options = training_parser("ti", __doc__, EXAMPLES)
    options.begin_group("textual inversion")
    add = options.add_option
    add("--word", required=True, default="", help="new word, which must not be in the vocabulary: my-dog, <my-dog>")
    add(
        "--init",
        metavar="WORDS",
        default="--class-word, else emoji, object or painting",
        help="words whose vectors are the initial value",
    )
    add(
        "--vectors",
        type=int,
        metavar="N",
        default="as many as --init has tokens",
        help="number of vectors of the new word",
    )
    train_from_args(options, "ti", "word")


if __name__ == "__main__":
    main()
