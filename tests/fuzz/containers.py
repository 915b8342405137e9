"""Hostile files by the tricks of their containers: headers of safetensors, archives, legacy files, other formats.

Together with `fuzz.corpus.hostile_files`; each function yields (name, content) pairs, the same each time.
"""

import bz2
import gzip
import io
import json
import lzma
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator

import numpy as np
from fuzz.programs import (
    LEGACY_HEAD,
    LEGACY_MAGIC,
    as_legacy,
    as_safetensors,
    as_zip,
    call,
    name,
    number,
    numbers,
    program,
    storage,
    table,
    tensor,
    text,
)

TERMINAL = "\x1b]0;title\x07\x1b[2J\x1b[31mred\r\n\u202e\u2066"  # what a terminal would obey


def container_files() -> Iterator[tuple[str, bytes]]:
    for make in (headers, names, metadata, records, archive_tables, old_pickles, other_formats):
        for label, data in make():
            yield f"{make.__name__}/{label}", data


def one(dtype: str = '"F32"', shape: str = "[1]", offsets: str = "[0,4]") -> str:
    return f'{{"dtype":{dtype},"shape":{shape},"data_offsets":{offsets}}}'


def headers() -> Iterator[tuple[str, bytes]]:
    """Headers of safetensors that disagree with JSON, with themselves or with the file."""
    good = f'{{"a":{one()}}}'
    entries = {
        **{f"dtype-{i}": one(dtype) for i, dtype in enumerate(
            ('"f32"', '"F8_E4M3"', '"F8_E5M2"', '"F4"', '"U64"', '"U16"', '"C64"', '""', "null", "4", "[]",
             '"F32\\u0000"'))},
        **{f"shape-{i}": one(shape=shape) for i, shape in enumerate(
            ("null", "1", '"1"', "{}", "[[1]]", "[null]", "[true]", "[1.0]", "[1E0]", "[-0]", "[01]", "[1,]", "[0]",
             "[1" + ",1" * 70 + "]", "[1" + ",1" * 100_000 + "]", "[0,18446744073709551615]", "[18446744073709551616]",
             "[4294967296,4294967296,0]", "[2,2147483648,4294967296]", "[1" + "0" * 10_000 + "]"))},
        **{f"offsets-{i}": one(offsets=offsets) for i, offsets in enumerate(
            ("null", "[]", "[0]", "[0,4,8]", "[4,0]", "[4,4]", "[0,3]", "[0,5]", "[1,5]", "[-4,0]", "[0,4.0]",
             '["0","4"]',
             "[0,1e400]", "[0,NaN]", "[0,Infinity]", "[18446744073709551612,18446744073709551616]", "[[0],[4]]"))},
    }  # fmt: skip
    for label, entry in entries.items():
        yield label, as_safetensors(f'{{"a":{entry}}}'.encode(), b"\0" * 4)
    whole = {
        "twice": f'{{"a":{one()},"a":{one(offsets="[4,8]")}}}',
        "overlap": f'{{"a":{one()},"b":{one()}}}',
        "gap": f'{{"a":{one()},"b":{one(offsets="[8,12]")}}}',
        "reversed": f'{{"a":{one(offsets="[4,8]")},"b":{one()}}}',
        "extra": '{"a":' + one()[:-1] + ',"more":[1]}}',
        "trailing": good + "{}",
        "comment": "{/*x*/" + good[1:],
        "single-quotes": good.replace('"', "'"),
        "list": f"[{good}]",
        "text": '"a"',
        "empty": "{}",
        "blank": "{" + " " * 1000,
        "nul-padding": good + "\0" * 64,
        "newlines": good + "\n" * 100_000,
        "byte-order-mark": "\ufeff" + good,
    }
    for label, header in whole.items():
        yield label, as_safetensors(header.encode(), b"\0" * 12)
    yield "utf-16", as_safetensors(good.encode("utf-16"), b"\0" * 4)
    yield "utf-32", as_safetensors(good.encode("utf-32-be"), b"\0" * 4)
    yield "latin-1", as_safetensors(good.replace("a", "\xe9").encode("latin-1"), b"\0" * 4)
    yield "cut-character", as_safetensors(good.encode().replace(b"a", b"\xf0\x9f\x98"), b"\0" * 4)
    yield "big-endian-length", struct.pack(">Q", len(good)) + good.encode() + b"\0" * 4
    yield "length-of-the-file", struct.pack("<Q", len(good) + 12) + good.encode() + b"\0" * 4
    yield "only-a-header", as_safetensors(good.encode())
    yield "one-byte-more", as_safetensors(good.encode(), b"\0" * 5)


