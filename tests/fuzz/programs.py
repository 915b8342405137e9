"""Pickle programs written opcode by opcode, and the containers around them. Nothing is executed to make them."""

import io
import struct
import zipfile

LEGACY_MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
LEGACY_HEAD = LEGACY_MAGIC + b"\x80\x02M\xe9\x03." + b"\x80\x02}X\x0d\x00\x00\x00little_endian\x88s."


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def number(value: int) -> bytes:
    if 0 <= value < 256:
        return b"K" + bytes([value])
    if -(1 << 31) <= value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def numbers(*values: int | bytes) -> bytes:
    """A tuple; a value may be a program of its own."""
    return b"(" + b"".join(value if isinstance(value, bytes) else number(value) for value in values) + b"t"


def name(module: str, attribute: str) -> bytes:
    return b"c" + module.encode() + b"\n" + attribute.encode() + b"\n"


def stack_name(module: str, attribute: str) -> bytes:
    return text(module) + text(attribute) + b"\x93"


def call(function: bytes, *args: bytes) -> bytes:
    return function + b"(" + b"".join(args) + b"tR"


def table(**entries: bytes) -> bytes:
    return b"}(" + b"".join(text(key) + value for key, value in entries.items()) + b"u"


def storage(
    count: int | bytes = 16, key: str | bytes = "0", kind: str = "FloatStorage", module: str = "torch"
) -> bytes:
    key = text(key) if isinstance(key, str) else key
    return numbers(text("storage"), name(module, kind), key, text("cpu"), count) + b"Q"


REBUILD = name("torch._utils", "_rebuild_tensor_v2")


def tensor(
    place: bytes | None = None,
    offset: int | bytes = 0,
    size: tuple | bytes = (4, 4),
    stride: tuple | bytes = (4, 1),
) -> bytes:
    """A call of `_rebuild_tensor_v2`."""
    size = size if isinstance(size, bytes) else numbers(*size)
    stride = stride if isinstance(stride, bytes) else numbers(*stride)
    offset = offset if isinstance(offset, bytes) else number(offset)
    return call(REBUILD, storage() if place is None else place, offset, size, stride, b"\x89", b"N")


def program(body: bytes, protocol: int = 2) -> bytes:
    return b"\x80" + bytes([protocol]) + body + b"."


def as_zip(body: bytes, method: int = zipfile.ZIP_STORED, records: dict[str, bytes] | None = None) -> bytes:
    """An archive with this data.pkl, and with one storage of 16 numbers unless `records` are given."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.writestr("archive/data.pkl", body)
        for key, data in ({"0": bytes(range(64))} if records is None else records).items():
            archive.writestr(f"archive/data/{key}", data)
    return buffer.getvalue()


def as_legacy(body: bytes, keys: bytes | None = None, count: int = 16, data: bytes = bytes(range(64))) -> bytes:
    keys = program(b"](" + text("0") + b"e") if keys is None else keys
    return LEGACY_HEAD + body + keys + struct.pack("<q", count) + data


def as_safetensors(header: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + data


CONTAINERS = {
    "zip": as_zip,
    "deflated": lambda body: as_zip(body, zipfile.ZIP_DEFLATED),
    "legacy": as_legacy,
    "plain": lambda body: body,
    "magic": lambda body: body + LEGACY_HEAD,
}
