"""A corpus of hostile and damaged files: `hostile_files()` generates (name, content) pairs, the same each time."""

import itertools
import json
import random
import struct
import zipfile
from collections.abc import Iterator

from fuzz.containers import container_files
from fuzz.programs import (
    CONTAINERS,
    LEGACY_HEAD,
    REBUILD,
    as_legacy,
    as_safetensors,
    as_zip,
    call,
    name,
    number,
    numbers,
    program,
    stack_name,
    storage,
    table,
    tensor,
    text,
)

MARKER = "executed"  # the file that a program would create, if it ran
DANGEROUS = {  # what a hostile pickle calls, and with which arguments
    ("os", "system"): f"touch {MARKER}",
    ("posix", "system"): f"touch {MARKER}",
    ("nt", "system"): f"touch {MARKER}",
    ("subprocess", "Popen"): f"touch {MARKER}",
    ("subprocess", "check_output"): f"touch {MARKER}",
    ("commands", "getoutput"): f"touch {MARKER}",
    ("builtins", "eval"): f"open({MARKER!r}, 'w')",
    ("builtins", "exec"): f"open({MARKER!r}, 'w')",
    ("__builtin__", "eval"): f"open({MARKER!r}, 'w')",
    ("__builtin__", "execfile"): "setup.py",
    ("builtins", "open"): MARKER,
    ("builtins", "compile"): "1",
    ("builtins", "getattr"): "x",
    ("builtins", "setattr"): "x",
    ("builtins", "__import__"): "antigravity",
    ("builtins", "globals"): "x",
    ("builtins", "type"): "x",
    ("builtins", "map"): "x",
    ("builtins", "memoryview"): "x",
    ("builtins", "input"): "x",
    ("builtins", "breakpoint"): "x",
    ("io", "open"): MARKER,
    ("_io", "FileIO"): MARKER,
    ("io", "FileIO"): MARKER,
    ("pathlib", "Path.touch"): MARKER,
    ("importlib", "import_module"): "antigravity",
    ("runpy", "run_path"): "setup.py",
    ("runpy", "_run_code"): "x",
    ("functools", "partial"): "x",
    ("functools", "reduce"): "x",
    ("operator", "attrgetter"): "system",
    ("operator", "methodcaller"): "system",
    ("pickle", "loads"): "x",
    ("_pickle", "loads"): "x",
    ("pickle", "Unpickler"): "x",
    ("marshal", "loads"): "x",
    ("shelve", "open"): MARKER,
    ("dbm", "open"): MARKER,
    ("sqlite3", "connect"): MARKER,
    ("ctypes", "CDLL"): "libc.so.6",
    ("socket", "create_connection"): "127.0.0.1",
    ("urllib.request", "urlopen"): "http://127.0.0.1:9/",
    ("webbrowser", "open"): "http://127.0.0.1:9/",
    ("http.client", "HTTPSConnection"): "127.0.0.1",
    ("ssl", "get_server_certificate"): "127.0.0.1",
    ("shutil", "rmtree"): "nothing",
    ("tempfile", "mkdtemp"): "x",
    ("multiprocessing", "Process"): "x",
    ("threading", "Thread"): "x",
    ("code", "InteractiveInterpreter"): "x",
    ("pdb", "run"): "x",
    ("timeit", "timeit"): "1",
    ("cProfile", "run"): "1",
    ("trace", "Trace"): "x",
    ("doctest", "debug_script"): "1",
    ("pip", "main"): "x",
    ("pty", "spawn"): "true",
    ("platform", "popen"): "true",
    ("types", "FunctionType"): "x",
    ("types", "CodeType"): "x",
    ("copyreg", "add_extension"): "x",
    ("sys", "exit"): "0",
    ("os", "_exit"): "0",
    ("os", "kill"): "0",
    ("torch", "load"): "x",
    ("torch.serialization", "load"): "x",
    ("torch.hub", "load"): "x",
    ("torch.jit", "load"): "x",
    ("torch", "compile"): "x",
    ("torch._dynamo", "optimize"): "x",
    ("torch.utils.cpp_extension", "load_inline"): "x",
    ("torch.storage", "_load_from_bytes"): "x",
    ("torch.fx.graph_module", "reduce_graph_module"): "x",
    ("numpy", "load"): "x",
    ("numpy", "memmap"): MARKER,
    ("numpy.core.multiarray", "fromfile"): "x",
    ("numpy.testing._private.utils", "runstring"): "1",
    ("pandas", "read_pickle"): "x",
    ("joblib", "load"): "x",
    ("dill", "loads"): "x",
    ("cloudpickle", "loads"): "x",
    ("sd.checkpoints.pickles.reader", "read_zip"): "x",
    ("sd.utils.files", "write_torch"): "x",
    ("Evil", "Class.__init__.__globals__"): "x",
    ("collections", "OrderedDict.fromkeys.__globals__"): "x",
    ("torch", "Size.__reduce__"): "x",
}


