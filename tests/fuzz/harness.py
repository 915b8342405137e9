"""Reads one file in every way that the project has, and reports what must never happen while it does."""

import codecs
import faulthandler
import gc
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch
from fuzz.corpus import MARKER

from sd.adapters.embedding_files import read_embeddings
from sd.adapters.lora_files import open_adapter
from sd.checkpoints import checkpoint
from sd.checkpoints.foreign_files import reads_file
from sd.checkpoints.model_files import content_of, models_below
from sd.checkpoints.vae_files import read_vae
from sd.checkpoints.weight_files import read_weights
from sd.control.controlnet_files import infer_hint_channels, read_controlnet
from sd.control.ip_adapter.files import projection_for, read_ip_adapter
from sd.evaluation.clip_loader import read_clip
from sd.pipeline.infotext import read_infotext
from sd.pipeline.taesd import load_taesd
from sd.upscalers.upscaler_files import load_upscaler
from sd.utils.errors import UserError
from sd.utils.images import open_image, to_rgb
from sd.vision.image_encoder import load_image_encoder

SLOWEST = 5.0  # seconds of the processor
LARGEST = 300 << 20  # bytes beyond the file's own size
FORBIDDEN_EVENTS = (  # of Python's audit hooks: whatever runs a program, reaches out, or changes the disk
    *("exec", "compile", "code.__new__", "pickle.find_class", "marshal.loads", "import", "ctypes.", "os.system"),
    *("os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.chmod"),
    *("os.kill", "os.putenv", "os.symlink", "os.link", "subprocess.", "socket.", "shutil.", "tempfile.", "urllib."),
    *("webbrowser.", "pty.", "sqlite3.", "http.", "ftplib.", "smtplib.", "setopencodehook", "sys.settrace"),
)

READERS = {
    "weights": read_weights,
    "checkpoint": checkpoint.load_models,
    "vae": read_vae,
    "embeddings": lambda path: read_embeddings(path, 768),
    "adapter": open_adapter,
    "content": content_of,
    "clip": read_clip,
    "controlnet": reads_file(lambda path: infer_hint_channels(read_controlnet(path))),
    "ip-adapter": reads_file(lambda path: projection_for(read_ip_adapter(path), 768)),
    "image-encoder": lambda path: load_image_encoder(path, torch.device("cpu"), torch.float32),
    "upscaler": load_upscaler,
    "taesd": load_taesd,
}
IMAGE_READERS = {
    "image": lambda path: to_rgb(open_image(path)),
    "settings": lambda path: read_infotext(path),
    "embedding": lambda path: read_embeddings(path, 768),
    "mask": lambda path: to_rgb(open_image(path), "black"),
}


@dataclass
class Findings:
    """What happened: `problems` must stay empty."""

    files: int = 0
    runs: int = 0
    refused: int = 0
    problems: list[str] = field(default_factory=list)
    slowest: float = 0.0
    slowest_name: str = ""
    largest: int = 0

    def summary(self) -> str:
        return (
            f"{self.files:,} files in {self.runs:,} runs, {self.refused:,} refused, {len(self.problems)} problems; "
            f"slowest {self.slowest:.2f} s ({self.slowest_name[:60]}), "
            f"most memory {self.largest / 2**20:.0f} MiB beyond the file's size"
        )


class Watch:
    """Notes forbidden audit events while `on`. An audit hook cannot be removed, so there is one for the process."""

    def __init__(self):
        self.on, self.events = False, []
        sys.addaudithook(self.note)

    def note(self, event: str, args: tuple) -> None:
        if not self.on:
            return
        writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if writes or event.startswith(FORBIDDEN_EVENTS):
            self.events.append(f"{event} {args!r:.120}")


WATCH = Watch()


def reset_peak() -> int:
    """Sets the process's peak memory to what it has now, where Linux allows it; returns that."""
    gc.collect()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return peak_memory()


