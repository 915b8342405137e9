"""Memory-mapped files whose bytes are used as tensors without a copy, and the safetensors format.

A .safetensors file is a length (8 bytes, little-endian), that many bytes of JSON, and the tensors' bytes. The JSON is
`{name: {dtype, shape, data_offsets}}`. https://github.com/huggingface/safetensors, "Format". The library `safetensors`
reads and checks the JSON; the tensors are views of our own mapping, which can be trained in place and released.
"""

import json
import math
import mmap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sd.checkpoints.foreign_files import Budget
from sd.utils.errors import UserError

LARGEST_HEADER = 1 << 24  # bytes of JSON: v1-5 has 130 kB, and trainers add lists of their captions
MOST_TENSORS = 20_000  # in one file: v1-5 with its EMA weights and its optimizer's state has 4,000

SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class MappedFile:
    """A file mapped into memory. Its pages are the system's cache, which every other reader shares.

    The mapping is private and copy-on-write: a tensor of it can be trained in place, and the file never changes.
    budget: what reading the file may allocate besides.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        with open(path, "rb") as file:
            self.memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        self.budget = Budget(self.path, len(self.memory))
        self.address = torch.frombuffer(self.memory, dtype=torch.uint8).data_ptr()

    def tensor(self, dtype: torch.dtype, offset: int, count: int) -> Tensor:
        """Returns `count` numbers from byte `offset` on, (count,)."""
        end = offset + count * dtype.itemsize
        if min(offset, count) < 0 or end > len(self.memory):
            raise cut_short(self.path)
        if count == 0:
            return torch.empty(0, dtype=dtype)
        if offset % dtype.itemsize:  # processors need numbers at multiples of their size, so this one is copied
            self.budget.spend(end - offset)
            return torch.frombuffer(bytearray(self.memory[offset:end]), dtype=dtype)
        return torch.frombuffer(self.memory, dtype=dtype, count=count, offset=offset)

    def release(self, tensor: Tensor) -> None:
        """Frees a tensor's pages in this process. Read again it comes from the file, and changes to it are lost."""
        start = tensor.untyped_storage().data_ptr() - self.address
        if 0 <= start < len(self.memory) and hasattr(mmap, "MADV_DONTNEED"):  # which Windows lacks
            page = start - start % mmap.PAGESIZE
            self.memory.madvise(mmap.MADV_DONTNEED, page, start - page + tensor.untyped_storage().nbytes())


def cut_short(path: Path, why: str = "its contents end before they should") -> UserError:
    return UserError(f"{path} is cut short or damaged: {why}; download it again.")


def read_safetensors(file: MappedFile) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Returns the file's tensors and its metadata.

    Raises UserError where the file is cut short, damaged, or has a dtype that is not supported.

    The library accepts only tensors that follow each other from the header to the file's end, without a gap and without
    an overlap. So each begins where the one before it ends.
    """
    length = int.from_bytes(file.memory[:8], "little")
    if length > min(len(file.memory), LARGEST_HEADER):
        raise cut_short(file.path, "its header is longer than weights need")
    if file.memory[8 : 8 + length].count(b'"data_offsets"') > MOST_TENSORS:
        raise cut_short(file.path, f"it lists more than {MOST_TENSORS:,} tensors")
    tensors, begin = {}, 8 + length
    try:
        # As numpy, because for torch the library maps the file a second time. Nothing is read through it.
        with safe_open(file.path, framework="np") as header:
            for name in header.offset_keys():
                entry = header.get_slice(name)
                dtype, shape = dtype_of(file.path, name, entry.get_dtype()), entry.get_shape()
                tensors[name] = file.tensor(dtype, begin, math.prod(shape)).reshape(shape)
                begin += math.prod(shape) * dtype.itemsize
            return tensors, header.metadata() or {}
    except SafetensorError as error:
        raise cut_short(file.path, str(error).partition(": ")[2] or str(error)) from error


def dtype_of(path: Path, name: str, dtype_name: str) -> torch.dtype:
    dtype = SAFETENSORS_DTYPES.get(dtype_name)
    if dtype is None:
        raise UserError(f"{path} keeps {name} as {dtype_name}, which is not supported: use fp32, fp16 or bf16.")
    return dtype


def write_safetensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Writes one tensor after another, so that the memory needed is one tensor's."""
    shapes = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    stream_safetensors(path, shapes, tensors.__getitem__, metadata)


def stream_safetensors(
    path: Path,
    shapes: dict[str, tuple[torch.dtype, tuple[int, ...]]],
    make: Callable[[str], Tensor],
    metadata: dict[str, str],
) -> None:
    """Writes tensors that are made when they are written. make: the name to the tensor, of the dtype and shape said.

    Larger dtypes come first, so that each tensor is aligned.
    """
    names = {dtype: name for name, dtype in SAFETENSORS_DTYPES.items()}
    shapes = dict(sorted(shapes.items(), key=lambda item: (-item[1][0].itemsize, item[0])))
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for name, (dtype, shape) in shapes.items():
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": names[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in shapes:
            flat = make(name).detach().contiguous().cpu().reshape(-1)
            file.write(flat.view(torch.uint8).numpy().data)
