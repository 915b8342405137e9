"""Train a LoRA for an object or a style: a small file with low-rank changes of some layers (Hu et al. 2021)."""

import sys
from pathlib import Path

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sd.utils.errors import plain_errors

EXAMPLES = """
  python scripts/train_lora.py --images photos/ --name my-dog --word sks --class-word dog
  python scripts/train_lora.py --images paintings/ --name my-style --kind style
  python scripts/txt2img.py "a photo of sks dog <lora:my-dog:0.8>"

The same command resumes a run that was stopped. Several GPUs: torchrun --nproc-per-node=2 scripts/train_lora.py ...
"""


@plain_errors
def main() -> None:
    # Importing PyTorch takes seconds; in here, a Ctrl-C during it ends without a traceback.
    from sd.training.finetune.args import add_targets, train_from_args, training_parser

    options = training_parser("lora", __doc__, EXAMPLES)
    add_targets(options)
    options.add_option("--name", required=True, default="", help="name of the LoRA; prompts use it as <lora:NAME:1>")
    word = 'word that stands for the object or style in captions and prompts; "" leaves captions unchanged'
    options.add_option("--word", default="the name", help=word)
    train_from_args(options, "lora", "name")


if __name__ == "__main__":
    main()
