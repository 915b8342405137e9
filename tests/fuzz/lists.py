"""Every list of the server's API over folders full of hostile files; run by hand.

    python tests/fuzz/lists.py --every 4

Writes the corpus into the folders of models, asks each address that lists models twice, with and without a reader in
another process, and prints how long each took. No answer may be 5xx, and each must name a good file beside them.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS.parent)]

import torch  # noqa: E402
from fastapi.testclient import TestClient  # noqa: E402
from fuzz.corpus import hostile_files  # noqa: E402
from fuzz.folders import hostile_folders  # noqa: E402
from fuzz.pictures import image_files  # noqa: E402

from sd.adapters.embedding_files import save_embedding  # noqa: E402
from sd.checkpoints.model_files import read_by  # noqa: E402
from sd.web.jobs.file_reader import FileReader  # noqa: E402
from sd.web.jobs.model_index import Models  # noqa: E402
from sd.web.jobs.queue import Jobs  # noqa: E402
from sd.web.server import create_app  # noqa: E402

LARGEST = 1 << 20  # bytes of a file that is written: larger ones are for `run.py`
ADDRESSES = (
    *("/sdapi/v1/embeddings", "/sdapi/v1/loras", "/sdapi/v1/sd-models", "/sdapi/v1/sd-vae", "/sdapi/v1/upscalers"),
    *("/controlnet/model_list", "/controlnet/control_types", "/sdapi/v1/options", "/sdapi/v1/hypernetworks", "/jobs"),
)
ENDINGS = (".safetensors", ".ckpt", ".pt", ".bin", ".pth")


def fill(models: Models, every: int) -> int:
    """Writes the corpus below the folders of models, each file into one of them in turn; returns their number."""
    places, count = list(models.folders.values()), 0
    for folder in places:
        folder.mkdir(parents=True, exist_ok=True)
    for number, (_, data) in enumerate(hostile_files()):
        if number % every == 0 and len(data) <= LARGEST:
            name = f"{number}{ENDINGS[number // every % len(ENDINGS)]}"
            (places[number // every % len(places)] / name).write_bytes(data)
            count += 1
    for number, (_, data) in enumerate(image_files()):
        if number % every == 0 and len(data) <= LARGEST:
            (models.folders["embedding"] / f"image-{number}.png").write_bytes(data)
            count += 1
    for number, (_, build) in enumerate(hostile_folders()):
        if number % every == 0:
            (models.folders["checkpoint"] / f"folder-{number}").mkdir()
            build(models.folders["checkpoint"] / f"folder-{number}")
            count += 1
    save_embedding(models.folders["embedding"] / "good-dog.pt", "good-dog", torch.ones(2, 768))
    return count


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--every", type=int, default=1, help="take only every Nth file of the corpus (default: 1)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights"
        models = Models(weights, weights / "loras", weights / "embeddings")
        models.reader = FileReader()
        read_by(models.reader)
        jobs = Jobs(Path(folder) / "jobs", lambda job, tell: {})
        print(f"{fill(models, args.every)} hostile files, images and folders", flush=True)
        client = TestClient(create_app(jobs, models, page=False), "http://127.0.0.1", raise_server_exceptions=False)
        bad = 0
        for again in (False, True):
            for address in ADDRESSES:
                began = time.monotonic()
                answer = client.get(address)
                seconds = time.monotonic() - began
                wrong = answer.status_code >= 500 or ("embeddings" in address and "good-dog" not in answer.text)
                bad += wrong
                again_text = "again, " if again else ""
                print(
                    f"{answer.status_code} {address}: {again_text}{seconds:.2f} s {'WRONG' if wrong else ''}",
                    flush=True,
                )
        jobs.close()
        models.reader.stop()
        read_by(None)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
