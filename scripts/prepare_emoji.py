"""Fetch the drawings that the bundled model learns from and lay them out in data/emoji/.

python scripts/prepare_emoji.py             the bundled model's world: some 360 names, 4 styles and one held out
python scripts/prepare_emoji.py --all       every name and style (some 5,300 pictures)
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from sd.errors import plain_errors
from sd.training.emoji import prepare


@plain_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "data" / "emoji", help="default: data/emoji")
    parser.add_argument("--all", action="store_true", help="all names and styles, not only the bundled model's")
    options = parser.parse_args()
    count = prepare(options.out, everything=options.all)
    print(f"{count} pictures in {options.out}")


if __name__ == "__main__":
    main()
