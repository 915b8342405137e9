"""The two containers that `torch.save` writes: a ZIP archive, and before torch 1.6 a sequence of pickles and storages.

Both are read from one mapping of the file. https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT, sections 4.3.7,
4.3.12, 4.3.14 to 4.3.16 and 4.5.3, describes the ZIP records that are read here.
"""

import gc
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sd.checkpoints.mmap_files import MappedFile, cut_short
from sd.checkpoints.pickles.opcodes import Data, scan_program
from sd.checkpoints.pickles.tensors import DTYPES, STORAGES, TensorMaker
from sd.checkpoints.pickles.unpickler import RestrictedUnpickler
from sd.utils.errors import UserError

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # torch.save before 1.6, and still with _use_new_zipfile_serialization=False
LARGEST_DIRECTORY = 1 << 22  # bytes of a ZIP's table of contents: about 50,000 records
LARGEST_PROGRAM = 1 << 26  # bytes that a deflated data.pkl may unpack to
LONGEST_END = 22 + 0xFFFF  # bytes of a ZIP's last record, which may have a comment
STORED, DEFLATED = 0, 8
ENCRYPTED = 1  # a flag of a record


@dataclass(slots=True)
class Record:
    """One file inside a ZIP archive: how its bytes are stored, their numbers and checksum, and its header's place."""

    method: int
    checksum: int
    packed: int
    size: int
    header: int


@contextmanager
def paused_collector() -> Iterator[None]:
    """Pauses garbage collection: each pass over the operations takes a fifth of loading, and none is garbage yet."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@paused_collector()
def read_zip(file: MappedFile) -> Any:
    """Returns the object in a torch ZIP archive (torch 1.6 and later), its tensors views of the file."""
    try:
        records = read_directory(file)
    except (struct.error, IndexError, ValueError) as error:
        raise error if isinstance(error, UserError) else cut_short(file.path) from error
    programs = [name for name in records if name.split("/")[1:] == ["data.pkl"]]  # below any one folder
    if len(programs) != 1:
        raise UserError(
            f"{file.path} is a zip archive, but not one that torch.save wrote: give the weights themselves."
        )
    root = programs[0].removesuffix("data.pkl")
    if root + "byteorder" in records and bytes(read_record(file, records[root + "byteorder"])) != b"little":
        raise UserError(f"{file.path} was written on a big-endian machine, which is not supported.")
    unpacked: dict[str, bytearray] = {}

    def read_storage(dtype: torch.dtype, key: str, count: int) -> Tensor:
        record = records.get(f"{root}data/{key}")
        if record is None or record.size < count * dtype.itemsize:
            raise cut_short(file.path)
        if record.method == STORED:
            return file.tensor(dtype, data_offset(file, record), count)
        if key not in unpacked:
            unpacked[key] = bytearray(read_record(file, record))
        if count == 0:
            return torch.empty(0, dtype=dtype)
        return torch.frombuffer(unpacked[key], dtype=dtype, count=count)

    unpickler = RestrictedUnpickler(file.path, file.budget.spend)
    content, _ = run_program(unpickler, *program_of(file, records[programs[0]]))
    return make_tensors(file, content, TensorMaker(read_storage, file.budget.spend))


def program_of(file: MappedFile, record: Record) -> tuple[Data, int, int]:
    """Returns the position of a record's program: (data, start, end)."""
    if record.method == STORED and record.size > LARGEST_PROGRAM:  # with the numbers in it, as a Mac's tensors are
        start = data_offset(file, record)
        if start + record.size > len(file.memory):
            raise cut_short(file.path)
        return file.memory, start, start + record.size
    if record.size > LARGEST_PROGRAM:
        raise UserError(f"{file.path} is refused: its pickle unpacks to more than weights need; nothing of it was run.")
    program = read_record(file, record)
    return program, 0, len(program)


def run_program(unpickler: RestrictedUnpickler, data: Data, start: int, end: int) -> tuple[Any, int]:
    """Returns (the program's object, the offset of its end). Raises UserError for any malformed program."""
    path = unpickler.path
    try:
        operations, place = scan_program(data, start, end, unpickler.left)
        unpickler.left -= len(operations)
        return unpickler.run(operations), place
    except UserError:
        raise
    except EOFError as error:
        raise cut_short(path) from error
    except Exception as error:  # malformed programs raise nearly anything
        raise damaged_pickle(path, error) from error


def make_tensors(file: MappedFile, content: Any, maker: TensorMaker) -> Any:
    try:
        return maker.make(content)
    except UserError:
        raise
    except Exception as error:
        raise damaged_pickle(file.path, error) from error


def damaged_pickle(path: Path, error: Exception) -> UserError:
    reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
    return UserError(f"{path} is damaged: its pickle cannot be read ({reason}); download it again.")


