"""Train a small Stable Diffusion from scratch, part by part. The same command resumes a part that was stopped.

python scripts/prepare_emoji.py            the dataset, once
python scripts/train_scratch.py clip       text and image towers of CLIP
python scripts/train_scratch.py vae        images to latents and back
python scripts/train_scratch.py unet       the diffusion model, on the results of the first two
python scripts/train_scratch.py decoder    a better decoder for the same latents
python scripts/train_scratch.py export     all parts to weights/emoji.safetensors
python scripts/train_scratch.py unpack     the shipped weights to runs/, as initial weights of all parts

Several GPUs: torchrun --nproc-per-node=4 scripts/train_scratch.py unet --device cuda
"""

import sys
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from sd.utils.errors import plain_errors, plain_imports

with plain_imports():
    import torch

    from sd.cli.parser import ArgumentParser
    from sd.training.args import HelpFormatter, add_train_options, given_train_options
    from sd.training.pretrain.dataset import EmojiDataset
    from sd.training.pretrain.export import export, unpack
    from sd.training.pretrain.run import PARTS, train_part


@plain_errors
def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument(
        "part", choices=[*PARTS, "export", "unpack"], help="part to train; export and unpack copy weights"
    )
    files = parser.add_argument_group("files")
    files.add_argument("--data", type=Path, default=ROOT / "data" / "emoji", help="folder of the prepared dataset")
    files.add_argument("--runs", type=Path, default=ROOT / "runs", help="folder of states, weights and logs")
    files.add_argument(
        "--weights", type=Path, default=ROOT / "weights", help="folder that export writes and unpack reads"
    )
    add_train_options(parser, "PARTS in sd/training/pretrain/run.py")
    options = parser.parse_args()
    given = given_train_options(options)
    if options.part == "export":
        print(*export(options.runs, options.weights), sep="\n")
        return
    if options.part == "unpack":
        unpack(options.weights, options.runs)
        return
    settings = replace(PARTS[options.part], **given)
    torch.manual_seed(settings.seed)  # the networks at random
    train_part(options.part, options.runs, EmojiDataset(options.data), settings)


if __name__ == "__main__":
    main()