def hostile_files() -> Iterator[tuple[str, bytes]]:
    for make in (calls, memory, tensors, objects, archives, legacy_files, safetensors_files, sizes):
        for label, data in make():
            yield f"{make.__name__}/{label}", data
    yield from container_files()


def calls() -> Iterator[tuple[str, bytes]]:
    """Every dangerous name, called in every way, in every container."""
    for (module, attribute), argument in DANGEROUS.items():
        by_name, by_stack, args = name(module, attribute), stack_name(module, attribute), text(argument)
        ways = {
            "reduce": program(call(by_name, args)),
            "stack": program(call(by_stack, args), 4),
            "newobj": program(by_name + args + b"\x85\x81"),
            "newobj-ex": program(by_name + args + b"\x85}\x92", 4),
            "inst": b"(" + args + f"i{module}\n{attribute}\n.".encode(),
            "obj": program(b"(" + by_name + args + b"o"),
            "build": program(by_name + b"N" + table(__setstate__=by_name) + b"\x86b"),
            "in-dict": program(table(state_dict=table(a=tensor(), b=call(by_name, args)))),
            "in-id": program(numbers(text("storage"), by_name, text("0"), text("cpu"), 16) + b"Q"),
            "in-type": program(
                call(name("torch._tensor", "_rebuild_from_type_v2"), by_name, by_name, args + b"\x85", b"}")
            ),
            "in-key": program(b"}" + call(by_name, args) + b"K\x01s"),
        }
        for (way, body), (container, wrap) in itertools.product(ways.items(), CONTAINERS.items()):
            yield f"{module}.{attribute}-{way}-{container}", wrap(body)


