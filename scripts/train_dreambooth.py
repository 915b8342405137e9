"""Teaches a thing or a style to the whole U-Net: DreamBooth (Ruiz et al. 2022)."""

import sys
from pathlib import Path

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sd.training.finetune.args import add_text_lr, teach_from, teaching_parser
from sd.utils.errors import plain_errors

EXAMPLES = """
  python scripts/train_dreambooth.py --images photos/ --name my-dog --word sks --class-word dog
  python scripts/txt2img.py "a photo of sks dog" --ckpt my-dog
  python scripts/train_dreambooth.py --images captioned/ --name my-model --word ""   (full fine-tuning on captions)

With a class word, the model first draws pictures of that class and keeps learning them, so as not to forget it.
Given again, a command goes on where it was stopped. Several GPUs: torchrun --nproc-per-node=2 ...
"""


@plain_errors
def main() -> None:
    options = teaching_parser("dreambooth", __doc__, EXAMPLES)
    options.begin("DreamBooth")
    add = options.add
    add("--name", required=True, default="", help="name of the checkpoint")
    word = 'what captions and prompts call it; "" leaves captions as they are, which is plain fine-tuning'
    add("--word", default="the name", help=word)
    add("--class-images", type=int, metavar="N", help="number of images of the class to generate and keep learning")
    add("--prior-weight", type=float, metavar="X", help="weight of their loss; 0 does without them")
    text = "train the text encoder as well"
    add("--text-encoder", dest="targets", action="store_const", const=["text"], default="off", help=text)
    add_text_lr(options)
    add("--ema", type=float, metavar="X", help="decay of an average of the weights, such as 0.999; 0 keeps none")
    teach_from(options, "dreambooth", "name")


if __name__ == "__main__":
    main()
