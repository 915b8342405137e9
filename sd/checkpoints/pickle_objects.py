"""What stands for the Python objects that a pickle names: classes that can only hold data.

what tensors are made of    becomes tensors (`KNOWN`)
Python's own kinds of data  become stand-ins (`PLAIN`): dates, paths, what argparse found
other modules' classes      become stand-ins: trainers save their settings and callbacks beside the weights
any other name              is refused: all functions, and the rest of what Python brings
"""

import sys
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING  # Python 2's names, which old protocols write

import torch
from torch import Tensor

STORAGES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
DTYPES = {name: kind for name, kind in vars(torch).items() if isinstance(kind, torch.dtype)}
NUMPY_DTYPES = {
    "f8": torch.float64,
    "f4": torch.float32,
    "f2": torch.float16,
    "i8": torch.int64,
    "i4": torch.int32,
    "i2": torch.int16,
    "i1": torch.int8,
    "u1": torch.uint8,
    "b1": torch.bool,
}


class Inert:
    """Holds what the pickle said and does nothing with it. `args`: of the call; `state`: what was set afterwards.

    Every class a pickle can reach defines `__setstate__`: without one, the pickle could set attributes of the class.
    """

    def __new__(cls, *args, **kwargs):
        self = object.__new__(cls)
        self.args, self.state = args, None
        return self

    def __setstate__(self, state):
        self.state = state


class StandIn(dict):
    """An object of a class that is not here. A dictionary, for the case that the class was one (EasyDict and such)."""

    def __new__(cls, *args, **kwargs):
        self = dict.__new__(cls)
        self.args, self.state = args, None
        return self

    def __init__(self, *args, **kwargs):
        pass

    def __setstate__(self, state):
        self.state = state

    def put(self, value):
        """Leaves out what a list, a deque or a set of its own kind holds."""

    append = extend = add = put
    __hash__, __eq__ = object.__hash__, object.__eq__  # enumerations and paths are keys of dictionaries


class ScriptObject(Inert):
    """An object of a class that a TorchScript archive describes itself: a module, with its tensors in `state`."""


class Dictionary(dict):
    """An OrderedDict without the attributes that state dicts carry (`_metadata`)."""

    def __new__(cls, items=(), *_):
        return dict.__new__(cls)

    def __init__(self, items=(), *_):
        super().__init__(() if isinstance(items, type) else items)  # a defaultdict's first argument is a type

    def __setstate__(self, state):
        pass


class Size(Inert):
    def __new__(cls, sizes):
        return tuple(sizes)


class Set(Inert):
    def __new__(cls, items=()):
        return set(items)


class RebuildTensor(Inert):
    """A view of a storage, which is a 1-D tensor here. torch checks that the view stays inside it."""

    def __new__(cls, storage, offset, size, stride, requires_grad=False, hooks=None, bits=None):
        if not isinstance(storage, Tensor) or bits:
            raise ValueError("a tensor without a plain storage")
        return storage.as_strided(size, stride, offset)


class RebuildParameter(Inert):
    def __new__(cls, data, *_):
        return data


class RebuildFromType(Inert):
    """A tensor of a class of its own, or with attributes: what it was made by, that class, the arguments, the rest."""

    def __new__(cls, rebuild, _, args, *__):
        if not (isinstance(rebuild, type) and issubclass(rebuild, Inert)):
            raise ValueError("a tensor that is made by something unknown")
        return rebuild(*args)


class RebuildFromArray(Inert):
    """A tensor that was on a Mac's GPU or on a TPU: a numpy array on its way, and the dtype that it had."""

    def __new__(cls, array, dtype, *_):
        return array.tensor().to(dtype.dtype)


class RebuildFromTensor(Inert):
    """The same, as later versions of torch write it."""

    def __new__(cls, tensor, dtype, *_):
        return tensor.to(dtype.dtype)


class Array(Inert):
    """A numpy array. Its state: a version, the shape, the dtype, whether columns come first, and the bytes."""

    def tensor(self) -> Tensor:
        _, shape, kind, columns_first, data = self.state
        return tensor_of(data, kind, shape, columns_first)


class BufferArray(Array):
    """The same as protocol 5 writes it: the bytes, the dtype, the shape, and "C" or "F"."""

    def tensor(self) -> Tensor:
        data, kind, shape, order = self.args
        return tensor_of(data, kind, shape, order == "F")


