"""Teaches a thing or a style to the whole U-Net: DreamBooth (Ruiz et al. 2022)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sd.errors import plain_errors
from sd.training.cli import teach_from, teaching_parser

EXAMPLES = """
  python scripts/train_dreambooth.py --images photos/ --name my-dog --word sks --class-word dog
  python scripts/txt2img.py "a photo of sks dog" --ckpt my-dog

With a class word, the model first draws pictures of that class and keeps learning them, so as not to forget it.
Given again, a command goes on where it was stopped. Several GPUs: torchrun --nproc-per-node=2 ...
"""


@plain_errors
def main() -> None:
    parser = teaching_parser(__doc__, EXAMPLES)
    add = parser.add_argument
    add("--name", required=True, help="of the checkpoint")
    add("--word", help='what captions and prompts call it (the name); "" leaves captions alone')
    add("--class-images", type=int, help="how many pictures of the class to draw")
    add("--prior-weight", type=float, help="of those pictures beside yours (1); 0 does without")
    add("--text-encoder", dest="targets", action="store_const", const=["text"], help="train the text encoder as well")
    add("--text-lr", type=float, help="its learning rate (half of --lr)")
    add("--ema", type=float, help="keep an average of the weights with this memory, such as 0.999 (0: none)")
    args = parser.parse_args()
    teach_from(args, "dreambooth", args.name)


if __name__ == "__main__":
    main()