def memory() -> Iterator[tuple[str, bytes]]:
    """Programs that ask for memory or for time."""
    nested = {
        "tuples": b")" + b"\x85" * 200_000,
        "lists": b"]" * 100_000 + b"a" * 99_999,
        "dicts": b"".join(b"}" + text("a") for _ in range(50_000)) + b"N" + b"s" * 50_000,
        "marks": b"(" * 100_000 + b"t" * 100_000,
        "tuples-as-key": b"}" + b")" + b"\x85" * 200_000 + b"Ns",
        "tuples-in-set": b"\x8f(" + b")" + b"\x85" * 200_000 + b"\x90",
        "calls": name("a", "B") + b")R" + b"".join(b"\x85" + name("a", "B") + b"q\x00" for _ in range(1000)),
    }
    laughs = b")q\x00" + b"".join(b"(" + b"h%c" % i * 10 + b"tq%c" % (i + 1) for i in range(60))
    copies = name("collections", "OrderedDict")
    big = text("a" * 100_000)
    bodies = {
        "memo-long": b"Nr" + struct.pack("<I", 1 << 27),
        "memo-longest": b"Nr\xff\xff\xff\xff",
        "memo-text": b"Np134217728\n",
        "memo-huge-text": b"Np" + b"9" * 4000 + b"\n",
        "memo-negative": b"Np-1\n",
        "get-unknown": b"h\x05",
        "get-text": b"g5\n",
        "text8": b"\x8d" + struct.pack("<Q", 1 << 40) + b"a",
        "bytes8": b"\x8e" + struct.pack("<Q", 1 << 40) + b"a",
        "bytes8-negative": b"\x8e" + b"\xff" * 8,
        "bytearray8": b"\x96" + struct.pack("<Q", 1 << 40) + b"a",
        "text4": b"X\xff\xff\xff\x7fa",
        "frame": b"\x95" + struct.pack("<Q", 1 << 40) + b"N",
        "long4": b"\x8b\xff\xff\xff\x7f",
        "long4-negative": b"\x8b\xff\xff\xff\xff",
        "long4-big": b"\x8b" + struct.pack("<I", 1 << 20) + b"\x7f" * (1 << 20),
        "decimal": b"L" + b"9" * 60_000 + b"L\n",
        "float-text": b"F" + b"9" * 60_000 + b"\n",
        "buffer": b"\x97",
        "readonly": b"N\x98",
        "extension": b"\x82\x01",
        "extension4": b"\x84\x01\x00\x00\x00",
        "dup": b"]" + b"2" * 500_000,
        "sets": b"]" + b"(" + b"\x8f" * 900_000 + b"e",
        "dicts": b"]" + b"(" + b"}" * 900_000 + b"e",
        "objects": name("a", "B") + b"q\x00" + b"]" + b"(" + b"h\x00)\x81" * 300_000 + b"e",
        "too-many": b"N0" * 3_000_000,
        "laughs": laughs,
        "laughs-as-key": b"}" + laughs + b"Ns",
        "laughs-dict": b"}q\x00" + b"".join(
            b"}(" + b"".join(text(str(k)) + b"h%c" % i for k in range(9)) + b"uq%c" % (i + 1) for i in range(60)
        ),
        "copies": copies + b"q\x00" + b"](" + b"".join(number(i) + b"N\x86" for i in range(9000)) + b"eq\x01"
        + b"](" + b"h\x00h\x01\x85R" * 50_000 + b"e",
        "encodes": name("_codecs", "encode") + b"q\x00" + big + b"q\x01" + text("latin1") + b"q\x02"
        + b"](" + b"h\x00h\x01h\x02\x86R" * 50_000 + b"e",
        "sizes": name("torch", "Size") + b"q\x00" + b"(" + b"N" * 90_000 + b"tq\x01"
        + b"](" + b"h\x00h\x01\x85R" * 50_000 + b"e",
        "equal-hashes": b"}(" + b"".join(number(i * ((1 << 61) - 1)) + b"N" for i in range(100_000)) + b"u",
        "equal-hashes-set": b"\x8f(" + b"".join(number(i * ((1 << 61) - 1)) for i in range(100_000)) + b"\x90",
        "close-hashes": b"}(" + b"".join(number(i << 40) + b"N" for i in range(200_000)) + b"u",
        "wide-text": text("a" * 20_000_000 + "\U0001f600"),
        "self-dict": b"}q\x00" + text("state_dict") + b"h\x00s",
        "self-list": b"]q\x00h\x00a",
        "self-object": name("a", "B") + b")\x81q\x00h\x00b",
        "self-parameters": table(string_to_param=name("torch.nn.modules.container", "ParameterDict") + b")Rq\x00"
        + table(_parameters=b"h\x00") + b"b"),
        "self-inner": b"}q\x00" + text("state_dict") + b"}q\x01" + text("state_dict") + b"h\x00ss",
    }  # fmt: skip
    for label, body in {**bodies, **{f"nested-{label}": body for label, body in nested.items()}}.items():
        for container in ("zip", "deflated", "legacy", "plain"):
            yield f"{label}-{container}", CONTAINERS[container](program(body, 4))


