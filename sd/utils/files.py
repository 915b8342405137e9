"""Writing and reading files: atomic replacement, numbered images, lists of prompts."""

import codecs
import errno
import os
import re
import secrets
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

from sd.utils.errors import DiskError, UserError
from sd.utils.images import INFOTEXT_KEY, ambiguous_in_latin

DATA = Path(str(resources.files("sd"))) / "data"  # vocabulary, wildcards, styles: what comes with the code
UNFINISHED = re.compile(r"\.(?P<name>.+)\.(?P<pid>\d+)\.(?P<kind>part|earlier)", re.DOTALL)  # as `replacing` names them
MAX_TEXT_FILE = 1 << 26  # bytes of a list of prompts or captions
STARTED = time.time()
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EACCES)  # of `os.link`
SURROGATE = re.compile("[\ud800-\udfff]")
Signature = tuple[tuple[Path, int, int, int], ...]  # see `signature_of`


def signature_of(*paths: Path | None) -> Signature:
    """Return (path, inode, size, time of change) of each file, and of those in folders; missing ones are left out."""
    files = [file for path in paths if path for file in ([path] if path.is_file() else sorted(path.rglob("*")))]
    found = []
    for file in files:
        with suppress(OSError):
            stat = file.stat()
            found.append((file, stat.st_ino, stat.st_size, stat.st_mtime_ns))
    return tuple(found)


def cache_dir() -> Path:
    """Return the folder for files that can be computed again: XDG_CACHE_HOME/sd-by-hand, by default in ~/.cache.

    Without a home folder, as under `docker --user`, it is one that cannot be written to.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sd-by-hand"
    except RuntimeError:
        return Path(os.devnull)


def is_encodable(text: str) -> bool:
    """Return whether a text can be written as UTF-8: it has no lone surrogate, as half an emoji or odd bytes leave."""
    return text.isascii() or not SURROGATE.search(text)


def decode_argument(text: str) -> str:
    """Return the text of a command-line argument, which is UTF-8 even where the locale says otherwise (LC_ALL=C).

    Python leaves bytes that the locale cannot decode as lone surrogates. For texts, not for paths.
    """
    try:
        return text if is_encodable(text) else os.fsencode(text).decode("utf-8")
    except UnicodeError:
        return text


def encodable(text: str) -> str:
    """Return the text with each lone surrogate replaced by "?"."""
    return text if is_encodable(text) else SURROGATE.sub("?", text)


def write_torch(content: Any, path: Path) -> None:
    """Save with `torch.save`; the data is on the disk on return. Raises OSError if the disk is full."""
    try:
        with open(path, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):  # torch reports a full disk as "unexpected pos"
            raise error.__context__ from None
        raise


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, which replaces `path` once the block ends without an error.

    Raises UserError if it cannot be written; then `path` is unchanged and the temporary file is removed.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        if path.is_dir() and part.is_dir():  # one folder cannot replace another in one step
            earlier = part.with_suffix(".earlier")
            os.replace(path, earlier)
            os.replace(part, path)
            shutil.rmtree(earlier)
        else:
            os.replace(part, path)
    except OSError as error:
        reason = error.strerror or error
        raise DiskError(f"{path} could not be written: {reason}; what was there before is unchanged.", error) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
        with suppress(OSError):
            part.unlink()


def remove_orphans(folder: Path) -> list[Path]:
    """Remove what `replacing` left in `folder` when its process was killed, and return the removed paths.

    A folder that was moved aside and not replaced yet gets its name back. Files of running processes stay, and so does
    what cannot be removed.
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
    """Return whether process `pid` may still write to `path`.

    A file with this process's own number that is older than this process belongs to an earlier process.
    """
    try:
        changed = path.lstat().st_mtime
        if pid == os.getpid():
            return changed >= STARTED
        if os.name == "nt":  # where signal 0 would end the process
            return time.time() - changed < 3600
        os.kill(pid, 0)
    except (ProcessLookupError, FileNotFoundError, OverflowError):
        return False
    except OSError:  # the process runs, as another user
        return True
    return True


