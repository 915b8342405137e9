"""Downloads large files: resumable, with a progress bar, verified by their SHA-256."""

import hashlib
import http.client
import os
import shutil
import ssl
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from tqdm import tqdm

from sd.utils.errors import REMEDIES, DiskError, UserError

MIRROR = "https://huggingface.co/stable-diffusion-v1-5/stable-diffusion-v1-5/resolve/main/"
SHA256 = {
    "v1-5-pruned-emaonly.safetensors": "6ce0161689b3853acaa03779ec93eafe75a02f4ced659bee03f50797806fa2fa",
    "v1-5-pruned-emaonly.ckpt": "cc6cb27103417325ff94f52b7a5d2dde45a7515b25c255d8e396c90014281516",
}
CHUNK = 1 << 20  # bytes
TIMEOUT = 30  # seconds without a byte after which a connection counts as lost
TRANSIENT_ERRORS = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError)


def download_file(url: str, path: Path, sha256: str, patience: int = 5, pause: float = 2.0) -> None:
    """Downloads `url` to `path`. An unfinished download is kept as `<path>.part`, and a later call resumes it.

    patience: how many attempts in a row may receive nothing; the wait between them starts at `pause` seconds and
    doubles. Raises UserError where the server does not have the file, keeps failing, or sends another file, and where
    the disk is full.
    """
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            if sha256_of(path) == sha256:
                return
            raise UserError(f"{path} exists already and is another file: move it away first.")
        download_part(url, part, sha256, patience, pause)
        if sha256_of(part) != sha256:
            part.unlink()
            raise UserError(f"{url} is not {path.name}: its SHA-256 differs; try another --url.")
        os.replace(part, path)
    except KeyboardInterrupt:
        if size := size_of(part):
            print(f"to go on: run the same command, which resumes after {size / 1e6:,.1f} MB", file=sys.stderr)
        raise
    except OSError as error:
        remedy = REMEDIES.get(error.errno or 0, "check the path and the disk")
        reason = f"{error.strerror or error}; {remedy}, and run this again, which resumes an unfinished download"
        raise DiskError(f"{path} could not be written: {reason}.", error) from error


def download_part(url: str, part: Path, sha256: str, patience: int, pause: float) -> None:
    """Retries until `part` is complete."""
    failures = 0
    while True:
        before = size_of(part)
        try:
            receive_part(url, part)
            return
        except TRANSIENT_ERRORS as error:
            reason, code, phrase = reason_of(error), getattr(error, "code", None), getattr(error, "reason", "")
        if code == 416 and before > 0:  # there is nothing beyond what we have: it is complete, or of another file
            if sha256_of(part) == sha256:
                return
            part.unlink()
        elif code is not None and code < 500 and code not in (408, 429):  # those two and 5xx are transient
            raise UserError(f"{url} answers {code} {phrase}: check the address, or try another --url.")
        failures = 0 if size_of(part) > before else failures + 1
        if failures >= patience:
            resumes = f", which resumes after {size_of(part) / 1e6:,.1f} MB" if size_of(part) else ""
            raise UserError(
                f"{url} cannot be reached ({reason}): check the network, and run this again later{resumes}."
            )
        wait = pause * 2**failures
        tqdm.write(f"no answer ({reason}): trying again in {wait:g} s", file=sys.stderr)
        time.sleep(wait)


def reason_of(error: BaseException) -> str:
    """Returns why a connection failed, in the system's or the server's own words."""
    reason = getattr(error, "reason", None) or error
    words = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
    code = getattr(error, "code", None)
    return words if code is None else f"{code} {words}"


def receive_part(url: str, part: Path) -> None:
    """Appends what is missing to `part` over one connection. Raises ConnectionError where it ends too early."""
    have = size_of(part)
    headers = {"User-Agent": "sd-by-hand"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        request = urllib.request.Request(url, headers=headers)
        request.full_url.encode("ascii")
    except ValueError as error:
        raise UserError(
            f"{url[:200]!r} is no address: give one such as https://example.com/model.safetensors."
        ) from error
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response, open(part, "ab") as file:
        if response.status != 206 or not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            file.truncate(have := 0)  # the server sends the whole file despite the Range header
            if response.status == 206:
                raise ConnectionError("the server sent another range than requested")
        length = response.headers.get("Content-Length")
        whole = have + int(length) if length is not None and length.isascii() and length.isdigit() else None
        if whole and whole - have > shutil.disk_usage(part.parent).free:
            raise UserError(f"{part.parent} has no room for {(whole - have) / 1e9:.1f} GB more: free some space.")
        with progress_bar(whole, "downloading", have) as bar:
            while piece := response.read(CHUNK):
                file.write(piece)
                bar.update(len(piece))
    if whole is not None and size_of(part) < whole:
        raise ConnectionError(f"the connection was cut after {size_of(part):,} of {whole:,} bytes")


def sha256_of(path: Path) -> str:
    """Returns a file's SHA-256."""
    found = hashlib.sha256()
    with open(path, "rb") as file, progress_bar(size_of(path), "verifying") as bar:
        while piece := file.read(CHUNK):
            found.update(piece)
            bar.update(len(piece))
    return found.hexdigest()


def progress_bar(total: int | None, what: str, initial: int = 0) -> tqdm:
    return tqdm(total=total, initial=initial, desc=what, unit="B", unit_scale=True, leave=False)


def size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