NO_NUMBERS = {
    "tensor": tensor(size=(1,), stride=(1,)),
    "float": b"G" + struct.pack(">d", 16.0),
    "nan": b"G" + struct.pack(">d", float("nan")),
    "true": b"\x88",
    "none": b"N",
    "text": text("16"),
    "list": b"]",
    "tuple": b")",
    "negative": number(-1),
    "huge": number(1 << 62),
    "wraps": number(1 << 64),
    "wraps-to-16": number((1 << 64) + 16),
    "minus-2^63": number(-(1 << 63)),
    "object": name("numpy.core.multiarray", "scalar") + b")R",
    "type": name("torch", "FloatStorage"),
    "storage": storage(),
}


FROM_TYPE = name("torch._tensor", "_rebuild_from_type_v2")
FROM_ARRAY = name("torch._utils", "_rebuild_device_tensor_from_numpy")
EMPTY_ARRAY = name("numpy.core.multiarray", "_reconstruct") + b")R"


def tensors() -> Iterator[tuple[str, bytes]]:
    """Descriptions of tensors that lie, and programs that change tensors or storages."""
    state = numbers(storage(0), 0, numbers(768), numbers(1))
    empty = tensor(storage(0), 0, (0,), (1,))
    bodies = {f"count-{label}": tensor(storage(value)) for label, value in NO_NUMBERS.items()}
    bodies |= {f"offset-{label}": tensor(offset=value) for label, value in NO_NUMBERS.items()}
    bodies |= {f"size-{label}": tensor(size=numbers(value, 1)) for label, value in NO_NUMBERS.items()}
    bodies |= {f"stride-{label}": tensor(stride=numbers(value, 1)) for label, value in NO_NUMBERS.items()}
    bodies |= {f"shape-{label}": tensor(size=value) for label, value in NO_NUMBERS.items()}
    bodies |= {f"key-{label}": tensor(storage(key=value)) for label, value in NO_NUMBERS.items()}
    bodies |= {f"place-{label}": tensor(value) for label, value in NO_NUMBERS.items()}
    bodies |= {
        f"view-{a}-{b}": tensor(numbers(text("storage"), name("torch", "FloatStorage"), text("0"), text("cpu"), 16,
                                        numbers(text("0"), NO_NUMBERS[a], NO_NUMBERS[b])) + b"Q")
        for a, b in itertools.product(("negative", "huge", "float", "tensor"), repeat=2)
    }  # fmt: skip
    bodies |= {
        "heap": empty + state + b"b",
        "heap-2": tensor() + b"(" + storage(0) + numbers(768) + b"tb",
        "heap-state": tensor() + numbers(b"\x88", b"N", table(data=tensor())) + b"b",
        "heap-storage": storage(0) + state + b"b",
        "set-item": tensor() + b"K\x00K\x01s",
        "append": tensor() + tensor() + b"a",
        "appends": storage() + b"(K\x01K\x02e",
        "add-items": tensor() + b"(K\x01K\x02\x90",
        "state-dict-of-a-tensor": tensor() + table(requires_grad=b"\x88", _backward_hooks=b"}") + b"b",
        "zero-strides": tensor(size=(1 << 15, 1 << 15), stride=(0, 0)),
        "zero-strides-large": tensor(size=(1 << 30, 1 << 30), stride=(0, 0)),
        "zero-strides-768": tensor(size=(1 << 20, 768), stride=(0, 0)),
        "overflow": tensor(size=(1 << 32, 1 << 32), stride=(1 << 32, 1)),
        "empty-and-large": tensor(size=(0, 1 << 61), stride=(1, 1)),
        "many-dimensions": tensor(size=(1,) * 5000, stride=(1,) * 5000),
        "past-the-end": tensor(offset=1),
        "one-past": tensor(size=(17,), stride=(1,)),
        "past-an-empty": tensor(offset=17, size=(0,), stride=(1,)),
        "longer-than-its-record": tensor(storage(17), size=(17,), stride=(1,)),
        "wider-type": tensor(storage(16, kind="DoubleStorage")),
        "no-record": tensor(storage(key="9")),
        "a-path": tensor(storage(key="../data.pkl")),
        "untyped": tensor(storage(kind="UntypedStorage", module="torch.storage")),
        "a-dtype": tensor(storage(kind="float32")),
        "quantized": tensor(storage(kind="qint8")),
        "no-type": tensor(storage(kind="Size")),
        "bits": call(REBUILD, storage(), b"K\x00", numbers(4), numbers(1), b"\x89", b"N", b"K\x08"),
        "short-id": numbers(text("storage")) + b"Q",
        "an-id-that-is-a-text": text("storage") + b"Q",
        "text-id": b"Pstorage\n",
        "module-id": numbers(text("module"), name("a", "B"), text("x.py"), text("import os")) + b"Q",
        "sparse": call(name("torch._utils", "_rebuild_sparse_tensor"), b"N", b"N"),
        "wrapper": call(name("torch._utils", "_rebuild_wrapper_subclass"), b"N"),
        "meta": call(
            name("torch._utils", "_rebuild_meta_tensor_no_storage"),
            name("torch", "float32"), numbers(1 << 40), numbers(1), b"\x89",
        ),
        "rebuilds-itself": call(FROM_TYPE, FROM_TYPE, b"N", b")", b"N"),
        "a-parameter-of-nothing": call(name("torch._utils", "_rebuild_parameter"), b"N", b"\x89", b"N"),
        "many-mentions": b"](" + tensor(size=(1 << 11, 1 << 11), stride=(0, 0)) * 2000 + b"e",
        "many-tensors": b"](" + tensor() * 20_000 + b"e",
        "array-of-nothing": call(FROM_ARRAY, EMPTY_ARRAY, name("torch", "float32"), text("mps"), b"\x89"),
    }  # fmt: skip
    dtype = call(name("numpy", "dtype"), text("f4"), b"K\x00", b"K\x01") + numbers(3, text("<")) + b"b"
    for label, value in NO_NUMBERS.items():
        state = numbers(1, numbers(value), dtype, b"\x89", b"C\x04\x00\x00\x00\x00")
        arguments = EMPTY_ARRAY + state + b"b", name("torch", "float64"), text("mps"), b"\x89"
        bodies[f"array-{label}"] = call(FROM_ARRAY, *arguments)
    for label, body in bodies.items():
        embedding = program(table(emb_params=body))
        state_dict = program(table(state_dict=b"}" + text("first_stage_model.decoder.conv_in.weight") + body + b"s"))
        yield f"{label}-embedding-zip", as_zip(embedding)
        yield f"{label}-embedding-legacy", as_legacy(embedding)
        yield f"{label}-deflated", as_zip(state_dict, zipfile.ZIP_DEFLATED)
        yield f"{label}-state-dict-zip", as_zip(state_dict)
        yield f"{label}-empty-record", as_zip(embedding, records={"0": b""})
        yield f"{label}-alone", as_zip(program(body))