def check_target(path: Path) -> None:
    """Raise UserError where nothing can be written at `path`; call it before long work. Nothing is created."""
    folder = next(one for one in path.absolute().parents if one.exists())
    try:
        with tempfile.TemporaryFile(dir=folder):
            return
    except OSError as error:
        reason = "there is a file in its place" if folder.is_file() else error.strerror
        raise DiskError(f"{path} could not be written ({folder}: {reason}): choose another place.", error) from error


def check_outdir(outdir: str | Path) -> Path:
    """Create a folder if needed and return it. Raises UserError if it is not writable; call it before long work."""
    folder = Path(outdir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        reason = "it is a file" if folder.is_file() else error.strerror
        raise DiskError(f"cannot write into {outdir} ({reason}): choose another --outdir.", error) from error


def save_png(
    image: Image.Image, outdir: str | Path, infotext: str = "", prefix: str = "", number: int | None = None
) -> Path:
    """Save an image as the next free `{prefix}00000.png` of a folder, created if needed, and return its path.

    Nothing is ever overwritten, even by several programs at once, and no partly written PNG is ever visible.
    infotext: settings to store in the file. number: the first to try; one after the highest if None. Raises UserError
    if the folder is not writable.
    """
    info = png_info(infotext)
    folder = check_outdir(outdir)
    try:
        part = folder / f".{secrets.token_hex(4)}.png.{os.getpid()}.part"  # a name that `remove_orphans` knows
        try:
            image.save(part, format="PNG", pnginfo=info)
            target = publish(part, folder, prefix, next_number(folder, prefix) if number is None else number)
        finally:
            with suppress(OSError):
                part.unlink()
    except OSError as error:
        raise DiskError(
            f"cannot save in {outdir} ({error.strerror or error}): choose another folder.", error
        ) from error
    return target


def png_info(infotext: str) -> PngInfo:
    """Return the texts of a PNG file: the settings, or none for ""."""
    info = PngInfo()
    if infotext:
        add = info.add_itxt if ambiguous_in_latin(infotext) else info.add_text
        add(INFOTEXT_KEY, infotext)
    return info


def write_png(image: Image.Image, path: Path, infotext: str = "") -> None:
    """Save an image under this name, atomically: a reader sees the old file or the new one, never a part.

    infotext: settings to store in the file. Raises UserError if it cannot be written.
    """
    with replacing(path) as part:
        image.save(part, format="PNG", pnginfo=png_info(infotext))


def next_number(folder: Path, prefix: str) -> int:
    """Return one more than the highest number of the files `{prefix}00000.png`."""
    numbered = re.compile(re.escape(prefix) + r"(\d{5,})\.png")
    return 1 + max((int(match[1]) for match in map(numbered.fullmatch, os.listdir(folder)) if match), default=-1)


def publish(part: Path, folder: Path, prefix: str, number: int) -> Path:
    """Give a finished file the first free name from `number` on, and return its path; it never replaces another file.

    A hard link fails where the name is taken. A disk without them has an empty file of that name for a moment.
    """
    while True:
        target = folder / f"{prefix}{number:05}.png"
        try:
            os.link(part, target)
            return target
        except FileExistsError:
            number += 1
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            with suppress(FileExistsError):
                target.open("xb").close()
                part.replace(target)
                return target
            number += 1


def read_prompts(path: str | Path) -> list[str]:
    """Return the prompts of a text file, one a line without empty lines. Raises UserError if there are none."""
    try:
        if Path(path).stat().st_size > MAX_TEXT_FILE:
            raise UserError(f"{path} is too large for a list of prompts: give one of at most {MAX_TEXT_FILE >> 20} MB.")
        data = Path(path).read_bytes()
        utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))  # as Windows' Notepad may save it
        lines = [line.strip() for line in data.decode("utf-16" if utf16 else "utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise UserError(
            f"cannot read prompts from {path} ({reason}): give a UTF-8 text file with one prompt a line."
        ) from error
    if not any(lines):
        raise UserError(f"{path} holds no prompts: write one a line.")
    return [line for line in lines if line]
