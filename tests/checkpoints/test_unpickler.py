"""The careful reader of torch.save files: the same tensors as torch.load, and nothing run."""

import argparse
import code
import collections
import ctypes
import datetime
import decimal
import enum
import fractions
import functools
import http
import importlib
import io
import operator
import pathlib
import pickle
import random
import re
import shutil
import subprocess
import types
import uuid
import webbrowser
import zipfile

import numpy as np
import pytest
import torch

from sd.adapters.embedding_files import read_embeddings
from sd.checkpoints.pickles.objects import (
    ALLOWED,
    GlobalName,
    InertObject,
    ScriptObject,
    StorageDescription,
    describe_call,
)
from sd.checkpoints.weight_files import read_weights
from sd.utils.errors import UserError

CLASSES = (InertObject, ScriptObject, GlobalName, StorageDescription)  # all that a pickle's objects can become
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


def on_a_mac(array, dtype):
    """How torch writes a tensor of a device that is not here (`torch.Tensor.__reduce_ex__`)."""
    return Call(torch._utils._rebuild_device_tensor_from_numpy, array, dtype, "mps:0", False)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_tensors_that_were_saved_on_a_mac(tmp_path, zipped, protocol):
    numbers = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
    arrays = {
        "plain": numbers,
        "half": numbers.astype(np.float16),
        "columns first": np.asfortranarray(numbers),
        "a view": numbers[1:, ::2],
        "whole": (numbers * 100).astype(np.int64),
        "empty": numbers[:0],
        "scalar": numbers[0, 0, :1].reshape(()),
    }
    content = {name: on_a_mac(array, torch.from_numpy(array).dtype) for name, array in arrays.items()}
    content["stored as float32"] = on_a_mac(numbers, torch.bfloat16)  # which numpy does not have
    options = {"_use_new_zipfile_serialization": zipped, "pickle_protocol": protocol}
    found = read_weights(save({"string_to_param": content, "dtype": torch.float16}, tmp_path / "a.pt", **options))
    tensors = found.content["string_to_param"]
    for name, array in arrays.items():
        assert tensors[name].dtype == torch.from_numpy(array).dtype, name
        assert torch.equal(tensors[name], torch.from_numpy(array)), name
    assert torch.equal(tensors["stored as float32"], torch.from_numpy(numbers).bfloat16())


def test_an_embedding_that_was_trained_on_a_mac_is_loaded(tmp_path):
    content = {"string_to_param": {"*": on_a_mac(np.full((1, 192), 0.01, np.float32), torch.float32)}}
    found = read_embeddings(save(content, tmp_path / "mac.pt"), 192)
    assert torch.equal(found.vectors["mac"], torch.full((1, 192), 0.01))


@pytest.mark.parametrize(
    "spoiled",
    [
        np.ones(3, ">f4"),  # bytes in the other order
        np.ones(3, np.complex64),
        np.array([{}]),
        np.array(["a"]),
        [1.0, 2.0],
    ],
    ids=["big-endian", "complex", "objects", "texts", "a list"],
)
def test_arrays_that_are_no_weights_are_refused(tmp_path, spoiled):
    with pytest.raises(UserError):
        read_weights(save({"a": on_a_mac(spoiled, torch.float32)}, tmp_path / "a.pt"))


def test_a_tensor_with_attributes(tmp_path):
    tensor, parameter = torch.arange(6.0), torch.nn.Parameter(torch.ones(2))
    tensor.note, parameter.note = "kept by the trainer", "and here"
    found = read_weights(save({"a": tensor, "b": parameter}, tmp_path / "a.pt")).content
    assert torch.equal(found["a"], tensor)
    assert torch.equal(found["b"], parameter)


class Settings(dict):
    """What trainers keep their settings in: EasyDict, AttributeDict and the like."""

    def __init__(self, **values):
        super().__init__(values)
        self.__dict__ = self


class Colour(enum.Enum):
    RED = 1