def objects() -> Iterator[tuple[str, bytes]]:
    """Inert objects where tensors, names or dictionaries are expected."""
    values = {
        **NO_NUMBERS,
        "dict": b"}",
        "bytes": b"C\x02ab",
        "surrogate": b"X\x03\x00\x00\x00\xed\xa0\x80",
        "no-utf-8": b"X\x02\x00\x00\x00\xff\xfe",
        "bytes-2": b"U\x02\xff\xfe",
        "script": name("__torch__", "Module") + b")\x81",
        "set": b"\x8f",
    }
    keys = ("string_to_param", "string_to_token", "emb_params", "state_dict", "name", "step", "sd_sizes", "params")
    for key, (label, value) in itertools.product(keys, values.items()):
        yield f"{key}-{label}", as_zip(program(table(**{key: value}), 4))
        yield f"{key}-{label}-legacy", as_legacy(program(table(**{key: value}), 4))
    for label, value in values.items():
        yield f"top-{label}", as_zip(program(value, 4))
        yield f"list-{label}", as_zip(program(b"](" + tensor() + value + b"e", 4))
        yield f"key-{label}", as_zip(program(b"}" + value + tensor() + b"s", 4))
        yield f"token-{label}", as_zip(program(table(string_to_param=b"}" + value + tensor(size=(1, 16)) + b"s"), 4))


