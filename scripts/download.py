"""Download Stable Diffusion v1-5 (4.27 GB) into weights/. An interrupted download resumes.

python scripts/download.py
"""

import sys
from pathlib import Path

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sd.utils.errors import plain_errors, plain_imports

with plain_imports():
    from sd.checkpoints.discovery import WEIGHTS
    from sd.checkpoints.download import MIRROR, SHA256, download_file
    from sd.cli.parser import ArgumentParser


@plain_errors
def main():
    parser = ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--ckpt", action="store_true", help="download the original .ckpt instead of the .safetensors")
    parser.add_argument("--url", help="another URL of the same file (default: the mirror on Hugging Face)")
    parser.add_argument("--outdir", type=Path, default=WEIGHTS, help="folder to write to (default: weights/)")
    options = parser.parse_args()

    name = "v1-5-pruned-emaonly" + (".ckpt" if options.ckpt else ".safetensors")
    url, path = options.url or MIRROR + name, options.outdir / name
    print(f"{url}\n -> {path}")
    download_file(url, path, SHA256[name])
    print(f"verified {path}: its SHA-256 is the published one.")
    print(f"next: python scripts/txt2img.py --ckpt {path} 'a red apple'")


if __name__ == "__main__":
    main()
