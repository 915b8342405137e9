"""Merge checkpoints into one .safetensors file: a weighted sum, or what one learned added to another.

python scripts/merge.py anime photo mixed.safetensors --weight 0.3
python scripts/merge.py v1-5-inpainting anime anime-inpainting.safetensors --minus v1-5 --weight 1
"""

import sys
import time
from pathlib import Path

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sd.utils.errors import plain_errors, plain_imports

with plain_imports():
    from sd.checkpoints.discovery import locate
    from sd.checkpoints.merging import MergeWeights, merge_checkpoints, parse_blocks
    from sd.cli.parser import ArgumentParser
    from sd.utils.device import DTYPES

BLOCKS = "IN00=0.2,M00=0.5,...: weights of blocks of the U-Net (IN00 to IN11, M00, OUT00 to OUT11; BASE for the rest)"


@plain_errors
def main() -> None:
    parser = ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("first", help="checkpoint A, a file, a diffusers folder or a name in weights/; an inpainting model stands here")
    add("second", help="checkpoint B")
    add("target", help="X.safetensors to write")
    add("--minus", metavar="CHECKPOINT", help="checkpoint C: the result is A + weight * (B - C)")
    add("--weight", type=float, default=0.5, help="weight of B, or of B - C (default: 0.5)")
    for part, name in (("unet", "U-Net"), ("clip", "text encoder"), ("vae", "VAE")):
        add(f"--{part}-weight", type=float, help=f"weight for the {name} (default: that of --weight)")
    add("--block-weights", metavar="BLOCKS", help=BLOCKS)
    add("--dtype", choices=DTYPES, help="data type of the result (default: that of A)")
    args = parser.parse_args()

    start = time.perf_counter()
    by_part = {part: getattr(args, f"{part}_weight") for part in ("unet", "clip", "vae")}
    by_part = {part: weight for part, weight in by_part.items() if weight is not None}
    weights = MergeWeights(args.weight, by_part, parse_blocks(args.block_weights or ""))
    paths = [locate("checkpoint", name) for name in (args.first, args.second, args.minus) if name is not None]
    for note in merge_checkpoints(paths, args.target, weights, DTYPES.get(args.dtype)):
        print(f"note: {note}")
    print(f"{args.target}  {weights.describe([path.stem for path in paths])}, {time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    main()
