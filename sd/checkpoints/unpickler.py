"""What `torch.save` wrote, read without running any of it.

A pickle is a program: it names Python objects, calls them, and sets their attributes. This reader imports nothing and
calls nothing that a pickle names. To each name it gives a class of ours that can only hold data (`pickle_objects`), or
refuses the file. So a checkpoint may mention pytorch-lightning or numpy, as the published v1-5 file does, and neither
need be here.
"""

import pickle
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from sd.checkpoints.mmap_files import MappedFile, cut_short
from sd.checkpoints.pickle_objects import accepted
from sd.utils.errors import UserError

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # torch.save before 1.6, and still with _use_new_zipfile_serialization=False


class Reader(pickle.Unpickler):
    """storage(dtype, key, count, ...) -> (count,): where the numbers of a storage come from."""

    def __init__(self, file: BinaryIO, path: Path, storage):
        super().__init__(file, encoding="utf-8")
        self.path, self.storage = path, storage
        self.classes: dict[tuple[str, str], type] = {}

    def find_class(self, module: str, name: str) -> type:
        kind = self.classes.get((module, name)) or accepted(module, name)
        if kind is None:
            raise UserError(
                f"{self.path} is refused: its pickle wants to use {module}.{name}, which weights do not need and which "
                "could run a program; nothing of it was run."
            )
        self.classes[module, name] = kind
        return kind

    def persistent_load(self, pid: tuple) -> Tensor:
        _, kind, key, _, count, *view = pid
        return self.storage(kind.dtype, key, count, *view)

    def load(self):
        try:
            return super().load()
        except UserError:
            raise
        except EOFError as error:
            raise cut_short(self.path) from error
        except Exception as error:  # malformed opcodes raise nearly anything
            raise UserError(f"{self.path} is damaged: its pickle cannot be read ({error}); fetch it again.") from error


def read_zip(file: MappedFile) -> Any:
    """The object in a torch ZIP archive (torch 1.6 and later), its tensors views of the file."""
    try:
        with zipfile.ZipFile(file.path) as archive:
            return read_archive(archive, file)
    except UserError:
        raise
    except Exception as error:  # a damaged table of contents raises nearly anything
        raise cut_short(file.path) from error


def read_archive(archive: zipfile.ZipFile, file: MappedFile) -> Any:
    entries = {info.filename: info for info in archive.infolist()}
    pickles = [name for name in entries if name.split("/")[1:] == ["data.pkl"]]  # below any one folder
    if len(pickles) != 1:
        raise UserError(
            f"{file.path} is a zip archive, but not one that torch.save wrote: give the weights themselves."
        )
    root = pickles[0].removesuffix("data.pkl")
    if root + "byteorder" in entries and archive.read(root + "byteorder") != b"little":
        raise UserError(f"{file.path} was written on a big-endian machine, which is not read here.")

    def storage(dtype: torch.dtype, key: str, count: int) -> Tensor:
        entry = entries[f"{root}data/{key}"]
        if entry.file_size < count * dtype.itemsize:
            raise cut_short(file.path)
        if entry.compress_type != zipfile.ZIP_STORED and count > 0:
            return torch.frombuffer(bytearray(archive.read(entry)), dtype=dtype, count=count)
        return file.tensor(dtype, data_offset(file, entry), count)

    with archive.open(pickles[0]) as data:
        return Reader(data, file.path, storage).load()


def data_offset(file: MappedFile, entry: zipfile.ZipInfo) -> int:
    """Where an entry's bytes begin: after its local header, whose name and padding have lengths of their own."""
    header = file.memory[entry.header_offset : entry.header_offset + 30]
    if header[:4] != b"PK\x03\x04" or len(header) < 30:
        raise cut_short(file.path)
    return entry.header_offset + 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")


def read_legacy(file: MappedFile) -> Any:
    """The object in an older torch.save file: five pickles in a row, then each storage as a count and its numbers.

    The numbers come after the pickle that needs them, so it is read twice: first on tensors without memory, to learn
    where each storage will be.
    """
    dtypes: dict[str, torch.dtype] = {}
    places: dict[str, int] = {}

    def note(dtype: torch.dtype, key: str, count: int, *_) -> Tensor:
        dtypes[key] = dtype
        return torch.empty(count, dtype=dtype, device="meta")

    def fetch(dtype: torch.dtype, key: str, count: int, view: tuple | None = None) -> Tensor:
        whole = file.tensor(dtype, places[key], count)
        return whole if view is None else whole[view[1] : view[1] + view[2]]

    with open(file.path, "rb") as stream:
        if Reader(stream, file.path, note).load() != LEGACY_MAGIC:
            raise UserError(f"{file.path} is a pickle, but not one that torch.save wrote: it holds no weights.")
        for _ in ("protocol", "system"):
            Reader(stream, file.path, note).load()
        beginning = stream.tell()
        Reader(stream, file.path, note).load()
        place = None
        for key in Reader(stream, file.path, note).load():
            if key not in dtypes:
                raise cut_short(file.path)
            place = stream.tell() if place is None else place
            count = int.from_bytes(file.memory[place : place + 8], "little")
            places[key] = place + 8
            place += 8 + count * dtypes[key].itemsize
        stream.seek(beginning)
        return Reader(stream, file.path, fetch).load()
