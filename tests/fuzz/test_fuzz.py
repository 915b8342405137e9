"""About a minute of fuzzing: a sample of the corpus, mutations, programs from hypothesis, and a poisoned heap."""

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from fuzz import programs
from fuzz.corpus import NO_NUMBERS, hostile_files, tensors
from fuzz.mutation import SEEDS, seeds
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sd.adapters.embedding_files import read_embeddings, save_embedding
from sd.checkpoints.checkpoint import read_checkpoint
from sd.checkpoints.pickles.objects import GlobalName, InertObject
from sd.checkpoints.pickles.opcodes import scan_program
from sd.checkpoints.pickles.unpickler import RestrictedUnpickler
from sd.checkpoints.weight_files import read_weights, write_weights
from sd.utils.errors import UserError

quick = settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))


def test_nothing_in_a_sample_of_the_corpus_and_of_mutations_runs_crashes_hangs_or_grows(tmp_path):
    """Every 15th file of the corpus, then mutations of the seeds for 12 seconds."""
    script = Path(__file__).with_name("run.py")
    options = ["--every", "15", "--minutes", "0.2", "--seed", "0", "--keep", str(tmp_path / "problems")]
    run = subprocess.run([sys.executable, script, *options], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    assert "0 problems" in run.stdout


def test_the_corpus_is_large_and_each_of_its_files_has_a_name_of_its_own():
    names = [name for name, _ in hostile_files()]
    assert len(set(names)) == len(names) >= 1500


@pytest.mark.parametrize("path", sorted(SEEDS.glob("*.bin")), ids=lambda path: path.stem)
def test_kept_seeds_are_refused_in_one_sentence(path):
    with pytest.raises(UserError) as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value)


def run_both_stages(program: bytes):
    operations, place = scan_program(program, 0, len(program))
    assert place == len(program)
    return RestrictedUnpickler(Path("test"), lambda size: None).run(operations)


keys = st.one_of(st.text(), st.integers(-(2**59), 2**59), st.booleans(), st.binary(), st.none())
leaves = st.one_of(keys, st.integers(-(2**1000), 2**1000), st.floats(allow_nan=False))
plain_data = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner), st.dictionaries(keys, inner), st.tuples(inner, inner), st.tuples(), st.sets(keys)
    ),
)


@quick
@given(plain_data, st.sampled_from([0, 1, 2, 3, 4, 5]))
def test_plain_data_is_read_as_by_the_standard_library(value, protocol):
    program = pickle.dumps(value, protocol)
    assert run_both_stages(program) == pickle.loads(program)


VALUES = st.one_of(
    st.sampled_from(list(NO_NUMBERS.values())),
    st.integers(-(2**70), 2**70).map(programs.number),
    st.text(max_size=5).filter(lambda text: text.isascii()).map(programs.text),
    st.sampled_from([b"N", b"\x88", b"}", b"]", b")", b"\x8f", programs.storage(), programs.tensor()]),
)
FRAGMENTS = st.one_of(
    VALUES,
    st.sampled_from([bytes([code]) for code in range(256)]),
    st.sampled_from(
        [b"q\x00", b"h\x00", b"(", b"t", b"R", b"b", b"s", b"u", b"e", b"a", b"\x81", b"\x85", b"\x86", b"Q"]
    ),
)


@quick
@given(st.lists(FRAGMENTS, max_size=30), st.sampled_from(list(programs.CONTAINERS)))
def test_any_sequence_of_operations_is_read_or_refused(tmp_path_factory, fragments, container):
    path = tmp_path_factory.getbasetemp() / "program.pt"
    path.write_bytes(programs.CONTAINERS[container](b"\x80\x04" + b"".join(fragments) + b"."))
    refusal = ""
    try:
        read_weights(path)
    except UserError as error:
        refusal = str(error)
    assert "\n" not in refusal


@quick
@given(VALUES, VALUES, VALUES, VALUES, VALUES)
def test_a_tensor_never_reaches_past_its_storage(tmp_path_factory, count, offset, rows, columns, stride):
    path = tmp_path_factory.getbasetemp() / "tensor.pt"
    size, strides = programs.numbers(rows, columns), programs.numbers(stride, 1)
    body = programs.tensor(programs.storage(count), offset, size, strides)
    path.write_bytes(programs.as_zip(programs.program(body, 4)))
    try:
        found = read_weights(path)
    except UserError:
        return
    assert isinstance(found.content, torch.Tensor)
    if found.content.numel():
        last = found.content.storage_offset() + sum(
            (length - 1) * step for length, step in zip(found.content.shape, found.content.stride())
        )
        assert last < 16
        assert 0 < found.content.data_ptr() - found.file.address < len(found.file.memory)


PATTERN = bytes.fromhex("a5c3f00d") * 4


def poison_heap() -> None:
    """Leaves freed memory of many sizes full of the pattern."""
    blocks = [np.frombuffer(PATTERN * (size // 16), np.uint8).copy() for size in (64, 768, 3072, 6144, 12288) * 200]
    del blocks


def test_the_poisoned_heap_would_show_in_an_uninitialized_tensor():
    """So the next test can fail."""
    found = 0
    for _ in range(20):
        poison_heap()
        found += PATTERN in torch.empty(768).numpy().tobytes()
    assert found > 0


def test_no_freed_memory_is_in_a_converted_file(tmp_path):
    """Programs that make tensors grow, and lies about counts, offsets, sizes and strides."""
    path, read = tmp_path / "a.pt", 0
    cases = [(name, data) for name, data in tensors() if "many" not in name]
    for name, data in cases + [(f"seed {i}", data) for i, data in enumerate(seeds())]:
        path.write_bytes(data)
        poison_heap()
        try:
            found = read_weights(path).content
        except UserError:
            continue
        assert not name.startswith("heap")
        flat = {str(key): value for key, value in found.items()} if isinstance(found, dict) else {"a": found}
        written = {key: value for key, value in flat.items() if isinstance(value, torch.Tensor) and value.numel() < 1e6}
        write_weights(tmp_path / "converted", "safetensors", written, {})
        assert PATTERN not in (tmp_path / "converted").read_bytes(), name
        read += len(written)
    assert read > 10


def test_the_published_example_of_a_grown_tensor_is_refused(tmp_path):
    """`BUILD` of a tensor reached `Tensor.__setstate__`, which set an empty storage to 768 numbers of the heap."""
    path = tmp_path / "heap.pt"
    path.write_bytes((SEEDS / "heap.bin").read_bytes())
    with pytest.raises(UserError, match="sets attributes of a tensor"):
        read_embeddings(path, 768)


def test_a_good_embedding_beside_it_is_read(tmp_path):
    save_embedding(tmp_path / "a.pt", "a", torch.ones(1, 768))
    assert torch.equal(read_embeddings(tmp_path / "a.pt", 768).vectors["a"], torch.ones(1, 768))


def test_what_a_program_leaves_is_inert():
    made = run_both_stages(programs.program(programs.call(programs.name("a", "Thing"), programs.text("x"))))
    assert type(made) is InertObject
    assert (made.name, made.args, made.state) == ("a.Thing", ("x",), None)
    assert type(run_both_stages(programs.program(programs.name("a", "Thing")))) is GlobalName
