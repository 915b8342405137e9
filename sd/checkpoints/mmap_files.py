"""A file's bytes as tensors, without a copy; and safetensors, the format that is nothing but that.

A .safetensors file is a length (8 bytes, little-endian), that many bytes of JSON, and the tensors' bytes. The JSON says
`{name: {dtype, shape, data_offsets}}`. https://github.com/huggingface/safetensors, "Format". The library `safetensors`
reads and judges the JSON; the tensors are views of our own map, which can be trained in place and released.
"""

import json
import math
import mmap
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sd.utils.errors import UserError

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
    """A file seen as memory. Its pages are the system's cache, shared with every other reader.

    The map is private and copy-on-write: a tensor of it can be trained in place, and the file never changes.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        with open(path, "rb") as file:
            self.memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        self.address = torch.frombuffer(self.memory, dtype=torch.uint8).data_ptr()

    def tensor(self, dtype: torch.dtype, offset: int, count: int) -> Tensor:
        """`count` numbers from byte `offset` on, (count,)."""
        end = offset + count * dtype.itemsize
        if min(offset, count) < 0 or end > len(self.memory):
            raise cut_short(self.path)
        if count == 0:
            return torch.empty(0, dtype=dtype)
        if offset % dtype.itemsize:  # the processor wants numbers at multiples of their size, so this one is copied
            return torch.frombuffer(bytearray(self.memory[offset:end]), dtype=dtype)
        return torch.frombuffer(self.memory, dtype=dtype, count=count, offset=offset)

    def release(self, tensor: Tensor) -> None:
        """Stop holding a tensor's pages in this process. Read again it comes from the file: changes to it are lost."""
        start = tensor.untyped_storage().data_ptr() - self.address
        if 0 <= start < len(self.memory) and hasattr(mmap, "MADV_DONTNEED"):  # which Windows has not
            page = start - start % mmap.PAGESIZE
            self.memory.madvise(mmap.MADV_DONTNEED, page, start - page + tensor.untyped_storage().nbytes())


def cut_short(path: Path, why: str = "its contents end before they should") -> UserError:
    return UserError(f"{path} is cut short or damaged: {why}; fetch it again.")


def read_safetensors(file: MappedFile) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The file's tensors and its metadata. Raises UserError where it is cut short, damaged, or of an unknown dtype.

    The library accepts only tensors that follow each other from the header to the file's end, without a gap and without
    an overlap. So each begins where the one before it ends.
    """
    tensors, begin = {}, 8 + int.from_bytes(file.memory[:8], "little")
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


def dtype_of(path: Path, name: str, spelled: str) -> torch.dtype:
    dtype = SAFETENSORS_DTYPES.get(spelled)
    if dtype is None:
        raise UserError(f"{path} keeps {name} as {spelled}, which is not read here: use fp32, fp16 or bf16.")
    return dtype


def write_safetensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """One tensor after another, so that the memory needed is one tensor's. Big dtypes first: each is aligned."""
    names = {dtype: name for name, dtype in SAFETENSORS_DTYPES.items()}
    tensors = dict(sorted(tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])))
    header, end = {"__metadata__": metadata} if metadata else {}, 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.numel() * tensor.dtype.itemsize
        header[name] = {"dtype": names[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            flat = tensor.detach().contiguous().cpu().reshape(-1)
            file.write(flat.view(torch.uint8).numpy())