def tensor_of(data: bytes, kind: Inert, shape: tuple[int, ...], columns_first: bool) -> Tensor:
    """kind: a numpy.dtype: its args begin with a name such as "f4", its state says the order of bytes second."""
    if kind.state[1] == ">" or not isinstance(data, (bytes, bytearray)) or not all(type(n) is int for n in shape):
        raise ValueError("an array of a kind that is not read here")
    numbers = torch.frombuffer(bytearray(data), dtype=NUMPY_DTYPES[kind.args[0]]) if data else torch.empty(0)
    if columns_first:
        return numbers.reshape(shape[::-1]).permute(*reversed(range(len(shape))))
    return numbers.reshape(shape)


class NoBytes(Inert):
    """How protocol 2 writes b"": as a call of `bytes`."""

    def __new__(cls):
        return b""


class Encoded(Inert):
    """How it writes any other bytes: as a text in Latin-1."""

    def __new__(cls, text, encoding):
        return str.encode(text, encoding) if encoding == "latin1" else super().__new__(cls, text, encoding)


KNOWN = {
    "collections.OrderedDict": Dictionary,
    "collections.defaultdict": Dictionary,
    "collections.Counter": Dictionary,
    "builtins.dict": Dictionary,
    "builtins.set": Set,
    "builtins.bytes": NoBytes,
    "_codecs.encode": Encoded,
    "torch.Size": Size,
    "torch.device": Inert,
    "torch._utils._rebuild_tensor": RebuildTensor,
    "torch._utils._rebuild_tensor_v2": RebuildTensor,
    "torch._utils._rebuild_parameter": RebuildParameter,
    "torch._utils._rebuild_parameter_with_state": RebuildParameter,
    "torch._utils._rebuild_device_tensor_from_numpy": RebuildFromArray,
    "torch._utils._rebuild_xla_tensor": RebuildFromArray,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": RebuildFromTensor,
    "torch._tensor._rebuild_from_type_v2": RebuildFromType,
    "torch.nn.modules.container.ParameterDict": Inert,
    **{f"torch.jit._pickle.build_{kind}list": Inert for kind in ("int", "double", "bool", "tensor")},
    "torch.jit._pickle.restore_type_tag": Inert,
    "numpy.dtype": Inert,
    "numpy.ndarray": Inert,
    # numpy 2 put an underscore before `core`.
    **{f"numpy.{core}.multiarray._reconstruct": Array for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": BufferArray for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": Inert for core in ("core", "_core")},
    # One class for each dtype: what a storage is named by is all that is taken from it.
    **{f"torch.{name}": type(name, (Inert,), {"dtype": dtype}) for name, dtype in (STORAGES | DTYPES).items()},
}
PLAIN = set(
    """
    argparse.Namespace types.SimpleNamespace collections.deque collections.ChainMap collections.UserDict
    collections.UserList copyreg._reconstructor re._compile random.Random time.struct_time http.HTTPStatus
    datetime.date datetime.time datetime.datetime datetime.timedelta datetime.timezone zoneinfo.ZoneInfo
    decimal.Decimal fractions.Fraction uuid.UUID uuid.SafeUUID ipaddress.IPv4Address ipaddress.IPv6Address
    builtins.object builtins.bool builtins.int builtins.float builtins.complex builtins.str
    builtins.bytearray builtins.list builtins.tuple builtins.frozenset builtins.range builtins.slice
    builtins.Ellipsis builtins.NotImplemented
    numpy.bool numpy.bool_ numpy.int8 numpy.int16 numpy.int32 numpy.int64 numpy.uint8 numpy.uint16 numpy.uint32
    numpy.uint64 numpy.float16 numpy.float32 numpy.float64 numpy.longdouble numpy.complex64 numpy.complex128
    numpy.str_ numpy.bytes_ numpy.object_ numpy.datetime64 numpy.timedelta64 numpy.record numpy.rec.recarray
    numpy.matrix numpy.random._pickle.__randomstate_ctor numpy.random._pickle.__generator_ctor
    numpy.random._pickle.__bit_generator_ctor numpy.random.bit_generator.__pyx_unpickle_SeedSequence
    """.split()
) | {
    f"{module}.{kind}Path"
    for module in ("pathlib", "pathlib._local")  # the latter in Python 3.13
    for kind in ("", "Pure", "Posix", "PurePosix", "Windows", "PureWindows")
}


def accepted(module: str, name: str) -> type | None:
    """The class that stands for a name in a pickle; None for what is refused."""
    if module.split(".")[0] == "__torch__":
        return ScriptObject
    module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
    full = f"{module}.{name}"
    if full in KNOWN:
        return KNOWN[full]
    pythons_own = module.split(".")[0] in sys.stdlib_module_names
    is_class = name.rpartition(".")[2].lstrip("_")[:1].isupper()  # as Python's programmers name them
    if full in PLAIN or (is_class and not pythons_own):
        return type(name, (StandIn,), {"__module__": module})  # one for each name, as classes too are keys
    return None
