"""Writing and reading files: atomic replacement, numbered images, lists of prompts."""

import codecs
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sd.utils.errors import UserError
from sd.utils.images import INFOTEXT_KEY, ambiguous_in_latin

DATA = Path(str(resources.files("sd"))) / "data"  # vocabulary, wildcards, styles: what comes with the code
UNFINISHED = re.compile(r"\.(?P<name>.+)\.(?P<pid>\d+)\.(?P<kind>part|earlier)", re.DOTALL)  # as `replacing` names them
STARTED = time.time()


def cache_dir() -> Path:
    """Return the folder for files that can be computed again: XDG_CACHE_HOME/sd-by-hand, by default in ~/.cache.

    Without a home folder, as under `docker --user`, it is one that cannot be written to.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sd-by-hand"
    except RuntimeError:
        return Path(os.devnull)


def write_torch(content: Any, path: Path) -> None:
    """`torch.save`, with an OSError where the disk is full, and all of it on the disk when this returns."""
    try:
        with open(path, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):  # of a full disk torch then says "unexpected pos"
            raise error.__context__ from None
        raise


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to; it takes the place of `path` once all is written, and not before.

    Raises UserError where that cannot be written; then nothing is left of it.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        if path.is_dir() and part.is_dir():  # one folder does not replace another in one step: the earlier one waits
            earlier = part.with_suffix(".earlier")
            os.replace(path, earlier)
            os.replace(part, path)
            shutil.rmtree(earlier)
        else:
            os.replace(part, path)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{path} could not be written: {reason}; what was there before is unchanged.") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
        with suppress(OSError):
            part.unlink()


def remove_orphans(folder: Path) -> list[Path]:
    """Removes what `replacing` left in `folder` when its process was killed; returns what was removed.

    A folder that was moved aside and not yet replaced gets its name back. Files of processes that run are left alone,
    and whatever cannot be removed.
    """
    removed = []
    for path in list(folder.iterdir()) if folder.is_dir() else []:
        match = UNFINISHED.fullmatch(path.name)
        if match is None or is_in_use(path, int(match["pid"])):
            continue
        with suppress(OSError):
            if match["kind"] == "earlier" and not path.with_name(match["name"]).exists():
                path.rename(path.with_name(match["name"]))
                continue
            shutil.rmtree(path) if path.is_dir() else path.unlink()
            removed.append(path)
    return removed


def is_in_use(path: Path, pid: int) -> bool:
    """Whether process `pid` may still write to `path`. One older than this process, of its own number, is another's."""
    try:
        changed = path.lstat().st_mtime
        if pid == os.getpid():
            return changed >= STARTED
        if os.name == "nt":  # where signal 0 would end the process
            return time.time() - changed < 3600
        os.kill(pid, 0)
    except (ProcessLookupError, FileNotFoundError, OverflowError):
        return False
    except OSError:  # it runs, as somebody else's
        return True
    return True


def check_outdir(outdir: str | Path) -> Path:
    """The folder, made if it was not there. Raises UserError if nothing can be written there: ask before long work."""
    folder = Path(outdir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise UserError(f"cannot write into {outdir} ({error.strerror}): choose another --outdir.") from error


def save_png(
    image: Image.Image, outdir: str | Path, infotext: str = "", prefix: str = "", number: int | None = None
) -> Path:
    """Saves as the next free `{prefix}00000.png` of a folder, made if needed, and returns its path.

    Nothing is ever overwritten, also not by several programs at once, and no half-written PNG is ever to be seen.
    infotext: settings to keep inside. number: the first to try, one after the highest if None. Raises UserError where
    the folder cannot be written to.
    """
    info = PngInfo()
    if infotext:
        add = info.add_itxt if ambiguous_in_latin(infotext) else info.add_text
        add(INFOTEXT_KEY, infotext)
    folder = check_outdir(outdir)
    try:
        target, part = claim(folder, prefix, next_number(folder, prefix) if number is None else number)
        try:
            image.save(part, format="PNG", pnginfo=info)
            part.replace(target)
        except BaseException:
            part.unlink()
            raise
    except OSError as error:
        raise UserError(f"cannot save a picture in {outdir} ({error.strerror or error}).") from error
    return target


def write_png(image: Image.Image, path: Path) -> None:
    """As a file of this name, in place of an earlier one; a reader sees the old one or the new, never half of one.

    Raises UserError where it cannot be written.
    """
    with replacing(path) as part:
        image.save(part, format="PNG")


def next_number(folder: Path, prefix: str) -> int:
    """One more than the highest of the files `{prefix}00000.png`."""
    numbered = re.compile(re.escape(prefix) + r"(\d{5,})\.png")
    return 1 + max((int(match[1]) for match in map(numbered.fullmatch, os.listdir(folder)) if match), default=-1)


def claim(folder: Path, prefix: str, number: int) -> tuple[Path, Path]:
    """A free file name from `number` on, and beside it a hidden file whose exclusive creation keeps others off it."""
    while True:
        target = folder / f"{prefix}{number:05}.png"
        part = folder / f".{target.name}.part"
        try:
            part.open("xb").close()
        except FileExistsError:
            number += 1
            continue
        if not target.exists():
            return target, part
        part.unlink()  # another program finished this number between our look and our claim
        number += 1


def read_prompts(path: str | Path) -> list[str]:
    """One prompt a line; empty lines do not count. Raises UserError where there is none."""
    try:
        data = Path(path).read_bytes()
        utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))  # as Windows' Notepad may save it
        lines = [line.strip() for line in data.decode("utf-16" if utf16 else "utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read prompts from {path}: give a UTF-8 text file with one prompt a line.") from error
    if not any(lines):
        raise UserError(f"{path} holds no prompts: write one a line.")
    return [line for line in lines if line]
