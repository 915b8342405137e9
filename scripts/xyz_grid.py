"""Generates an image for each combination of the values of up to three axes, and one labeled sheet of them all.

python scripts/xyz_grid.py "a red apple" --x "steps=10-30 (+10)" --y "sampler=euler_a, dpmpp_2m"
python scripts/xyz_grid.py "a red apple" --x "prompt_sr=red, green, blue" --y "checkpoint=emoji, anime" --z "seed=1-3"
python scripts/xyz_grid.py --resume outputs/xyz-00000

Axes are options by their names or the webui's labels, and prompt_sr, checkpoint, vae, lora, lora_strength, size and
styles. Ranges are 1-5, 1-10 (+2) and 1-10 [5]; values with commas stand in quotes.
"""

import sys
from pathlib import Path

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sd.utils.errors import plain_errors, plain_imports

with plain_imports():
    from sd.cli.grid import generate_grid, grid_parser


@plain_errors
def main() -> None:
    flags = grid_parser(__doc__)
    generate_grid(flags, flags.parser.parse_args())


if __name__ == "__main__":
    main()
