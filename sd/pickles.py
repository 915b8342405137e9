"""What `torch.save` wrote, read without running any of it.

A pickle is a program: it names Python objects, calls them, and sets their attributes. This reader knows a short list
of names, and to each it gives a class of its own that can only hold data. Any other name is refused before anything is
made of it. So a checkpoint may mention pytorch-lightning or numpy, as the published v1-5 file does, and neither need be
here.
"""

import pickle
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from sd.errors import UserError
from sd.mapped import MappedFile, cut_short

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # torch.save before 1.6, and still with _use_new_zipfile_serialization=False

STORAGES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class Inert:
    """Holds what the pickle said and does nothing with it. `args`: of the call; `state`: what was set afterwards.

    Every class a pickle can reach defines `__setstate__`: without one, the pickle could set attributes of the class.
    """

    def __new__(cls, *args, **kwargs):
        self = object.__new__(cls)
        self.args, self.state = args, None
        return self

    def __setstate__(self, state):
        self.state = state


class ScriptObject(Inert):
    """An object of a class that a TorchScript archive describes itself: a module, with its tensors in `state`."""


class Dictionary(dict):
    """An OrderedDict without the attributes that state dicts carry (`_metadata`)."""

    def __new__(cls, items=(), *_):
        return dict.__new__(cls)

    def __init__(self, items=(), *_):
        super().__init__(() if isinstance(items, type) else items)  # a defaultdict's first argument is a type

    def __setstate__(self, state):
        pass


class Size(Inert):
    def __new__(cls, sizes):
        return tuple(sizes)


class Set(Inert):
    def __new__(cls, items=()):
        return set(items)


class RebuildTensor(Inert):
    """A view of a storage, which is a 1-D tensor here. torch checks that the view stays inside it."""

    def __new__(cls, storage, offset, size, stride, requires_grad=False, hooks=None, bits=None):
        if not isinstance(storage, Tensor) or bits:
            raise ValueError("a tensor without a plain storage")
        return storage.as_strided(size, stride, offset)


class RebuildParameter(Inert):
    def __new__(cls, data, *_):
        return data


KNOWN = {
    "collections.OrderedDict": Dictionary,
    "collections.defaultdict": Dictionary,
    "builtins.dict": Dictionary,
    "builtins.set": Set,
    "__builtin__.set": Set,
    "torch.Size": Size,
    "torch._utils._rebuild_tensor": RebuildTensor,
    "torch._utils._rebuild_tensor_v2": RebuildTensor,
    "torch._utils._rebuild_parameter": RebuildParameter,
    "torch.nn.modules.container.ParameterDict": Inert,
    "_codecs.encode": Inert,
    "numpy.dtype": Inert,
    "numpy.ndarray": Inert,
    "numpy.core.multiarray.scalar": Inert,
    "numpy._core.multiarray.scalar": Inert,
    "numpy.core.multiarray._reconstruct": Inert,
    "numpy._core.multiarray._reconstruct": Inert,
    "numpy.dtypes.Float64DType": Inert,
    **{f"torch.jit._pickle.build_{kind}list": Inert for kind in ("int", "double", "bool", "tensor")},
    "torch.jit._pickle.restore_type_tag": Inert,
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint": Inert,
    "lightning.pytorch.callbacks.model_checkpoint.ModelCheckpoint": Inert,
    # One class for each dtype: what a storage is named by is all that is taken from it.
    **{f"torch.{name}": type(name, (Inert,), {"dtype": dtype}) for name, dtype in STORAGES.items()},
}


class Reader(pickle.Unpickler):
    """storage(dtype, key, count, ...) -> (count,): where the numbers of a storage come from."""

    def __init__(self, file: BinaryIO, path: Path, storage):
        super().__init__(file, encoding="utf-8")
        self.path, self.storage = path, storage

    def find_class(self, module: str, name: str) -> type:
        known = ScriptObject if module.split(".")[0] == "__torch__" else KNOWN.get(f"{module}.{name}")
        if known is None:
            raise UserError(
                f"{self.path} is refused: its pickle wants to use {module}.{name}, which weights do not need and which "
                "could run a program; nothing of it was run."
            )
        return known

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
