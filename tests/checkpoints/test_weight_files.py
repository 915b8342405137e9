"""Any file by its contents: safetensors against its reference library, and what is no weights at all."""

import json
import os
import random
import struct

import pytest
import safetensors.torch
import torch

from sd.checkpoints.mmap_files import SAFETENSORS_DTYPES, write_safetensors
from sd.checkpoints.weight_files import describe_contents, read_weights, write_weights
from sd.utils.errors import UserError
from sd.utils.files import replacing


def tensors():
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randn(3, 5, generator=generator) * 100
    made = {name: numbers.to(dtype) for name, dtype in SAFETENSORS_DTYPES.items()}
    return made | {
        "empty": torch.empty(0, 3),
        "scalar": torch.tensor(2.5),
        "ünï/code": torch.ones(2),
        "turned": numbers.t(),
    }


def same(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert tensor.dtype == expected[name].dtype
        assert tensor.shape == expected[name].shape
        assert torch.equal(tensor, expected[name]), name


def test_safetensors_both_ways_against_the_reference(tmp_path):
    metadata = {"format": "pt", "a note": 'ünïcode and "quotes"'}
    state = {name: tensor.contiguous() for name, tensor in tensors().items()}
    safetensors.torch.save_file(state, tmp_path / "theirs", metadata)
    found = read_weights(tmp_path / "theirs")
    same(found.content, tensors())
    assert found.metadata == metadata

    write_safetensors(tmp_path / "ours", tensors(), metadata)
    same(safetensors.torch.load_file(tmp_path / "ours"), tensors())
    with safetensors.safe_open(tmp_path / "ours", "pt") as file:
        assert file.metadata() == metadata
    same(read_weights(tmp_path / "ours").content, tensors())


def test_safetensors_without_padding(tmp_path):
    """Older writers did not pad the header, so that no tensor begins at a multiple of its size."""
    values = torch.arange(6.0)
    header = json.dumps({"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}).encode()
    header += b" " * (1 - len(header) % 2)
    assert (8 + len(header)) % 4
    (tmp_path / "a").write_bytes(struct.pack("<Q", len(header)) + header + values.numpy().tobytes())
    assert torch.equal(read_weights(tmp_path / "a").content["a"], values.reshape(2, 3))


HEADERS = {
    "not JSON": b"{nonsense}",
    "a list of nothing": b'{"a": []}',
    "no dtype": b'{"a": {"shape": [2], "data_offsets": [0, 8]}}',
    "no list": b'{"a": {"dtype": "F32", "shape": 2, "data_offsets": [0, 8]}}',
    "past the end": b'{"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}',
    "before the beginning": b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}}',
    "wrong length": b'{"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}',
    "negative shape": b'{"a": {"dtype": "F32", "shape": [-2, -1], "data_offsets": [0, 8]}}',
    "metadata that is a list": b'{"__metadata__": ["a"]}',
    "fp8": b'{"a": {"dtype": "F8_E4M3", "shape": [8], "data_offsets": [0, 8]}}',
}


@pytest.mark.parametrize("header", HEADERS)
def test_safetensors_headers_that_lie(tmp_path, header):
    text = HEADERS[header]
    (tmp_path / "a").write_bytes(struct.pack("<Q", len(text)) + text + b"\0" * 8)
    with pytest.raises(UserError, match="F8_E4M3" if header == "fp8" else "cut short or damaged"):
        read_weights(tmp_path / "a")


def entry(begin, end):
    return f'{{"dtype": "F32", "shape": [{(end - begin) // 4}], "data_offsets": [{begin}, {end}]}}'


AS_THE_LIBRARY = {  # the header, and how many bytes follow it
    "null for metadata": (f'{{"__metadata__": null, "a": {entry(0, 8)}}}', 8),
    "no tensor": ("{}", 0),
    "nothing but metadata": ('{"__metadata__": {"format": "pt"}}', 0),
    "tensors in another order": (f'{{"a": {entry(8, 16)}, "b": {entry(0, 8)}}}', 16),
    "an empty tensor between": (f'{{"a": {entry(0, 8)}, "e": {entry(8, 8)}, "b": {entry(8, 16)}}}', 16),
    "one name twice, at one place": (f'{{"a": {entry(0, 8)}, "a": {entry(0, 8)}}}', 8),
    "one name twice, at two places": (f'{{"a": {entry(0, 8)}, "a": {entry(8, 16)}}}', 16),
    "tensors that overlap": (f'{{"a": {entry(0, 8)}, "b": {entry(4, 12)}}}', 12),
    "two tensors at one place": (f'{{"a": {entry(0, 8)}, "b": {entry(0, 8)}}}', 8),
    "a hole": (f'{{"a": {entry(0, 8)}, "b": {entry(16, 24)}}}', 24),
    "bytes that belong to no tensor": (f'{{"a": {entry(0, 8)}}}', 12),
    "metadata that is no text": (f'{{"__metadata__": {{"epoch": 3}}, "a": {entry(0, 8)}}}', 8),
    "lists in lists without end": ('{"a": ' + "[" * 100_000, 8),
}


@pytest.mark.parametrize("case", AS_THE_LIBRARY)
def test_safetensors_files_are_read_or_refused_as_the_library_does(tmp_path, case):
    header, length = AS_THE_LIBRARY[case]
    data = struct.pack(f"<{length // 4}f", *range(length // 4))
    (tmp_path / "a").write_bytes(struct.pack("<Q", len(header)) + header.encode() + data)
    try:
        expected = safetensors.torch.load_file(tmp_path / "a")
    except safetensors.SafetensorError:
        with pytest.raises(UserError, match="cut short or damaged") as caught:
            read_weights(tmp_path / "a")
        assert "\n" not in str(caught.value)
    else:
        same(read_weights(tmp_path / "a").content, expected)


def test_safetensors_tensors_are_the_files_own_pages_and_writing_to_them_leaves_it_alone(tmp_path):
    write_safetensors(tmp_path / "a", {"a": torch.ones(10_000)}, {})
    before = (tmp_path / "a").read_bytes()
    found = read_weights(tmp_path / "a")
    tensor = found.content["a"]
    assert 0 < tensor.data_ptr() - found.file.address < len(before)
    tensor += 1
    assert float(tensor.sum()) == 20_000
    assert (tmp_path / "a").read_bytes() == before
    found.file.release(tensor)  # changed pages go, and come from the file again
    inside = tensor[2048:-2048]  # the first and the last page may be shared with other tensors
    assert float(inside.sum()) == len(inside)


def test_every_cut_and_any_damage_is_one_sentence(tmp_path):
    write_safetensors(tmp_path / "whole", tensors(), {})
    whole, path, chance = (tmp_path / "whole").read_bytes(), tmp_path / "a", random.Random(0)
    for length in range(1, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError):
            read_weights(path)
    refused = 0
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[chance.randrange(len(whole))] = chance.randrange(256)
        path.write_bytes(damaged)
        try:
            read_weights(path)
        except UserError:
            refused += 1
    assert refused > 20


WRONG = {
    "is empty": b"",
    "is a web page": b"<!DOCTYPE html><html><body>Sign in to download</body></html>",
    "is a web page ": b"\n  <HTML><head>",
    "is a git-lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:cc6cb2\nsize 4265380512\n",
    "is neither a torch file nor a .safetensors": random.Random(0).randbytes(5000),
    "is neither a torch file nor a .safetensors ": b'{"error": "not found"}',
    "is neither a torch file nor a .safetensors  ": b"\x89PNG\r\n\x1a\n" + bytes(100),
    "is a pickle, but not one that torch.save wrote": b"\x80\x02]q\x00.",
    "is a zip archive, but not one that torch.save wrote": None,
}


@pytest.mark.parametrize("message", WRONG)
def test_files_that_are_no_weights(tmp_path, message):
    path = tmp_path / "model.ckpt"
    if WRONG[message] is None:
        import zipfile

        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("holiday/photo.jpg", b"x")
    else:
        path.write_bytes(WRONG[message])
    with pytest.raises(UserError) as caught:
        read_weights(path)
    assert message.strip() in str(caught.value)
    assert str(path) in str(caught.value)


def test_random_bytes_are_never_weights_and_never_a_traceback(tmp_path):
    path, chance = tmp_path / "model.ckpt", random.Random(1)
    for beginning in [b"", b"PK\x03\x04", b"\x80\x02", b"\x80\x04\x95", b"PK\x05\x06", b"\x10\0\0\0\0\0\0\0{"]:
        for _ in range(30):
            path.write_bytes(beginning + chance.randbytes(300).replace(b"r", b"x"))
            with pytest.raises(UserError):
                read_weights(path)


def test_no_file_at_all(tmp_path):
    with pytest.raises(UserError, match="file not found"):
        read_weights(tmp_path / "nothing.ckpt")
    with pytest.raises(UserError, match="is a folder"):
        read_weights(tmp_path)


@pytest.mark.skipif(os.name != "posix" or os.getuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path):
    write_weights(tmp_path / "a", "safetensors", tensors(), {})
    (tmp_path / "a").chmod(0)
    with pytest.raises(UserError, match="Permission denied"):
        read_weights(tmp_path / "a")


def test_what_is_says_nothing_where_nothing_shows():
    assert describe_contents({"a.weight": torch.zeros(3, 4)}) is None
    assert describe_contents({f"{i}": torch.zeros(768) for i in range(20)}) is None


def test_an_interrupted_write_leaves_nothing_and_an_error_of_ours_stays_itself(tmp_path):
    def interrupted(error):
        with replacing(tmp_path / "a") as part:
            part.write_text("half")
            raise error

    (tmp_path / "a").write_text("earlier")
    for error in (KeyboardInterrupt, ZeroDivisionError):
        with pytest.raises(error):
            interrupted(error)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "earlier"