def archives() -> Iterator[tuple[str, bytes]]:
    """ZIP archives whose tables of contents lie."""
    whole = as_zip(program(table(a=tensor())))
    chance = random.Random(0)
    middle = whole.index(b"PK\x01\x02")
    for place in range(middle, len(whole)):
        for value in (0, 1, 0x7F, 0xFF):
            damaged = bytearray(whole)
            damaged[place] = value
            yield f"byte-{place}-{value}", bytes(damaged)
    for length in range(1, len(whole), 9):
        yield f"cut-{length}", whole[:length]
    yield "bomb", as_zip(program(table(a=tensor(storage(1 << 26), size=(1 << 26,), stride=(1,)))), zipfile.ZIP_DEFLATED,
                         {"0": bytes(1 << 28)})  # fmt: skip
    yield "bomb-program", as_zip(b"\x80\x02" + b"N0" * (1 << 26) + b"N.", zipfile.ZIP_DEFLATED)
    mentions = b"".join(text(f"a{i}") + tensor(storage(1 << 22), size=(1 << 22,), stride=(1,)) for i in range(200))
    yield "bomb-mentions", as_zip(program(b"}(" + mentions + b"u"), zipfile.ZIP_DEFLATED, {"0": bytes(1 << 24)})
    yield "many-records", as_zip(program(b"}"), records={str(i): b"" for i in range(70_000)})
    yield "two-pickles", whole.replace(b"archive/data/0", b"archivf/data.pk")
    yield "end-far-away", whole + bytes(1 << 20)
    yield "only-an-end", b"PK\x03\x04" + b"PK\x05\x06" + bytes(18)
    wide = b"PK\x06\x07" + struct.pack("<LQL", 0, 1 << 60, 1) + b"PK\x05\x06" + b"\xff" * 16 + b"\0\0"
    yield "end-64", b"PK\x03\x04" + wide
    for i in range(100):
        yield f"noise-{i}", b"PK\x03\x04" + chance.randbytes(400) + b"PK\x05\x06" + chance.randbytes(18)


def legacy_files() -> Iterator[tuple[str, bytes]]:
    body = program(table(emb_params=tensor(size=(1, 16), stride=(16, 1))))
    for count in (-1, 0, 1, 15, 17, 1 << 40, (1 << 63) - 1, -(1 << 63)):
        yield f"count-{count}", as_legacy(body, count=count)
    for label, value in NO_NUMBERS.items():
        yield f"keys-{label}", as_legacy(body, keys=program(value))
        yield f"key-{label}", as_legacy(body, keys=program(b"](" + value + b"e"))
        yield f"magic-{label}", program(value) + LEGACY_HEAD
    yield "keys-many", as_legacy(body, keys=program(b"](" + text("0") * 200_000 + b"e"))
    yield (
        "two-large-programs",
        as_legacy(program(b"](" + b"\x8f" * 900_000 + b"e", 4), keys=program(b"](" + b"\x8f" * 900_000 + b"e", 4)),
    )
    whole = as_legacy(body)
    for length in range(1, len(whole), 3):
        yield f"cut-{length}", whole[:length]


