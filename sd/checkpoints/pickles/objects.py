"""Inert replacements of the Python objects that a pickle names: descriptions that only hold data.

`resolve_name` decides which names a program may use at all:

    what tensors are made of    kept for `tensors`, which makes the tensors afterwards (`ALLOWED`)
    Python's own kinds of data  become inert objects (`ALLOWED_DATA`): dates, paths, what argparse found
    other modules' classes      become inert objects: trainers save their settings and callbacks beside the weights
    any other name              is refused: all functions, and the rest of the standard library
"""

import sys
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING  # Python 2's names, which old protocols write
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

LARGEST_KEY = 1 << 60  # integers below it cannot be chosen so that many have one hash


@dataclass(frozen=True, eq=False, slots=True)
class GlobalName:
    """A name that the program mentioned. Nothing is imported for it."""

    full: str  # "module.name", as Python 3 names it


class InertObject(dict):
    """An object of the named class, or the result of the named call. It does nothing.

    name: of the class or function. args: of the call. state: what the program set afterwards, or None. As a dictionary
    it holds the items that the program set, for the case that the class was one (EasyDict and such).
    """

    __slots__ = ("args", "name", "state")

    def __init__(self, name: str, args: tuple = ()):
        self.name, self.args = name, args
        self.state: Any = None

    # Enumerations and paths are keys of dictionaries.
    __hash__ = object.__hash__  # type: ignore[assignment]
    __eq__ = object.__eq__

    def __repr__(self) -> str:
        return f"<inert {self.name}>"


class ScriptObject(InertObject):
    """An object of a class that a TorchScript archive defines itself: a module, with its tensors in `state`."""

    __slots__ = ()


@dataclass(frozen=True, eq=False, slots=True)
class StorageDescription:
    """The program's description of a storage, unchecked: ("storage", type, key, location, count, view)."""

    fields: tuple


Charge = Callable[[int], None]  # called with the number of bytes that a copy will take, before it is made


def make_dict(name: str, args: tuple, charge: Charge) -> dict:
    """Returns an OrderedDict, defaultdict or Counter as a plain dict, without attributes (`_metadata`)."""
    has_items = len(args) > 0 and isinstance(args[0], (dict, list, tuple))  # a defaultdict's first argument is a type
    items = args[0] if has_items else ()
    charge(100 * len(items))
    pairs = items.items() if isinstance(items, dict) else items
    return {as_key(key): value for key, value in pairs}


def make_set(name: str, args: tuple, charge: Charge) -> set:
    (items,) = args or ((),)
    charge(100 * len(items))
    return set(map(as_key, items))


def make_tuple(name: str, args: tuple, charge: Charge) -> tuple:
    """Returns the replacement of a torch.Size, a tuple."""
    (items,) = args
    charge(10 * len(items))
    return tuple(items)


def make_bytes(name: str, args: tuple, charge: Charge) -> bytes | InertObject:
    """Returns b"", which protocol 2 writes as a call of `bytes`."""
    return InertObject(name, args) if args else b""


def encode_text(name: str, args: tuple, charge: Charge) -> bytes | InertObject:
    """Returns the bytes that protocol 2 writes as a text in Latin-1."""
    text, encoding = args
    if type(text) is not str or encoding != "latin1":
        return InertObject(name, args)
    charge(len(text))
    return text.encode("latin-1")


def make_inert(name: str, args: tuple, charge: Charge) -> InertObject:
    return InertObject(name, args)


def make_script_object(name: str, args: tuple, charge: Charge) -> ScriptObject:
    return ScriptObject(name, args)


STORAGE_TYPES = ("Float", "Half", "BFloat16", "Double", "Long", "Int", "Short", "Char", "Byte", "Bool")
DTYPE_NAMES = """
    float float16 float32 float64 half bfloat16 double int int8 int16 int32 int64 long short uint8 uint16 uint32 uint64
    bool complex32 complex64 complex128 cfloat cdouble chalf qint8 quint8 qint32 quint4x2 quint2x4 bits1x8 bits2x4
    bits4x2 bits8 bits16 float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz float8_e8m0fnu float4_e2m1fn_x2
""".split()
ALLOWED: dict[str, Callable[[str, tuple, Charge], Any]] = {
    "collections.OrderedDict": make_dict,
    "collections.defaultdict": make_dict,
    "collections.Counter": make_dict,
    "builtins.dict": make_dict,
    "builtins.set": make_set,
    "builtins.bytes": make_bytes,
    "_codecs.encode": encode_text,
    "torch.Size": make_tuple,
    "torch.device": make_inert,
    "torch._utils._rebuild_tensor": make_inert,
    "torch._utils._rebuild_tensor_v2": make_inert,
    "torch._utils._rebuild_parameter": make_inert,
    "torch._utils._rebuild_parameter_with_state": make_inert,
    "torch._utils._rebuild_device_tensor_from_numpy": make_inert,
    "torch._utils._rebuild_xla_tensor": make_inert,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": make_inert,
    "torch._tensor._rebuild_from_type_v2": make_inert,
    "torch.nn.modules.container.ParameterDict": make_inert,
    **{f"torch.jit._pickle.build_{kind}list": make_inert for kind in ("int", "double", "bool", "tensor")},
    "torch.jit._pickle.restore_type_tag": make_inert,
    "numpy.dtype": make_inert,
    "numpy.ndarray": make_inert,
    # numpy 2 put an underscore before `core`.
    **{f"numpy.{core}.multiarray._reconstruct": make_inert for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": make_inert for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": make_inert for core in ("core", "_core")},
    **{f"torch.{kind}Storage": make_inert for kind in STORAGE_TYPES},
    **{f"torch.{name}": make_inert for name in DTYPE_NAMES},
}
ALLOWED_DATA = set(
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


def resolve_name(module: str, name: str) -> GlobalName | None:
    """Returns the description of a name that a program mentions, or None where that name is refused."""
    if module.split(".")[0] == "__torch__":
        return GlobalName(f"{module}.{name}")
    module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
    full = f"{module}.{name}"
    of_python = module.split(".")[0] in sys.stdlib_module_names
    is_class = name.rpartition(".")[2].lstrip("_")[:1].isupper()  # as Python's programmers name them
    allowed = full in ALLOWED or full in ALLOWED_DATA or (is_class and not of_python)
    return GlobalName(full) if allowed else None


def describe_call(name: GlobalName, args: tuple, charge: Charge) -> Any:
    """Return the replacement of a call of the named class or function: plain data, or an inert object."""
    usual = make_script_object if name.full.startswith("__torch__.") else make_inert
    return ALLOWED.get(name.full, usual)(name.full, args, charge)


def as_key(value: Any) -> Any:
    """Returns the value as a key of a dict: the value itself where hashing it is cheap and safe, otherwise wrapped in
    an inert object.

    A tuple's hash descends into its items without a limit, and large integers can be chosen to have equal hashes.
    """
    kind = type(value)
    if kind is str or kind in KEY_TYPES or (kind is int and abs(value) < LARGEST_KEY):
        return value
    return InertObject("key", (value,))


KEY_TYPES = {str, bytes, float, bool, type(None), GlobalName, InertObject, ScriptObject}