HARMLESS = {
    "argparse": argparse.Namespace(lr=1e-4, images=["a", "b"]),
    "simple": types.SimpleNamespace(a=1),
    "date": datetime.datetime(2023, 5, 1, tzinfo=datetime.timezone(datetime.timedelta(hours=2))),
    "day": datetime.date(2023, 5, 1),
    "path": pathlib.PurePosixPath("/home/me/photos"),
    "windows path": pathlib.PureWindowsPath(r"C:\photos"),
    "here": pathlib.Path("photos"),
    "defaultdict": collections.defaultdict(list, {"a": [1]}),
    "counter": collections.Counter("abca"),
    "deque": collections.deque([1, 2], 5),
    "uuid": uuid.UUID(int=5),
    "decimal": decimal.Decimal("0.1"),
    "fraction": fractions.Fraction(1, 3),
    "complex": 1j,
    "frozen": frozenset([1, 2]),
    "bytes": b"\0\xff",
    "bytearray": bytearray(b"abc"),
    "range": range(3),
    "slice": slice(1, 2),
    "types": [int, float, np.float32, torch.float16, torch.bfloat16],
    "numpy numbers": [np.float32(0.5), np.int64(3), np.bool_(True)],
    "arrays": [np.arange(3), np.array(["a", "b"]), np.array([{}]), np.zeros(2, "f4,i4")],
    "random states": [np.random.RandomState(0), np.random.default_rng(0), random.Random(0).getstate()],
    "devices": [torch.device("cpu"), torch.__version__, torch.Size([2])],
    "ours": Settings(lr=1, nested=Settings(a=2)),
    "an enumeration": [Colour.RED, http.HTTPStatus.OK],
    "keys": {Colour.RED: 1, pathlib.PurePosixPath("a"): 2, Colour: 3, Settings: 4},
    "regular expression": re.compile("a+"),
    "an exception of a module": UserError("x"),
}


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("what", HARMLESS)
def test_harmless_objects_beside_the_tensors_refuse_nothing(tmp_path, what, protocol):
    content = {"state_dict": {"a": torch.ones(2)}, "beside": HARMLESS[what], "epoch": 3}
    path = save(content, tmp_path / "a.ckpt", pickle_protocol=protocol)
    found = read_weights(path).content
    assert torch.equal(found["state_dict"]["a"], torch.ones(2))
    assert found["epoch"] == 3
    beside = found["beside"]
    plain = (dict, list, tuple, int, float, str, bytes, set, frozenset)
    assert isinstance(beside, (*plain, InertObject)), type(beside)
    if type(beside) not in plain:
        assert type(beside) is InertObject, type(beside)  # nothing that could do anything


def test_weights_in_a_dictionary_of_the_trainers_own_kind(tmp_path):
    found = read_weights(save(Settings(state_dict=Settings(a=torch.ones(2))), tmp_path / "a.ckpt")).content
    assert torch.equal(found["state_dict"]["a"], torch.ones(2))


def test_a_whole_network_instead_of_its_weights_is_named(tmp_path):
    with pytest.raises(UserError, match=r"torch\.nn\.modules\.linear\.Linear.*save its state_dict"):
        read_weights(save(torch.nn.Linear(2, 3), tmp_path / "a.ckpt"))


HOSTILE = {
    "posix.system": Call(subprocess.os.system, "echo"),
    "builtins.eval": Call(eval, "1"),
    "builtins.exec": Call(exec, "1"),
    "builtins.getattr": Call(getattr, "", "upper"),
    "builtins.print": Call(print, "ran"),
    "subprocess.Popen": Call(subprocess.Popen, ["true"]),
    "torch.serialization.load": Call(torch.load, "x"),
    f"{__name__}.forbidden": Call(forbidden, "x"),
    "pickle.loads": Call(pickle.loads, b"N."),
    "builtins.__import__": Call(__import__, "antigravity"),
    "importlib.import_module": Call(importlib.import_module, "antigravity"),
    "functools.partial": Call(functools.partial, print, "ran"),
    "operator.attrgetter": Call(operator.attrgetter, "a"),
    "ctypes.CDLL": Call(ctypes.CDLL, "x"),
    "shutil.rmtree": Call(shutil.rmtree, "x"),
    "code.InteractiveInterpreter": Call(code.InteractiveInterpreter),
    "webbrowser.open": Call(webbrowser.open, "http://localhost"),
    "numpy.load": Call(np.load, "x"),
    "torch.hub.load": Call(torch.hub.load, "x"),
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
    classes = {kind: dict(vars(kind)) for kind in CLASSES}
    with pytest.raises(UserError):
        read_weights(as_zip(tmp_path / "a.ckpt", MALFORMED[program]))
    assert {kind: dict(vars(kind)) for kind in CLASSES} == classes


def test_no_name_on_the_list_is_more_than_data():
    for name, describe in ALLOWED.items():
        assert describe.__module__ == "sd.checkpoints.pickles.objects", name
        made = describe_call(
            GlobalName(name), (("text", "latin1") if name == "_codecs.encode" else ((),)), lambda _: None
        )
        assert type(made) in (dict, set, tuple, bytes, InertObject), name


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