def safetensors_files() -> Iterator[tuple[str, bytes]]:
    entry = b'{"dtype":"F32","shape":[%b],"data_offsets":[%b]}'
    headers = {
        "lists": b'{"a":[' + b"[]," * 5_000_000 + b"[]]}",
        "deep": b'{"a":' + b"[" * 2_000_000,
        "deep-objects": b'{"a":' * 1_000_000,
        "many": b"{" + b",".join(b'"%d":%b' % (i, entry % (b"0", b"0,0")) for i in range(100_000)) + b"}",
        "length": b"{" + b" " * 20_000_000 + b"}",
        "huge-shape": b'{"a":%b}' % (entry % (b"4611686018427387904,4", b"0,0")),
        "no-shape": b'{"a":%b}' % (entry % (b"", b"0,4")),
        "negative": b'{"a":%b}' % (entry % (b"-1", b"0,4")),
        "float": b'{"a":%b}' % (entry % (b"1.0", b"0,4")),
        "exponent": b'{"a":%b}' % (entry % (b"1e999", b"0,4")),
        "past": b'{"a":%b}' % (entry % (b"1", b"4,8")),
        "long-name": b'{"%b":%b}' % (b"n" * 1_000_000, entry % (b"1", b"0,4")),
        "metadata": b'{"__metadata__":{"a":null},"a":%b}' % (entry % (b"1", b"0,4")),
        "null": b'{"a":null}',
        "surrogate": b'{"\\ud800":%b}' % (entry % (b"1", b"0,4")),
    }
    for label, header in headers.items():
        yield label, as_safetensors(header, b"\0" * 4)
        yield f"{label}-cut", as_safetensors(header)[:-3]
        yield f"{label}-longer", struct.pack("<Q", len(header) + 9) + header
    for length in (0, 1, 2, 1 << 24, 1 << 40, (1 << 64) - 1):
        yield f"claims-{length}", struct.pack("<Q", length) + b'{"a":null}'


def sizes() -> Iterator[tuple[str, bytes]]:
    """Whole checkpoints by their keys and configurations, which claim networks of any size."""
    claims = [
        *[{"clip": {"layers": n}} for n in (-1, 0, 1e9, 10**9, 10**30, 1.5, "12", None, [12], True)],
        *[{"unet": {"num_res_blocks": n}} for n in (-1, 10**9, 1.0, None)],
        *[{"unet": {"channel_mult": n}} for n in ([], [1] * 10**5, [10**9], [-1], "1234", None, [[1]], {"a": 1})],
        *[{"unet": {"model_channels": n}} for n in (0, -32, 10**9, 33, None)],
        *[{"vae": {"channels": n}} for n in (0, 10**9, None)],
        *[{"clip": {"vocab_size": n}} for n in (0, -1, 10**12)],
        *[{"image_size": n} for n in (0, -1, 10**12, 1e999, "a", None, [])],
        *[{"unet": n} for n in (None, [], 1, "a")],
        *[{"unet": {"__class__": 1}}, {"other": 1}],
    ]
    state = b'"first_stage_model.decoder.conv_in.weight":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    for i, claim in enumerate(claims):
        metadata = json.dumps({"sd_sizes": json.dumps(claim)}).encode()
        parts = ("model.diffusion_model.a", "cond_stage_model.transformer.text_model.encoder.a")
        more = b"".join(
            b',"%b":{"dtype":"F32","shape":[1],"data_offsets":[%d,%d]}' % (part.encode(), 4 + 4 * k, 8 + 4 * k)
            for k, part in enumerate(parts)
        )
        yield f"claim-{i}", as_safetensors(b'{"__metadata__":%b,%b%b}' % (metadata, state, more), b"\0" * 12)
    for key in (
        "cond_stage_model.transformer.text_model.encoder.layers.999999999.mlp.fc1.weight",
        "model.diffusion_model.input_blocks.999999999.0.in_layers.0.weight",
        "first_stage_model.encoder.down.999999999.block.0.conv2.weight",
        "first_stage_model.encoder.down.0.block." + "9" * 5000 + ".conv2.weight",
        "lora_unet_down_blocks_999999999_attentions_0_proj_in.lora_down.weight",
    ):
        entries = table(**{key: tensor(), "first_stage_model.a": tensor(), "model.diffusion_model.a": tensor(),
                           "cond_stage_model.transformer.a": tensor()})  # fmt: skip
        yield f"key-{key[:60]}", as_zip(program(entries))
