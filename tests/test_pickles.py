"""The careful reader of torch.save files: the same tensors as torch.load, and nothing run."""

import io
import pickle
import random
import subprocess
import zipfile

import numpy as np
import pytest
import torch

from sd.errors import UserError
from sd.weight_files import read_weights

ran = []


def forbidden(*args):
    """What a hostile pickle would call, were it let."""
    ran.append(args)


class Call:
    """Pickles as a call of `function(*args)`."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def save(content, path, **options):
    torch.save(content, path, **options)
    return path


def tensors():
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(6, 4, generator=generator)
    return {
        "fp32": base,
        "fp16": base.half(),
        "bf16": base.bfloat16(),
        "fp64": base.double(),
        "transposed": base.t(),
        "a view": base[2:5, 1:3],
        "int64": torch.arange(5),
        "int32": torch.arange(5, dtype=torch.int32),
        "uint8": torch.arange(5, dtype=torch.uint8),
        "bool": torch.tensor([True, False]),
        "empty": torch.empty(0),
        "scalar": torch.tensor(2.5),
        "parameter": torch.nn.Parameter(base + 1),
    }


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_same_tensors_as_torch_load(tmp_path, zipped, protocol):
    path = tmp_path / "weights"
    save(tensors(), path, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    found, expected = read_weights(path).content, torch.load(path, weights_only=False)
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert tensor.dtype == expected[name].dtype
        assert torch.equal(tensor, expected[name]), name


def test_any_root_name_and_compressed_entries(tmp_path):
    buffer = io.BytesIO()
    torch.save(tensors(), buffer)  # to a buffer the root is `archive`, to a file its stem
    (tmp_path / "a.ckpt").write_bytes(buffer.getvalue())
    with (
        zipfile.ZipFile(buffer) as source,
        zipfile.ZipFile(tmp_path / "b.ckpt", "w", zipfile.ZIP_DEFLATED) as target,
    ):
        assert "archive/data.pkl" in source.namelist()
        for name in source.namelist():
            target.writestr(name.replace("archive", "another name"), source.read(name))
    for name in ("a.ckpt", "b.ckpt"):
        assert torch.equal(read_weights(tmp_path / name).content["a view"], tensors()["a view"])


def test_entries_that_are_not_aligned(tmp_path):
    buffer = io.BytesIO()
    torch.save(tensors(), buffer)
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(tmp_path / "a.ckpt", "w") as target:
        for name in source.namelist():  # zipfile pads nothing, so most storages begin at odd places
            target.writestr(name, source.read(name))
    for name, tensor in read_weights(tmp_path / "a.ckpt").content.items():
        assert torch.equal(tensor, tensors()[name])


def test_a_state_dict_with_attributes_and_what_else_trainers_save(tmp_path):
    network = torch.nn.Linear(3, 2)  # its state dict carries `_metadata`
    content = {
        "state_dict": network.state_dict(),
        "score": np.float64(0.5),
        "array": np.arange(3.0),
        "size": torch.Size([1, 2]),
        "set": {1, 2},
        "list": [torch.nn.ParameterDict({"*": torch.nn.Parameter(torch.ones(2, 768))})],
    }
    found = read_weights(save(content, tmp_path / "a.ckpt")).content
    assert torch.equal(found["state_dict"]["weight"], network.weight)
    assert not hasattr(found["state_dict"], "_metadata")
    assert found["size"] == (1, 2)
    assert found["set"] == {1, 2}
    assert isinstance(found["score"], object)
    assert not isinstance(found["score"], np.generic)  # held, not made
    assert not isinstance(found["array"], np.ndarray)


def test_tensors_are_the_files_own_pages_and_writing_to_them_leaves_it_alone(tmp_path):
    path = save({"a": torch.ones(1000)}, tmp_path / "a.ckpt")
    before = path.read_bytes()
    found = read_weights(path)
    tensor = found.content["a"]
    assert 0 < tensor.data_ptr() - found.file.address < len(before)
    tensor += 1
    assert float(tensor.sum()) == 2000
    assert path.read_bytes() == before
    assert float(read_weights(path).content["a"].sum()) == 1000


HOSTILE = {
    "posix.system": Call(subprocess.os.system, "echo"),
    "builtins.eval": Call(eval, "1"),
    "builtins.exec": Call(exec, "1"),
    "builtins.getattr": Call(getattr, "", "upper"),
    "builtins.print": Call(print, "ran"),
    "subprocess.Popen": Call(subprocess.Popen, ["true"]),
    "torch.serialization.load": Call(torch.load, "x"),
    "test_pickles.forbidden": Call(forbidden, "x"),
    "pickle.loads": Call(pickle.loads, b"N."),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize(
    ("container", "protocol"),
    [("zip", 2), ("zip", 4), ("legacy", 2), ("legacy", 4), ("plain", 0), ("plain", 2), ("plain", 4)],
)
def test_a_call_is_refused_by_its_name_and_not_made(tmp_path, name, container, protocol):
    path, content = tmp_path / "model.ckpt", {"state_dict": {"a": torch.ones(2)}, "x": HOSTILE[name]}
    if container == "plain":
        path.write_bytes(pickle.dumps(HOSTILE[name], protocol=protocol))
    else:
        save(content, path, _use_new_zipfile_serialization=container == "zip", pickle_protocol=protocol)
    module, function = name.rsplit(".", 1)
    python2 = {"builtins": "__builtin__", "subprocess": "commands"}  # which the older protocols write
    spoken = f"{python2.get(module, module) if protocol < 3 else module}.{function}"
    with pytest.raises(UserError, match="refused") as caught:
        read_weights(path)
    assert spoken in str(caught.value)
    assert ran == []


def as_zip(path, program: bytes):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/data/0", b"\0" * 64)
    return path


DICTIONARY = b"ccollections\nOrderedDict\n"
STORAGE = b"ctorch\nFloatStorage\n"
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"
STATE = b"}X\x0b\x00\x00\x00__setitem__K\x01s"  # {"__setitem__": 1}
TENSOR_ID = b"(X\x07\x00\x00\x00storage" + STORAGE + b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x10tQ"

MALFORMED = {
    "attributes of a known class": b"\x80\x02" + DICTIONARY + b"N" + STATE + b"\x86b.",
    "state of a known class": b"\x80\x02" + DICTIONARY + STATE + b"b.",
    "attributes of a storage class": b"\x80\x02" + STORAGE + b"N" + STATE + b"\x86b.",
    "a class by its dotted path": b"\x80\x04\x8c\x0bcollections\x8c\x20OrderedDict.fromkeys.__globals__\x93.",
    "a registered extension": b"\x80\x02\x82\x01.",
    "an instance of the old kind": b"(S'true'\niposix\nsystem\n.",
    "a call of a string": b"\x80\x02X\x01\x00\x00\x00a)R.",
    "a call of a tensor": b"\x80\x02" + TENSOR_ID + b")R.",
    "a view past the storage": b"\x80\x02" + REBUILD + b"(" + TENSOR_ID + b"K\x0eK\x03\x85K\x01\x85\x89NtR.",
    "a view before the storage": b"\x80\x02"
    + REBUILD
    + b"("
    + TENSOR_ID
    + b"J\xff\xff\xff\xffK\x01\x85K\x01\x85\x89NtR.",
    "a storage that is none": b"\x80\x02" + REBUILD + b"(K\x01K\x00K\x03\x85K\x01\x85\x89NtR.",
    "a storage longer than its entry": b"\x80\x02" + TENSOR_ID.replace(b"K\x10", b"K\xff") + b".",
    "a storage of negative length": b"\x80\x02" + TENSOR_ID.replace(b"K\x10", b"J\xff\xff\xff\xff") + b".",
    "a storage without an entry": b"\x80\x02" + TENSOR_ID.replace(b"\x000X", b"\x009X") + b".",
    "no end": b"\x80\x02}",
    "nothing": b"",
}


def test_the_parts_of_the_malformed_programs_are_well_formed(tmp_path):
    whole = b"\x80\x02" + REBUILD + b"(" + TENSOR_ID + b"K\x0dK\x03\x85K\x01\x85\x89NtR."
    assert torch.equal(read_weights(as_zip(tmp_path / "a.ckpt", whole)).content, torch.zeros(3))
    assert len(read_weights(as_zip(tmp_path / "b.ckpt", b"\x80\x02" + TENSOR_ID + b".")).content) == 16
    with_state = b"\x80\x02" + DICTIONARY + b")R" + STATE + b"b."
    assert read_weights(as_zip(tmp_path / "c.ckpt", with_state)).content == {}


@pytest.mark.parametrize("program", MALFORMED)
def test_malformed_programs_are_one_sentence_and_change_no_class(tmp_path, program):
    from sd import pickles

    classes = {name: dict(vars(kind)) for name, kind in pickles.KNOWN.items()}
    with pytest.raises(UserError):
        read_weights(as_zip(tmp_path / "a.ckpt", MALFORMED[program]))
    assert {name: dict(vars(kind)) for name, kind in pickles.KNOWN.items()} == classes


def test_no_name_on_the_list_is_more_than_data():
    from sd import pickles

    for name, kind in pickles.KNOWN.items():
        assert kind.__module__ == "sd.pickles", name
        assert "__setstate__" in dir(kind)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_every_cut_is_one_sentence(tmp_path, zipped):
    whole = save(tensors(), tmp_path / "whole", _use_new_zipfile_serialization=zipped).read_bytes()
    path = tmp_path / "cut.ckpt"
    for length in [1, 2, 3, 10, 100, *range(200, len(whole), 97), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(UserError):
            read_weights(path)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_damage_anywhere_is_one_sentence_or_other_numbers(tmp_path, zipped):
    whole = save(tensors(), tmp_path / "whole", _use_new_zipfile_serialization=zipped).read_bytes()
    path, chance, refused = tmp_path / "damaged.ckpt", random.Random(0), 0
    for _ in range(400):
        damaged = bytearray(whole)
        damaged[chance.randrange(len(whole))] = chance.randrange(ord("r"))  # not `r`: it asks for any amount of memory
        path.write_bytes(damaged)
        try:
            read_weights(path)
        except UserError:
            refused += 1
    assert refused > 20
