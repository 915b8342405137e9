"""Fine-tune the whole U-Net on an object or a style: DreamBooth (Ruiz et al. 2022)."""

import sys
from pathlib import Path

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sd.utils.errors import plain_errors

EXAMPLES = """
  python scripts/train_dreambooth.py --images photos/ --name my-dog --word sks --class-word dog
  python scripts/txt2img.py "a photo of sks dog" --ckpt my-dog
  python scripts/train_dreambooth.py --images captioned/ --name my-model --word ""   (full fine-tuning on captions)

With a class word, the model first generates images of that class and trains on them too, so that it does not forget the
class (prior preservation). The same command resumes a stopped run. Several GPUs: torchrun --nproc-per-node=2 ...
"""


@plain_errors
def main() -> None:
    # Importing PyTorch takes seconds; in here, a Ctrl-C during it ends without a traceback.
    from sd.training.finetune.args import add_text_lr, train_from_args, training_parser

    options = training_parser("dreambooth", __doc__, EXAMPLES)
    options.begin_group("DreamBooth")
    add = options.add_option
    add("--name", required=True, default="", help="name of the checkpoint")
    word = 'word that stands for the object or style in captions and prompts; "" leaves captions unchanged'
    add("--word", default="the name", help=word)
    add("--class-images", type=int, metavar="N", help="number of class images to generate for prior preservation")
    add("--prior-weight", type=float, metavar="X", help="weight of the loss on class images; 0 generates none")
    text = "train the text encoder as well"
    add("--text-encoder", dest="targets", action="store_const", const=["text"], default="off", help=text)
    add_text_lr(options)
    add("--ema", type=float, metavar="X", help="decay of the averaged weights, such as 0.999; 0 for no average")
    train_from_args(options, "dreambooth", "name")


if __name__ == "__main__":
    main()
