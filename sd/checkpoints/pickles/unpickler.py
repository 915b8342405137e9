"""The second stage: a scanned program runs on a stack machine that creates only inert descriptions.

What is on the stack is always one of: None, bool, int, float, str, bytes, list, dict, tuple, set, frozenset,
GlobalName, InertObject and StorageDescription, each of exactly that type. No attribute is ever set but
`InertObject.state`, nothing is called but the functions of `objects.ALLOWED`, and no tensor exists yet.
"""

import pickle
from pathlib import Path
from typing import Any

from sd.checkpoints.pickles.objects import (
    Charge,
    GlobalName,
    InertObject,
    StorageDescription,
    as_key,
    describe_call,
    resolve_name,
)
from sd.checkpoints.pickles.opcodes import MOST_OPERATIONS, PUTS, Operation
from sd.utils.errors import UserError


class RestrictedUnpickler:
    """Runs scanned programs. storages: the descriptions of storages that they mentioned, in order.

    charge: called with the bytes that a copy will take, before it is made. left: how many operations the programs of
    one file may still have.
    """

    def __init__(self, path: Path, charge: Charge):
        self.path, self.charge, self.left = path, charge, MOST_OPERATIONS
        self.storages: list[StorageDescription] = []
        self.names: dict[tuple[str, str], GlobalName] = {}
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self, operations: list[Operation]) -> Any:
        """Returns the object that a program builds. May raise any exception where the program is malformed."""
        self.stack, self.marks, self.memo = [], [], {}
        stack, memo = self.stack, self.memo
        for opcode, argument in operations:
            if opcode in PUTS:  # these two are most of a program
                memo[argument] = stack[-1]
            elif opcode in VALUES:
                stack.append(argument)
            else:
                ACTIONS[opcode](self, argument)
        return self.pop()

    def pop(self) -> Any:
        if self.marks and self.marks[-1] == len(self.stack):
            raise ValueError("it takes a value that it never made")
        return self.stack.pop()

    def pop_items(self) -> list[Any]:
        """Removes and returns the values since the last mark."""
        mark = self.marks.pop()
        items = self.stack[mark:]
        del self.stack[mark:]
        return items

    # Values

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def push_global(self, names: tuple[str, str]) -> None:
        found = self.names.get(names)
        if found is None:
            found = resolve_name(*names)
            if found is None:
                raise UserError(
                    f"{self.path} is refused: its pickle wants to use {'.'.join(names)[:200]}, which weights do not "
                    "need and which could run a program; nothing of it was run."
                )
            self.names[names] = found
        self.stack.append(found)

    def push_stack_global(self, _) -> None:
        name, module = self.pop(), self.pop()
        if type(module) is not str or type(name) is not str:
            raise ValueError("it names something by a value that is no text")
        self.push_global((module, name))

    def push_memo(self, index: int) -> None:
        self.stack.append(self.memo[index])

    def append_memo(self, _) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def push_mark(self, _) -> None:
        self.marks.append(len(self.stack))

    def push_storage(self, _) -> None:
        fields = self.pop()
        if type(fields) is not tuple or len(fields) < 2:
            raise ValueError("it mentions a storage without a description")
        if fields[0] == "module":  # torch before 0.4 wrote the source text of whole networks
            self.stack.append(fields[1])
            return
        self.storages.append(StorageDescription(fields))
        self.stack.append(self.storages[-1])

    # Containers

    def push_tuple(self, count: int) -> None:
        items = [self.pop() for _ in range(count)]
        self.stack.append(tuple(reversed(items)))

    def fill_list(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is list:
            target += items
        elif not isinstance(
            target, InertObject
        ):  # what a list, a deque or a set of a class of its own holds is dropped
            raise ValueError("it appends to a value that is no list")

    def fill_set(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is set:
            target.update(map(as_key, items))
        elif not isinstance(target, InertObject):
            raise ValueError("it adds to a value that is no set")

    def fill_dict(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise ValueError("it sets an item of a value that is no dictionary")
        for key, value in zip(items[::2], items[1::2]):
            target[as_key(key)] = value

    def set_item(self, _) -> None:
        value, key = self.pop(), self.pop()
        self.fill_dict([key, value])

    def push_dict(self, _) -> None:
        items = self.pop_items()
        self.stack.append({})
        self.fill_dict(items)

    # Calls, none of which is made

    def describe(self, function: Any, args: Any) -> None:
        if type(function) is not GlobalName or type(args) is not tuple:
            raise ValueError("it calls something that has no name")
        self.stack.append(describe_call(function, args, self.charge))

    def reduce(self, _) -> None:
        args, function = self.pop(), self.pop()
        self.describe(function, args)

    def make_object_with_keywords(self, _) -> None:
        self.pop()
        self.reduce(None)

    def set_state(self, _) -> None:
        state, target = self.pop(), self.stack[-1]
        if isinstance(target, InertObject):
            target.state = state
        elif type(target) is not dict:
            raise ValueError("it sets attributes of a value that has none")


VALUES = {  # opcodes whose argument is the value
    opcode[0]
    for opcode in (
        *(pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.INT, pickle.LONG, pickle.LONG1, pickle.LONG4),
        *(pickle.FLOAT, pickle.BINFLOAT, pickle.STRING, pickle.BINSTRING, pickle.SHORT_BINSTRING),
        *(pickle.UNICODE, pickle.BINUNICODE, pickle.SHORT_BINUNICODE, pickle.BINUNICODE8),
        *(pickle.BINBYTES, pickle.SHORT_BINBYTES, pickle.BINBYTES8, pickle.BYTEARRAY8),
    )
}
Unpickler = RestrictedUnpickler
ACTIONS = {
    opcode[0]: action
    for opcode, action in {
        pickle.PROTO: lambda self, _: None,
        pickle.FRAME: lambda self, _: None,
        pickle.STOP: lambda self, _: None,
        pickle.NONE: lambda self, _: self.push(None),
        pickle.NEWTRUE: lambda self, _: self.push(True),
        pickle.NEWFALSE: lambda self, _: self.push(False),
        pickle.EMPTY_TUPLE: lambda self, _: self.push(()),
        pickle.EMPTY_LIST: lambda self, _: self.push([]),
        pickle.EMPTY_DICT: lambda self, _: self.push({}),
        pickle.EMPTY_SET: lambda self, _: self.push(set()),
        pickle.POP: lambda self, _: self.pop(),
        pickle.DUP: lambda self, _: self.push(self.stack[-1]),
        pickle.MARK: Unpickler.push_mark,
        pickle.POP_MARK: lambda self, _: self.pop_items(),
        **dict.fromkeys([pickle.GET, pickle.BINGET, pickle.LONG_BINGET], Unpickler.push_memo),
        pickle.MEMOIZE: Unpickler.append_memo,
        pickle.TUPLE: lambda self, _: self.push(tuple(self.pop_items())),
        pickle.TUPLE1: lambda self, _: self.push_tuple(1),
        pickle.TUPLE2: lambda self, _: self.push_tuple(2),
        pickle.TUPLE3: lambda self, _: self.push_tuple(3),
        pickle.LIST: lambda self, _: self.push(self.pop_items()),
        pickle.DICT: Unpickler.push_dict,
        pickle.FROZENSET: lambda self, _: self.push(frozenset(map(as_key, self.pop_items()))),
        pickle.APPEND: lambda self, _: self.fill_list([self.pop()]),
        pickle.APPENDS: lambda self, _: self.fill_list(self.pop_items()),
        pickle.ADDITEMS: lambda self, _: self.fill_set(self.pop_items()),
        pickle.SETITEM: Unpickler.set_item,
        pickle.SETITEMS: lambda self, _: self.fill_dict(self.pop_items()),
        pickle.GLOBAL: Unpickler.push_global,
        pickle.STACK_GLOBAL: Unpickler.push_stack_global,
        pickle.BINPERSID: Unpickler.push_storage,
        pickle.REDUCE: Unpickler.reduce,
        pickle.NEWOBJ: Unpickler.reduce,
        pickle.NEWOBJ_EX: Unpickler.make_object_with_keywords,
        pickle.BUILD: Unpickler.set_state,
    }.items()
}
