"""Fetch the drawings that the bundled model learns from and lay them out in data/emoji/.

python scripts/prepare_emoji.py             983 names in 5 styles, and one style held out: 5,328 pictures
python scripts/prepare_emoji.py --small     363 names in 4 of them, which are soon learnt
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from sd.training.pretrain.emoji_dataset import prepare
from sd.utils.errors import plain_errors


@plain_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "data" / "emoji", help="default: data/emoji")
    parser.add_argument("--small", action="store_true", help="fewer names, and one style less")
    options = parser.parse_args()
    count = prepare(options.out, options.small)
    print(f"{count} pictures in {options.out}")


if __name__ == "__main__":
    main()
