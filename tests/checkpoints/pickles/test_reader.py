"""Our reader of ZIP archives against the standard library's, and the budget of what is unpacked."""

import io
import subprocess
import sys
import zipfile

import pytest
import torch

from sd.checkpoints.mmap_files import MappedFile
from sd.checkpoints.pickles.reader import apply_zip64, read_directory, read_record
from sd.checkpoints.weight_files import read_weights
from sd.utils.errors import UserError


def archive(path, method, comment=b"", force_zip64=False):
    with zipfile.ZipFile(path, "w", method) as target:
        for i, size in enumerate((0, 1, 100, 5000)):
            with target.open(zipfile.ZipInfo(f"archive/ünï/{i}"), "w", force_zip64=force_zip64) as record:
                record.write(bytes(range(256)) * (size // 256 + 1))
        target.comment = comment
    return path


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("comment", [b"", b"a comment"])
@pytest.mark.parametrize("wide", [False, True])
def test_the_same_records_as_the_standard_library(tmp_path, method, comment, wide):
    path = archive(tmp_path / "a.zip", method, comment, wide)
    file = MappedFile(path)
    found = read_directory(file)
    with zipfile.ZipFile(path) as expected:
        assert list(found) == expected.namelist()
        for name in found:
            info = expected.getinfo(name)
            assert (found[name].packed, found[name].size) == (info.compress_size, info.file_size)
            assert bytes(read_record(file, found[name])) == expected.read(name)


def test_the_records_of_torch(tmp_path):
    torch.save({"a": torch.ones(1000), "b": torch.zeros(3)}, tmp_path / "a.pt")
    found = read_directory(MappedFile(tmp_path / "a.pt"))
    with zipfile.ZipFile(tmp_path / "a.pt") as expected:
        assert {name: record.size for name, record in found.items()} == {
            i.filename: i.file_size for i in expected.infolist()
        }


def test_numbers_over_4_gb_come_from_the_zip64_field():
    narrow = 0xFFFFFFFF
    field = (1).to_bytes(2, "little") + (24).to_bytes(2, "little")
    field += b"".join(number.to_bytes(8, "little") for number in (5 << 32, 6 << 32, 7 << 32))
    other = b"\x99\x99\x02\x00ab"
    assert apply_zip64(1, narrow, narrow, narrow, other + field) == (1, 6 << 32, 5 << 32, 7 << 32)
    assert apply_zip64(1, 2, narrow, 3, field) == (1, 2, 5 << 32, 3)
    assert apply_zip64(1, 2, 3, 4, b"") == (1, 2, 3, 4)


def deflated(path, size, mentions=1):
    buffer = io.BytesIO()
    tensor = torch.zeros(size)
    torch.save({str(i): tensor[i:] for i in range(mentions)}, buffer)
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    return path


def test_a_deflated_record_is_unpacked_once_for_all_of_its_tensors(tmp_path):
    found = read_weights(deflated(tmp_path / "a.pt", 1 << 20, mentions=20)).content
    assert len({tensor.untyped_storage().data_ptr() for tensor in found.values()}) == 1


def test_a_record_that_unpacks_to_far_more_than_the_file_is_refused_before_it_is_unpacked(tmp_path):
    with pytest.raises(UserError, match="far more memory than a file of its size may need"):
        read_weights(deflated(tmp_path / "a.pt", 1 << 24))


def test_a_wrong_checksum_is_refused(tmp_path):
    path = deflated(tmp_path / "a.pt", 100)
    file = MappedFile(path)
    name, record = next((name, record) for name, record in read_directory(file).items() if name.endswith("data/0"))
    record.checksum ^= 1
    with pytest.raises(UserError, match="cut short or damaged"):
        read_record(file, record)
    assert name


def test_reading_a_text_of_protocol_0_imports_no_module():
    """`bytes.decode` imports an encoding's module at its first use, and a stranger's file must import nothing."""
    program = (
        "import sys; from sd.checkpoints.pickles.opcodes import scan_program; before = set(sys.modules);"
        "print(scan_program(b'V\\\\u00e9\\n.', 0, 9)[0][0][1], *set(sys.modules) - before)"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, encoding="utf-8")
    assert run.stdout.strip() == "é", run.stderr