def names() -> Iterator[tuple[str, bytes]]:
    """Names of tensors that are hard to print, to match or to look up."""
    many = 100_000
    odd = {
        **{f"repeated-{i}": piece * (many // len(piece)) for i, piece in enumerate(
            ("_", ".", "lora_unet_", "lora_A.", "model.", "input_blocks.", "transformer_blocks_1_", "down_blocks.0.",
             "9",
             "unet:0:", "0.", "_to_k", "bundle_emb.", ".weight", "lora_te_text_model_encoder_layers_"))},
        "empty": "", "dot": ".", "metadata": "__metadata__", "terminal": TERMINAL, "nul": "a\0b",
        "path": "../../etc/passwd",
        "huge-number": "lora_unet_down_blocks_" + "9" * 4999 + "_attentions_0_proj_in.lora_down.weight",
        "unicode-digits": "model.diffusion_model.input_blocks.\u0661.0.in_layers.0.weight",
        "negative": "model.diffusion_model.input_blocks.-1.0.in_layers.0.weight",
        "bundle": "bundle_emb." + TERMINAL + ".string_to_param.*", "lookalike": "lora_unet_mid_block\u200b.alpha",
    }  # fmt: skip
    for label, key in odd.items():
        entry = json.dumps({key: {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}})
        yield f"{label}-safetensors", as_safetensors(entry.encode(), bytes(16))
        yield f"{label}-zip", as_zip(program(table(**{key: tensor()}), 4))
    pairs = ("lora_down.weight", "lora_up.weight", "alpha", "dora_scale", "hada_w1_a", "lokr_w1", "oft_blocks", "diff")
    for field in pairs:
        for shape in ([], [0], [1], [2, 2], [1, 1, 1, 1], [1] * 9, [2, 0]):
            size = 4 * int(np.prod(shape))
            key = f"lora_unet_mid_block_attentions_0_proj_in.{field}"
            entry = json.dumps({key: {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}})
            yield f"{field}-{len(shape)}-{size}", as_safetensors(entry.encode(), b"\xff" * size)


def metadata() -> Iterator[tuple[str, bytes]]:
    """Texts beside the tensors: of this project, of trainers, of PEFT."""
    key = "lora_unet_mid_block_attentions_0_proj_in.lora_down.weight"
    values = (
        "",
        TERMINAL,
        "null",
        "[]",
        "{",
        "1e999",
        "NaN",
        "9" * 5000,
        "\\ud800",
        "[" * 50_000,
        '{"r":' * 2000,
        "a" * (1 << 20),
    )
    labels = (
        *("sd_sizes", "sd_trained_from", "ss_output_name", "ss_network_module", "ss_base_model_version", "prediction"),
        *("modelspec.architecture", "lora_adapter_metadata", "sd_merge_recipe", "format", "ss_tag_frequency", "v_pred"),
    )
    for label in labels:
        for i, value in enumerate(values):
            entry = {key: {"dtype": "F32", "shape": [1, 1], "data_offsets": [0, 4]}, "__metadata__": {label: value}}
            yield f"{label}-{i}", as_safetensors(json.dumps(entry).encode(), b"\0" * 4)