def peak_memory() -> int:
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) << 10
    except (OSError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def check_bytes(name: str, data: bytes, folder: Path, found: Findings, measured: bool = True) -> None:
    """Reads a file of these bytes in every way. measured: whether the memory of each way is measured, which is slow."""
    path = folder / "file.ckpt"
    path.write_bytes(data)
    check_path(name, path, READERS, len(data), found, measured)


def check_folder(name: str, build: Callable[[Path], None], folder: Path, found: Findings) -> None:
    """Builds a folder and reads it in every way."""
    shutil.rmtree(folder / "model", ignore_errors=True)
    (folder / "model").mkdir()
    build(folder / "model")
    readers = {way: read for way, read in READERS.items() if way != "weights"}
    readers["list"] = lambda path: [content_of(one) for one in models_below(path.parent)]
    check_path(name, folder / "model", readers, 0, found)
    shutil.rmtree(folder / "model")


def check_path(
    name: str, path: Path, readers: dict[str, Callable], size: int, found: Findings, measured: bool = True
) -> None:
    """Reads a file or folder in each of these ways; `size` is what it takes on the disk."""
    folder = path.parent
    found.files += 1
    for way, read in readers.items():
        before, WATCH.events = reset_peak() if measured else 0, []
        WATCH.on = True
        was_read = check_call(f"{name} as {way}", read, path, found)
        WATCH.on = False
        if WATCH.events:
            found.problems.append(f"{name} as {way}: EXECUTED {WATCH.events[:3]}")
        if measured:
            check_memory(f"{name} as {way}", before + size, found)
        if way == "weights" and not was_read:
            break  # all others begin with it
    if (folder / MARKER).exists():
        (folder / MARKER).unlink()
        found.problems.append(f"{name}: EXECUTED")


def check_call(name: str, read: Callable, value: object, found: Findings, also: tuple = ()) -> bool:
    """Calls read(value) and returns whether it ended well. also: errors beside UserError that it may raise."""
    was_read = False
    started = time.process_time()
    try:
        read(value)
        was_read = True
    except UserError as error:
        found.refused += 1
        if min(str(error), default=" ") < " " or len(str(error)) > 2000:
            found.problems.append(f"{name}: not one sentence: {str(error)[:300]!r}")
    except also:
        found.refused += 1
    except Exception as error:
        found.problems.append(f"{name}: TRACEBACK {type(error).__name__}: {str(error)[:300]!r}")
    found.runs += 1
    seconds = time.process_time() - started
    if seconds > found.slowest:
        found.slowest, found.slowest_name = seconds, name
    if seconds > SLOWEST:
        found.problems.append(f"{name}: {seconds:.1f} s")
    return was_read


def check_memory(name: str, allowed: int, found: Findings) -> bool:
    """Returns whether the peak since `reset_peak` is within LARGEST of `allowed` bytes."""
    memory = peak_memory() - allowed
    found.largest = max(found.largest, memory)
    if memory > LARGEST:
        found.problems.append(f"{name}: {memory >> 20} MiB beyond the file's size")
    return memory <= LARGEST


@contextmanager
def ended_after(seconds: float) -> Iterator[None]:
    """Ends the process, with the stack of each thread, where the block takes longer."""
    faulthandler.dump_traceback_later(seconds, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def in_folder() -> tempfile.TemporaryDirectory:
    """A new folder, which is the current one from now on, so that programs that ran would leave their marks in it."""
    folder = tempfile.TemporaryDirectory()
    os.chdir(folder.name)
    return folder


def warm_up(folder: Path) -> None:
    """Lets torch and others import what they import on first use, so that imports later are the file's doing."""
    from fuzz.programs import as_legacy, as_safetensors, as_zip, program, table, tensor

    body = program(table(emb_params=tensor(size=(1, 16), stride=(16, 1))))
    header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    found = Findings()
    for data in (as_zip(body), as_legacy(body), as_safetensors(header, b"\0" * 4), as_zip(b"\x80\x02cos\nsystem\n.")):
        check_bytes("warm-up", data, folder, found)
    from fuzz.corpus import sizes

    for name, data in list(sizes())[:30]:
        check_bytes(name, data, folder, found)
    for encoding in ("utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "shift_jis", "iso2022_jp", "latin-1", "cp437"):
        codecs.lookup(encoding)
    gc.collect()
    gc.freeze()  # so that collecting before each file is quick
