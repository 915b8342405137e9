"""The first stage: a pickle program is scanned into a list of operations, and refused unless every one is harmless.

Nothing is built here but the operations' own arguments, and each of those is part of the file: a length that reaches
past the end of the program is refused before anything of that length is allocated.
https://github.com/python/cpython/blob/main/Lib/pickletools.py documents the opcodes.
"""

import codecs
import mmap
import pickle
import re
import struct
from typing import Any

MOST_OPERATIONS = 1_000_000  # v1-5 with its EMA weights and its optimizer's state needs about 200,000
DEEPEST_MARKS = 100  # opened tuples, lists and dicts
LONGEST_INTEGER = 256  # bytes
LONGEST_LINE = 1 << 16  # bytes of an argument that ends with a newline
LONGEST_NAME = 1 << 10  # bytes of a module or of a class
LONGEST_WIDE_TEXT = 1 << 20  # bytes; a longer text must be Latin-1, because Python takes up to four bytes a letter

Data = bytes | mmap.mmap
Operation = tuple[int, Any]

(MARK, STOP, MEMOIZE, GET, BINGET, LONG_BINGET, PUT, BINPUT, LONG_BINPUT) = (
    code[0]
    for code in (
        *(pickle.MARK, pickle.STOP, pickle.MEMOIZE, pickle.GET, pickle.BINGET),
        *(pickle.LONG_BINGET, pickle.PUT, pickle.BINPUT, pickle.LONG_BINPUT),
    )
)
GETS, PUTS = {GET, BINGET, LONG_BINGET}, {PUT, BINPUT, LONG_BINPUT}


def slice_bytes(data: Data, place: int, length: int, end: int) -> bytes:
    if length > end - place:
        raise EOFError
    return data[place : place + length]


def read_number(width: int, signed: bool = False):
    """Returns a reader of an integer of fixed width."""

    def read(data: Data, place: int, end: int) -> tuple[int, int]:
        if place + width > end:
            raise EOFError
        return int.from_bytes(data[place : place + width], "little", signed=signed), place + width

    return read


def read_counted(width: int, decode):
    """Returns a reader of a length (`width` bytes) and of that many bytes, which `decode` converts."""

    def read(data: Data, place: int, end: int) -> tuple[Any, int]:
        if place + width > end:
            raise EOFError
        length = int.from_bytes(data[place : place + width], "little")
        place += width
        if length > end - place:
            raise EOFError
        return decode(data[place : place + length]), place + length

    return read


def read_line(decode, longest: int = LONGEST_LINE):
    """Returns a reader of the bytes up to the next newline, which `decode` converts."""

    def read(data: Data, place: int, end: int) -> tuple[Any, int]:
        newline = data.find(b"\n", place, min(end, place + longest))
        if newline < 0:
            raise EOFError if end - place < longest else ValueError("a line is too long")
        return decode(data[place:newline]), newline + 1

    return read


def read_global(data: Data, place: int, end: int) -> tuple[tuple[str, str], int]:
    module, place = GLOBAL_LINE(data, place, end)
    name, place = GLOBAL_LINE(data, place, end)
    return (module, name), place


def read_float(data: Data, place: int, end: int) -> tuple[float, int]:
    return struct.unpack(">d", slice_bytes(data, place, 8, end))[0], place + 8


def read_frame(data: Data, place: int, end: int) -> tuple[None, int]:
    """Skips the header of a frame, which only helps to read ahead."""
    slice_bytes(data, place, 8, end)
    return None, place + 8


def decode_text(data: bytes) -> str:
    if len(data) > LONGEST_WIDE_TEXT and re.search(rb"[\xc4-\xff]", data):
        raise ValueError("a text is too long")
    return data.decode("utf-8", "surrogatepass")


def decode_python2(data: bytes) -> str | bytes:
    """Decodes a string of Python 2, which did not distinguish text from bytes."""
    try:
        return decode_text(data)
    except UnicodeDecodeError:
        return data


def decode_quoted(data: bytes) -> str | bytes:
    if len(data) < 2 or data[:1] != data[-1:] or data[:1] not in (b"'", b'"'):
        raise ValueError("a string without quotes")
    return decode_python2(codecs.escape_decode(data[1:-1])[0])


def decode_escaped(data: bytes) -> str:
    """Decodes a text of protocol 0. `bytes.decode` would import a module for this encoding at its first use."""
    return codecs.raw_unicode_escape_decode(data)[0]


def decode_integer(data: bytes) -> int:
    if len(data) > LONGEST_INTEGER:
        raise ValueError("a number is too long")
    return int.from_bytes(data, "little", signed=True)


def decode_decimal(data: bytes) -> int | bool:
    """Decodes an integer of protocol 0, whose booleans are 00 and 01."""
    if data in (b"00", b"01"):
        return data == b"01"
    if len(data) > 3 * LONGEST_INTEGER or not re.fullmatch(rb"-?\d+L?", data):
        raise ValueError("a malformed number")
    return int(data.rstrip(b"L"))


def decode_name(data: bytes) -> str:
    return data.rstrip(b"\r").decode("utf-8")


GLOBAL_LINE = read_line(decode_name, LONGEST_NAME)

