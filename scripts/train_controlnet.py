"""Train a ControlNet for a frozen model: edges or a scribble then decide the composition (Zhang et al. 2023)."""

import sys
from pathlib import Path

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sd.utils.errors import plain_errors

EXAMPLES = """
  python scripts/train_controlnet.py --images captioned/ --name my-edges
  python scripts/train_controlnet.py --scenes data/emoji --latents runs/scenes/latents --name emoji-edges
  python scripts/txt2img.py "a red apple" --control my-edges --control-image scribble.png

Condition images are computed from the images: Canny edges with random thresholds, and scribbles. The same command
resumes a run that was stopped. Several GPUs: torchrun --nproc-per-node=2 scripts/train_controlnet.py ...
"""


@plain_errors
def main() -> None:
    # Importing PyTorch takes seconds; in here, a Ctrl-C during it ends without a traceback.
    from sd.training.controlnet.args import control_parser, train_from_args

    train_from_args(control_parser(__doc__, EXAMPLES))


if __name__ == "__main__":
    main()
