"""Hashes of checkpoints, by which images and other programs identify the model that generated an image."""

import hashlib
import json
import os
from pathlib import Path

from sd.utils.files import cache_dir

CACHE = cache_dir() / "hashes.json"


def model_hash(path: Path) -> str:
    """Returns the first ten digits of the file's SHA-256, as the webui does; "" for a folder, which has none."""
    return full_hash(path)[:10]


def full_hash(path: Path) -> str:
    """Returns the file's SHA-256; "" for a folder.

    Hashing 4 GB takes seconds, so hashes are cached by path, size and modification time.
    """
    if not path.is_file():
        return ""
    known, key = read_cache(), cache_key(path)
    if key not in known:
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
        known[key] = digest.hexdigest()
        write_cache(known)
    return known[key]


def known_hash(path: Path) -> str:
    """Returns the file's SHA-256 where it is cached, otherwise ""."""
    return read_cache().get(cache_key(path), "") if path.is_file() else ""


def old_hash(path: Path) -> str:
    """Returns the eight digits by which the webui named checkpoints until 2023: a hash of 64 kB at 1 MB."""
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        file.seek(0x100000)
        return hashlib.sha256(file.read(0x10000)).hexdigest()[:8]


def cache_key(path: Path) -> str:
    stat = path.stat()
    return f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}"


def read_cache() -> dict[str, str]:
    try:
        known = json.loads(CACHE.read_text())
        return known if isinstance(known, dict) else {}
    except (OSError, ValueError):
        return {}


def write_cache(known: dict[str, str]) -> None:
    try:
        CACHE.parent.mkdir(parents=True, exist_ok=True)
        part = CACHE.with_suffix(f".{os.getpid()}.part")
        part.write_text(json.dumps(known, indent=1))
        part.replace(CACHE)
    except OSError:
        pass  # without a cache, files are hashed again