def zipped(records: list[tuple[str | zipfile.ZipInfo, bytes]], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for record, data in records:
            archive.writestr(record, data)
    return buffer.getvalue()


def records() -> Iterator[tuple[str, bytes]]:
    """Archives with records that a torch file has not, or has elsewhere."""
    body, data = program(table(a=tensor())), bytes(64)
    usual = [("archive/data.pkl", body), ("archive/data/0", data)]
    link = zipfile.ZipInfo("archive/data/0")
    link.external_attr = 0o120777 << 16
    sets = {
        "at-the-root": [("data.pkl", body), ("data/0", data)],
        "two-programs": [("a/data.pkl", body), ("b/data.pkl", body), ("a/data/0", data), ("b/data/0", data)],
        "deep": [("a/b/c/data.pkl", body), ("a/b/c/data/0", data)],
        "absolute": [("/etc/data.pkl", body), ("/etc/data/0", data)],
        "above": [("../data.pkl", body), ("../data/0", data)],
        "no-name": [("/data.pkl", body), ("/data/0", data)],
        "long-name": [("a" * 65_000 + "/data.pkl", body), ("a" * 65_000 + "/data/0", data)],
        "terminal": [(TERMINAL + "/data.pkl", body), (TERMINAL + "/data/0", data)],
        "backslash": [("archive\\data.pkl", body), ("archive\\data\\0", data)],
        "empty-program": [("archive/data.pkl", b"")],
        "stop-alone": [("archive/data.pkl", b".")],
        "text-program": [("archive/data.pkl", b"import os\nos.system('true')\n")],
        "a-link": [usual[0], (link, b"/etc/passwd")],
        "a-folder": [usual[0], ("archive/data/0/", b"")],
        "byteorder-big": [*usual, ("archive/byteorder", b"big")],
        "byteorder-long": [*usual, ("archive/byteorder", b"little" * 1_000_000)],
        "version": [*usual, ("archive/version", b"9" * 10_000)],
        "torchscript": [*usual, ("archive/constants.pkl", body), ("archive/code/__torch__.py", b"import os")],
        "package": [("archive/.data/extern_modules", b"os"), ("archive/data.pkl", body)],
        "nested": [("archive/data.pkl", zipped(usual))],
        "npz": [("a.npy", b"\x93NUMPY\x01\0" + b"v\0{'descr':'O'}")],
        "jar": [("META-INF/MANIFEST.MF", b"Main-Class: x"), ("x.class", b"\xca\xfe\xba\xbe")],
    }
    for label, files in sets.items():
        yield label, zipped(files)
        yield f"{label}-deflated", zipped(files, zipfile.ZIP_DEFLATED)
    for label, method in {"bzip2": zipfile.ZIP_BZIP2, "lzma": zipfile.ZIP_LZMA}.items():
        yield label, zipped(usual, method)
    yield (
        "twice-the-same-name",
        zipped([usual[0], ("archive/data.pkX", program(table(b=tensor()))), usual[1]]).replace(
            b"data.pkX", b"data.pkl"
        ),
    )


def archive_tables() -> Iterator[tuple[str, bytes]]:
    """Archives whose tables of contents lie about single records, and bombs that share their bytes."""
    whole = as_zip(program(table(a=tensor())))
    deflated = as_zip(program(table(a=tensor())), zipfile.ZIP_DEFLATED)
    for label, data in (("stored", whole), ("deflated", deflated)):
        directory = data.index(b"PK\x01\x02")
        last = data.rindex(b"PK\x01\x02")
        fields = {"flags": (8, 2), "method": (10, 2), "checksum": (16, 4), "packed": (20, 4), "size": (24, 4),
                  "name": (28, 2), "extra": (30, 2), "comment": (32, 2), "disk": (34, 2), "header": (42,
                  4)}  # fmt: skip
        for (field, (place, width)), value in ((f, v) for f in fields.items() for v in (0, 1, 0x7FFF, 0xFFFFFFFF)):
            for which, begin in (("program", directory), ("numbers", last)):
                changed = bytearray(data)
                changed[begin + place : begin + place + width] = struct.pack("<L", value)[:width]
                yield f"{label}-{field}-{value:x}-{which}", bytes(changed)
    yield "itself", whole.replace(struct.pack("<L", whole.index(b"PK\x01\x02")), struct.pack("<L", 0))
    yield "before-and-behind", whole + whole
    yield "with-a-comment", whole[:-2] + struct.pack("<H", 65535) + b"PK\x05\x06" * 16383 + b"xyz"
    yield "shared-bomb", shared_bomb(2000, 1 << 24)
    yield "shared-small-bomb", shared_bomb(40_000, 1 << 20)
    yield "claims-less", claims_less()


def shared_bomb(count: int, size: int) -> bytes:
    """An archive in which many records are the same deflated bytes."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = packer.compress(bytes(size)) + packer.flush()
    checksum = zlib.crc32(bytes(size))
    local = struct.pack("<4sHHHHHLLLHH", b"PK\3\4", 20, 0, 8, 0, 0, checksum, len(packed), size, 1, 0) + b"x" + packed
    entries = b"".join(
        text(f"a{i}") + tensor(storage(size // 4, key=str(i)), size=(size // 4,), stride=(1,)) for i in range(count)
    )
    body = program(b"}(" + entries + b"u", 4)
    key = b"a/data.pkl"
    sizes = (zlib.crc32(body), len(body), len(body))
    first = struct.pack("<4sHHHHHLLLHH", b"PK\3\4", 20, 0, 0, 0, 0, *sizes, len(key), 0) + key + body
    table_of = [
        struct.pack("<4sHHHHHHLLLHHHHHLL", b"PK\1\2", 20, 20, 0, 0, 0, 0, *sizes, len(key), 0, 0, 0, 0, 0, 0) + key
    ]
    for i in range(count):
        key = f"a/data/{i}".encode()
        numbers_ = (checksum, len(packed), size, len(key), 0, 0, 0, 0, 0, len(first))
        table_of.append(struct.pack("<4sHHHHHHLLLHHHHHLL", b"PK\1\2", 20, 20, 0, 8, 0, 0, *numbers_) + key)
    directory = b"".join(table_of)
    start = len(first) + len(local)
    end = struct.pack("<4sHHHHLLH", b"PK\5\6", 0, 0, count & 0xFFFF, count & 0xFFFF, len(directory), start, 0)
    return first + local + directory + end


def claims_less() -> bytes:
    """A deflated record that unpacks to far more than it says."""
    data = as_zip(program(table(a=tensor())), zipfile.ZIP_DEFLATED, {"0": bytes(1 << 26)})
    return data.replace(struct.pack("<L", 1 << 26), struct.pack("<L", 64))


def old_pickles() -> Iterator[tuple[str, bytes]]:
    """Pickles of old protocols and files of old versions of torch."""
    good, keys = program(table(a=tensor())), program(b"](" + text("0") + b"e")
    tail = struct.pack("<q", 16) + bytes(64)
    view = numbers(text("storage"), name("torch", "FloatStorage"), text("0"), text("cpu"), 16,
                   numbers(text("1"), 0, 16)) + b"Q"  # fmt: skip
    bodies = {
        "protocol-0": b"(dp0\nS'a'\np1\nI1\ns.",
        "protocol-0-call": b"cos\nsystem\n(S'touch executed'\ntR.",
        "protocol-0-carriage-returns": b"cos\r\nsystem\r\n(S'touch executed'\r\ntR.",
        "protocol-0-names": b"(dp0\nVa\\u0000\\ud800\np1\nL9L\ns.",
        "protocol-0-escapes": b"(S'\\x41\\'\\\\'\ntp0\n.",
        "protocol-0-float": b"F1e999\n.",
        "protocol-0-integer": b"I01\n.",
        "protocol-0-octal": b"I0x10\n.",
        "protocol-1": b"}q\x00U\x01aK\x01s.",
        "protocol-6": b"\x80\x06N.", "protocol-255": b"\x80\xffN.",
        "protocol-in-the-middle": b"\x80\x02N\x80\x04\x80\x00.",
        "frames": b"\x80\x04\x95\x02\0\0\0\0\0\0\0N.", "frame-too-short": b"\x80\x04\x95\x01\0\0\0\0\0\0\0N.",
        "frame-too-long": b"\x80\x04\x95\xff\0\0\0\0\0\0\0N.",
        "frames-nested": b"\x80\x04" + b"\x95\x09\0\0\0\0\0\0\0" * 1000 + b"N.",
        "pop-mark": b"\x80\x02((11N.", "pop-nothing": b"\x80\x020.", "no-stop": b"\x80\x02}",
        "stop-of-nothing": b"\x80\x02.",
        "two-left": b"\x80\x02NN.", "mark-left": b"\x80\x02(.", "memoized-mark": b"\x80\x04(\x94N.",
        "build-a-call": program(call(name("torch", "Size"), numbers(1)) + b"}b"),
        "set-item-of-a-tuple": program(b")K\x00K\x01s"), "append-to-a-dict": program(b"}K\x01a"),
        "a-dict-as-key": program(b"}}Ns"), "odd-items": program(b"}(K\x01u"), "long-0": program(b"\x8a\x00"),
        "nan-key": program(b"}G\x7f\xf8\0\0\0\0\0\x01Ns" + b"G\x7f\xf8\0\0\0\0\0\x01Ns"),
    }  # fmt: skip
    for label, body in bodies.items():
        yield label, body
        yield f"{label}-legacy", as_legacy(body)
        yield f"{label}-zip", as_zip(body)
    protocol, system = program(number(1001)), program(table(little_endian=b"\x88"))
    heads = {
        "magic-as-text": program(text("119547037146038801333356")) + protocol + system,
        "magic-as-decimal": b"L119547037146038801333356L\n." + protocol + system,
        "magic-in-a-list": program(b"](" + LEGACY_MAGIC[2:-1] + b"e") + protocol + system,
        "version-huge": LEGACY_MAGIC + program(number(1 << 80)) + system,
        "version-a-call": LEGACY_MAGIC + program(call(name("os", "getpid"))) + system,
        "system-big-endian": LEGACY_MAGIC + protocol + program(table(little_endian=b"\x89")),
        "system-a-tensor": LEGACY_MAGIC + protocol + program(tensor()),
        "system-missing": LEGACY_MAGIC + protocol,
    }
    for label, head in heads.items():
        yield label, head + good + keys + tail
    yield "a-view", as_legacy(program(table(a=tensor(view))))
    yield "keys-twice", LEGACY_HEAD + good + program(b"](" + text("0") * 2 + b"e") + tail * 2
    yield "keys-unknown", LEGACY_HEAD + good + program(b"](" + text("1") + b"e") + tail
    yield "keys-nested", LEGACY_HEAD + good + program(b"](" + b"]" * 10 + b"e") + tail
    yield "keys-none", LEGACY_HEAD + good + program(b"]") + tail
    yield (
        "storage-twice-other-type",
        as_legacy(program(table(a=tensor(), b=tensor(storage(kind="DoubleStorage"), size=(2,), stride=(1,))))),
    )


def other_formats() -> Iterator[tuple[str, bytes]]:
    """Files that are something else, whole ones and bombs."""
    whole = as_zip(program(table(a=tensor())))
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for label, data in (("pickle", program(tensor())), ("tensors", bytes(64)), ("storages", bytes(64))):
            entry = tarfile.TarInfo(label)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
        link = tarfile.TarInfo("sys_info")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    objects = io.BytesIO()
    np.save(objects, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    made = {
        "tar": archive.getvalue(), "gzip": gzip.compress(whole), "bzip2": bz2.compress(whole),
        "xz": lzma.compress(whole),
        "gzip-bomb": gzip.compress(bytes(1 << 26)), "npy-objects": objects.getvalue(),
        "gguf": b"GGUF\x03\0\0\0" + b"\xff" * 64,
        "hdf5": b"\x89HDF\r\n\x1a\n" + b"\xff" * 64, "onnx": b"\x08\x07\x12\x07pytorch" + b"\xff" * 64,
        "elf": b"\x7fELF" + b"\xff" * 64, "exe": b"MZ" + b"\xff" * 64, "shell": b"#!/bin/sh\ntouch executed\n",
        "python": b"open('executed', 'w')\n", "html": b"<!DOCTYPE html><script>" + b"a" * 100_000,
        "xml": b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>', "json": b'{"a": ' * 10_000,
        "lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64, "zeros": bytes(1 << 20),
        "newlines": b"\n" * 1_000_000, "spaces": b" " * 1_000_000 + b"<html>", "one-byte": b"\x80",
        "two-bytes": b"\x80\x02",
        "brackets": b"(" * 1_000_000, "lines": b"c" + b"a" * 1_000_000 + b"\n",
    }  # fmt: skip
    yield from made.items()
