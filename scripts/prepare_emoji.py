"""Download the emoji packages and render the dataset of the bundled model into data/emoji/.

python scripts/prepare_emoji.py             983 names in 5 styles, and one held-out style: 5,328 images
python scripts/prepare_emoji.py --small     363 names in 4 of these styles, for short trainings
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from sd.utils.errors import plain_errors, plain_imports

with plain_imports():
    from sd.cli.parser import ArgumentParser
    from sd.training.args import HelpFormatter
    from sd.training.pretrain.emoji_dataset import prepare_dataset


@plain_errors
def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "data" / "emoji", help="folder of the dataset")
    parser.add_argument("--small", action="store_true", help="only common names, in one style less")
    options = parser.parse_args()
    count = prepare_dataset(options.out, options.small)
    print(f"{count} images in {options.out}")


if __name__ == "__main__":
    main()