READERS = {
    opcode[0]: read
    for opcode, read in {
        pickle.PROTO: read_number(1),
        pickle.FRAME: read_frame,
        pickle.BININT: read_number(4, signed=True),
        pickle.BININT1: read_number(1),
        pickle.BININT2: read_number(2),
        pickle.INT: read_line(decode_decimal),
        pickle.LONG: read_line(decode_decimal),
        pickle.LONG1: read_counted(1, decode_integer),
        pickle.LONG4: read_counted(4, decode_integer),
        pickle.FLOAT: read_line(float),
        pickle.BINFLOAT: read_float,
        pickle.STRING: read_line(decode_quoted),
        pickle.BINSTRING: read_counted(4, decode_python2),
        pickle.SHORT_BINSTRING: read_counted(1, decode_python2),
        pickle.UNICODE: read_line(decode_escaped),
        pickle.BINUNICODE: read_counted(4, decode_text),
        pickle.SHORT_BINUNICODE: read_counted(1, decode_text),
        pickle.BINUNICODE8: read_counted(8, decode_text),
        pickle.BINBYTES: read_counted(4, bytes),
        pickle.SHORT_BINBYTES: read_counted(1, bytes),
        pickle.BINBYTES8: read_counted(8, bytes),
        pickle.BYTEARRAY8: read_counted(8, bytes),
        pickle.GLOBAL: read_global,
        pickle.GET: read_line(decode_decimal),
        pickle.BINGET: read_number(1),
        pickle.LONG_BINGET: read_number(4),
        pickle.PUT: read_line(decode_decimal),
        pickle.BINPUT: read_number(1),
        pickle.LONG_BINPUT: read_number(4),
    }.items()
}
# One tuple for each opcode without an argument, so that a million of them take no memory but their places in the list.
PLAIN_OPERATIONS = {
    opcode[0]: (opcode[0], None)
    for opcode in (
        *(pickle.MARK, pickle.STOP, pickle.POP, pickle.POP_MARK, pickle.DUP, pickle.MEMOIZE),
        *(pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE, pickle.EMPTY_TUPLE, pickle.TUPLE),
        *(pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3, pickle.EMPTY_LIST, pickle.LIST, pickle.APPEND, pickle.APPENDS),
        *(pickle.EMPTY_DICT, pickle.DICT, pickle.SETITEM, pickle.SETITEMS, pickle.EMPTY_SET, pickle.ADDITEMS),
        *(pickle.FROZENSET, pickle.STACK_GLOBAL, pickle.REDUCE, pickle.NEWOBJ, pickle.NEWOBJ_EX, pickle.BUILD),
        pickle.BINPERSID,
    )
}
# The same for the opcodes with an argument of one byte, and each of its values.
SHORT_OPERATIONS = {
    opcode[0]: [(opcode[0], value) for value in range(256)]
    for opcode in (pickle.PROTO, pickle.BININT1, pickle.BINGET, pickle.BINPUT)
}
CLOSING = {  # what a MARK ends with
    opcode[0]
    for opcode in (
        *(pickle.POP_MARK, pickle.TUPLE, pickle.LIST, pickle.DICT, pickle.APPENDS, pickle.SETITEMS),
        *(pickle.ADDITEMS, pickle.FROZENSET),
    )
}


def scan_program(data: Data, start: int, end: int, most: int = MOST_OPERATIONS) -> tuple[list[Operation], int]:
    """Scans the program that begins at `start`, and returns its operations and the offset of its end.

    most: how many operations it may have. Raises EOFError where it reaches past `end`, and ValueError, in a few words,
    for all that weights do not need.
    """
    operations: list[Operation] = []
    memo: set[int] = set()
    place, depth = start, 0
    operation: Operation | None
    for _ in range(most):
        if place >= end:
            raise EOFError
        opcode = data[place]
        place += 1
        if (operation := PLAIN_OPERATIONS.get(opcode)) is not None:
            operations.append(operation)
            if opcode == STOP:
                return operations, place
            if opcode == MARK:
                depth += 1
                if depth > DEEPEST_MARKS:
                    raise ValueError("it is nested too deeply")
            elif opcode in CLOSING:
                depth -= 1
            elif opcode == MEMOIZE:
                memo.add(len(memo))
            continue
        if opcode in SHORT_OPERATIONS and place < end:
            operation, place = SHORT_OPERATIONS[opcode][data[place]], place + 1
        elif opcode in READERS:
            argument, place = READERS[opcode](data, place, end)
            operation = opcode, argument
        else:
            raise ValueError(f"it uses the opcode {bytes([opcode])!r}, which weights do not need")
        if opcode in PUTS:
            check_index(operation[1])
            memo.add(operation[1])
        elif opcode in GETS and operation[1] not in memo:
            raise ValueError("it recalls a value that it never stored")
        operations.append(operation)
    raise ValueError(f"it has more than {MOST_OPERATIONS:,} operations")


def check_index(index: int) -> None:
    """Checks an index of the memo.

    Writers number it from 0 on, and the standard library's reader allocates it up to the largest number.
    """
    if not 0 <= index < MOST_OPERATIONS:
        raise ValueError("it stores a value at an impossible place")
