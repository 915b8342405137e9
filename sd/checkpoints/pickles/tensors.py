"""The third stage: the descriptions that a program returned become tensors, after every number in them is checked.

A count, an offset, a size or a stride is used only once it is known to be an `int` that is not negative, in Python's
own arithmetic, which does not wrap. A tensor is a view of a storage, a storage is bytes of the file, and a view never
reaches past its storage: no byte of a tensor comes from anywhere but the file.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sd.checkpoints.pickles.objects import Charge, GlobalName, InertObject, StorageDescription

DEEPEST = 100  # containers within containers
MOST_DIMENSIONS = 16
LARGEST_INTEGER = 1 << 62

STORAGES = {
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.DoubleStorage": torch.float64,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}
# Without quantized numbers: a view of them that has no scale crashes the process inside of torch.
DTYPES = {
    f"torch.{name}": kind
    for name, kind in vars(torch).items()
    if isinstance(kind, torch.dtype) and not name.startswith(("q", "bits"))
}
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
LEAVES = {type(None), bool, int, float, str, bytes, set, frozenset, GlobalName}
CONTAINERS = {list, dict, tuple}
OPEN = object()  # marks a value under construction

# (dtype, key, count) -> (count,): a storage's numbers in the file
ReadStorage = Callable[[torch.dtype, str, int], Tensor]


class TensorMaker:
    """Replaces the descriptions in what a program made by tensors. charge: as in `objects`."""

    def __init__(self, read_storage: ReadStorage, charge: Charge):
        self.read_storage, self.charge = read_storage, charge
        self.storages: dict[tuple, Tensor] = {}
        self.made: dict[int, Any] = {}  # by the identity of what it was made from
        self.kept: list[Any] = []  # keeps replaced objects alive, so that no identity is used twice

    def make(self, value: Any, depth: int = 0) -> Any:
        """Returns the value with tensors in place of descriptions. Containers are changed in place, except for tuples.

        A container inside itself is replaced by an empty inert object there. Raises ValueError where a description
        does not describe a tensor of this file, or where containers are nested too deeply.
        """
        kind = type(value)
        if kind in LEAVES or (kind in CONTAINERS and not value):
            return value
        place = id(value)
        if (found := self.made.get(place)) is not None:
            return InertObject("a container inside itself") if found is OPEN else found
        if depth > DEEPEST:
            raise ValueError("it is nested too deeply")
        self.made[place] = OPEN
        found = self.made[place] = self.make_new(value, depth + 1)
        if found is not value:
            self.kept.append(value)
        return found

    def make_new(self, value: Any, depth: int) -> Any:
        kind = type(value)
        if kind is StorageDescription:
            return self.make_storage(value)
        if kind is tuple:
            return tuple(self.make(item, depth) for item in value)
        if kind is list:
            value[:] = [self.make(item, depth) for item in value]
            return value
        if kind is InertObject and value.name in REBUILD:
            if value.state is not None or value:
                raise ValueError("it sets attributes of a tensor")
            return REBUILD[value.name](self, value.args, depth)
        for key, item in value.items():
            value[key] = self.make(item, depth)
        if kind is not dict:
            value.args, value.state = self.make(value.args, depth), self.make(value.state, depth)
        return value

    def make_storage(self, description: StorageDescription) -> Tensor:
        what, kind, key, _, count, *views = description.fields
        if what != "storage" or type(kind) is not GlobalName or type(key) is not str:
            raise ValueError("a malformed storage")
        dtype = STORAGES.get(kind.full) or DTYPES.get(kind.full)
        if dtype is None:
            raise ValueError(f"numbers of the kind {kind.full}, which weights of Stable Diffusion 1.x do not have")
        check_integers(count)
        view = views[0] if views else None
        if view is not None:
            _, start, length = view
            check_integers(start, length)
            if start + length > count:
                raise ValueError("a view past its storage")
        if (dtype, key, count) not in self.storages:
            self.storages[dtype, key, count] = self.read_storage(dtype, key, count)
        storage = self.storages[dtype, key, count]
        return storage if view is None else storage[start : start + length]

    def make_view(self, args: tuple, depth: int) -> Tensor:
        """Replaces torch._utils._rebuild_tensor_v2: (storage, offset, size, stride, ...)"""
        storage, offset, size, stride, *rest = args
        storage = self.make(storage, depth)
        if not isinstance(storage, Tensor) or storage.dim() != 1 or (len(rest) > 2 and rest[2]):
            raise ValueError("a tensor without a plain storage")
        if type(size) is not tuple or type(stride) is not tuple or len(size) != len(stride):
            raise ValueError("a tensor without a shape")
        if len(size) > MOST_DIMENSIONS:
            raise ValueError("a tensor of too many dimensions")
        check_integers(offset, *size, *stride)
        count, available = math.prod(size), storage.numel()
        last = offset + sum((length - 1) * step for length, step in zip(size, stride)) if count else offset - 1
        if last >= available or offset > available:
            raise ValueError("a tensor past its storage")
        if count > available:  # an expanded tensor, which grows as soon as it is used
            self.charge(count * storage.itemsize)
        return storage.as_strided(size, stride, offset)

    def make_parameter(self, args: tuple, depth: int) -> Tensor:
        return self.make_tensor(args[0], depth)

    def make_from_type(self, args: tuple, depth: int) -> Tensor:
        """Replaces torch._tensor._rebuild_from_type_v2: (function, class, arguments, attributes)"""
        function, _, inner, *_ = args
        if type(function) is not GlobalName or function.full not in REBUILD:
            raise ValueError("a tensor that is made by something unknown")
        return REBUILD[function.full](self, inner, depth)

    def make_converted(self, args: tuple, depth: int) -> Tensor:
        """Returns a tensor that was on a Mac's GPU or on a TPU: a numpy array or a CPU tensor, and its
        former dtype.
        """
        source, dtype, *_ = args
        tensor = self.make_array(source) if is_array(source) else self.make_tensor(source, depth)
        wanted = DTYPES[dtype.full]
        if wanted != tensor.dtype:
            self.charge(tensor.numel() * wanted.itemsize)
        return tensor.to(wanted)

    def make_tensor(self, value: Any, depth: int) -> Tensor:
        tensor = self.make(value, depth)
        if not isinstance(tensor, Tensor):
            raise ValueError("a tensor that is none")
        return tensor

    def make_array(self, array: InertObject) -> Tensor:
        """Returns a numpy array, by its state: (version, shape, dtype, whether columns come first, bytes).

        Protocol 5 writes it by its arguments: (bytes, dtype, shape, "C" or "F").
        """
        if array.name.endswith("_frombuffer"):
            data, kind, shape, order = array.args
            columns_first = order == "F"
        else:
            _, shape, kind, columns_first, data = array.state
        if type(kind) is not InertObject or kind.name != "numpy.dtype" or kind.state[1] == ">":
            raise ValueError("an array of a kind that is not read here")
        dtype = NUMPY_DTYPES[kind.args[0]]
        if type(data) is not bytes or type(shape) is not tuple or len(shape) > MOST_DIMENSIONS:
            raise ValueError("an array of a kind that is not read here")
        check_integers(*shape)
        if math.prod(shape) * dtype.itemsize != len(data):
            raise ValueError("an array of another size than its bytes")
        self.charge(len(data))
        numbers = torch.frombuffer(bytearray(data), dtype=dtype) if data else torch.empty(0, dtype=dtype)
        if columns_first:
            return numbers.reshape(shape[::-1]).permute(*reversed(range(len(shape))))
        return numbers.reshape(shape)


REBUILD = {
    "torch._utils._rebuild_tensor": TensorMaker.make_view,
    "torch._utils._rebuild_tensor_v2": TensorMaker.make_view,
    "torch._utils._rebuild_parameter": TensorMaker.make_parameter,
    "torch._utils._rebuild_parameter_with_state": TensorMaker.make_parameter,
    "torch._utils._rebuild_device_tensor_from_numpy": TensorMaker.make_converted,
    "torch._utils._rebuild_xla_tensor": TensorMaker.make_converted,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": TensorMaker.make_converted,
    "torch._tensor._rebuild_from_type_v2": TensorMaker.make_from_type,
}


def is_array(value: Any) -> bool:
    return type(value) is InertObject and value.name.startswith("numpy.")


def check_integers(*numbers: Any) -> None:
    """Checks that all values are integers; Python accepts a tensor, a bool or a float in most such places."""
    for number in numbers:
        if type(number) is not int or not 0 <= number < LARGEST_INTEGER:
            raise ValueError("a size that is no number")