def read_directory(file: MappedFile) -> dict[str, Record]:
    """Returns the records of a ZIP archive by name.

    Raises UserError or ValueError where its table of contents is damaged.
    """
    memory = file.memory
    end = memory.rfind(b"PK\x05\x06", max(len(memory) - LONGEST_END, 0))
    if end < 0 or end + 22 > len(memory):
        raise cut_short(file.path)
    size, start = struct.unpack_from("<LL", memory, end + 12)
    if memory[max(end - 20, 0) : end][:4] == b"PK\x06\x07":  # ZIP64: the same in wider numbers elsewhere
        (wide,) = struct.unpack_from("<Q", memory, end - 12)
        if memory[wide : wide + 4] != b"PK\x06\x06":
            raise cut_short(file.path)
        size, start = struct.unpack_from("<QQ", memory, wide + 40)
    if start + size > end or size > LARGEST_DIRECTORY:
        raise cut_short(file.path, "its table of contents is damaged")
    table, place, records = memory[start : start + size], 0, {}
    while place < len(table):
        signature, flags, method = struct.unpack_from("<4s4xHH", table, place)
        checksum, packed, size = struct.unpack_from("<LLL", table, place + 16)
        name_length, extra_length, comment_length = struct.unpack_from("<HHH", table, place + 28)
        (header,) = struct.unpack_from("<L", table, place + 42)
        if signature != b"PK\x01\x02" or flags & ENCRYPTED or method not in (STORED, DEFLATED):
            raise cut_short(file.path, "its table of contents is damaged")
        name = table[place + 46 : place + 46 + name_length].decode("utf-8", "replace")
        place += 46 + name_length
        checksum, packed, size, header = apply_zip64(
            checksum, packed, size, header, table[place : place + extra_length]
        )
        if method == STORED and packed != size:
            raise cut_short(file.path, "its table of contents is damaged")
        records[name] = Record(method, checksum, packed, size, header)
        place += extra_length + comment_length
    return records


def apply_zip64(checksum: int, packed: int, size: int, header: int, extra: bytes) -> tuple[int, int, int, int]:
    """Returns a record's numbers, with those that do not fit into 32 bits taken from its ZIP64 field."""
    narrow = 0xFFFFFFFF
    place = 0
    while place + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, place)
        if kind == 1:
            wide = iter(struct.unpack_from(f"<{length // 8}Q", extra, place + 4))
            size = next(wide, narrow) if size == narrow else size
            packed = next(wide, narrow) if packed == narrow else packed
            header = next(wide, narrow) if header == narrow else header
        place += 4 + length
    return checksum, packed, size, header


def data_offset(file: MappedFile, record: Record) -> int:
    """Returns the offset of a record's bytes, after its local header, whose name and padding vary in length."""
    header = file.memory[record.header : record.header + 30]
    if header[:4] != b"PK\x03\x04" or len(header) < 30:
        raise cut_short(file.path)
    return record.header + 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")


def read_record(file: MappedFile, record: Record) -> bytes:
    """Returns a copy of a record's bytes, unpacked, checked against its size and its checksum."""
    file.budget.spend(record.size)
    start = data_offset(file, record)
    data = file.memory[start : start + record.packed]
    if len(data) != record.packed:
        raise cut_short(file.path)
    if record.method == DEFLATED:
        try:
            data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, record.size) if record.size else b""
        except zlib.error as error:
            raise cut_short(file.path) from error
    if len(data) != record.size or zlib.crc32(data) != record.checksum:
        raise cut_short(file.path)
    return data


@paused_collector()
def read_legacy(file: MappedFile) -> Any:
    """Returns the object in an older torch.save file: five pickles, then each storage as a count and its numbers."""
    unpickler = RestrictedUnpickler(file.path, file.budget.spend)
    magic, place = run_program(unpickler, file.memory, 0, len(file.memory))
    if type(magic) is not int or magic != LEGACY_MAGIC:
        raise UserError(f"{file.path} is a pickle, but not one that torch.save wrote: it holds no weights.")
    for _ in ("protocol", "system"):
        _, place = run_program(unpickler, file.memory, place, len(file.memory))
    content, place = run_program(unpickler, file.memory, place, len(file.memory))
    keys, place = run_program(unpickler, file.memory, place, len(file.memory))
    try:
        places = locate_storages(file, keys, {s.fields[2]: s.fields[1].full for s in unpickler.storages}, place)
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise cut_short(file.path) from error

    def read_storage(dtype: torch.dtype, key: str, count: int) -> Tensor:
        offset, length = places[key]
        if count * dtype.itemsize > length:
            raise cut_short(file.path)
        return file.tensor(dtype, offset, count)

    return make_tensors(file, content, TensorMaker(read_storage, file.budget.spend))


def locate_storages(file: MappedFile, keys: list, kinds: dict, place: int) -> dict[str, tuple[int, int]]:
    """Returns (offset, length in bytes) of each storage. kinds: the names of their types by key."""
    places = {}
    for key in keys:
        dtype = STORAGES.get(kinds[key]) or DTYPES[kinds[key]]
        count = int.from_bytes(file.memory[place : place + 8], "little")
        places[key] = place + 8, count * dtype.itemsize
        place += 8 + count * dtype.itemsize
        if place > len(file.memory):
            raise cut_short(file.path)
    return places
