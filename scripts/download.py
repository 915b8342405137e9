"""Fetch Stable Diffusion v1-5 (4.27 GB) into weights/. Stopped and started again, it goes on where it was.

python scripts/download.py
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from sd.checkpoints.download import MIRROR, SHA256, fetch
from sd.utils.errors import plain_errors


@plain_errors
def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--ckpt", action="store_true", help="the original .ckpt instead of the .safetensors")
    parser.add_argument("--url", help="another address of the very same file (default: the mirror on Hugging Face)")
    parser.add_argument("--outdir", type=Path, default=ROOT / "weights", help="folder to put it in (default: weights/)")
    options = parser.parse_args()

    name = "v1-5-pruned-emaonly" + (".ckpt" if options.ckpt else ".safetensors")
    url, path = options.url or MIRROR + name, options.outdir / name
    print(f"{url}\n -> {path}")
    fetch(url, path, SHA256[name])
    print(f"{path} is whole: its SHA-256 is the published one.")
    print(f"now: python scripts/txt2img.py --ckpt {path} 'a red apple'")


if __name__ == "__main__":
    main()
