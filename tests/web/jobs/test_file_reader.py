"""Files are read in another process: what ends or holds it costs that file only."""

import os
import pickle
import time

import pytest
import torch

from sd.adapters.embedding_files import save_embedding
from sd.checkpoints import model_files
from sd.utils.errors import UserError
from sd.web.jobs import model_index
from sd.web.jobs.file_reader import FileReader
from sd.web.jobs.model_index import Models, shape_of


@pytest.fixture(scope="module")
def reader():
    reader = FileReader(patience=60)
    yield reader
    reader.stop()


def process_number(path):
    return os.getpid()


def end(path):
    os._exit(3)


def hang(path):
    time.sleep(1000)


def fail(path):
    raise ZeroDivisionError("no such thing")


def test_it_is_another_process_and_answers_as_the_function_does(reader, tmp_path):
    save_embedding(tmp_path / "dog.pt", "dog", torch.ones(3, 768))
    (tmp_path / "bad.pt").write_bytes(b"PK\3\4 damaged")
    assert reader(process_number, tmp_path) != os.getpid()
    assert reader(shape_of, tmp_path / "dog.pt") == (3, 768)
    with pytest.raises(UserError, match="damaged"):
        reader(shape_of, tmp_path / "bad.pt")
    with pytest.raises(UserError, match="ZeroDivisionError"):
        reader(fail, tmp_path)


def test_what_ends_or_holds_it_costs_one_file(reader, tmp_path):
    with pytest.raises(UserError, match="ended the process that read it"):
        reader(end, tmp_path)
    assert reader(process_number, tmp_path) != os.getpid()
    reader.patience = 0.2
    with pytest.raises(UserError, match="takes too long"):
        reader(hang, tmp_path)
    reader.patience = 60
    assert reader(process_number, tmp_path) != os.getpid()


def test_the_server_s_lists_use_it_and_remember_refusals(tmp_path, monkeypatch):
    calls = []

    def reader(function, path):
        calls.append(path.name)
        return function(path)

    monkeypatch.setattr(model_files, "call_reader", reader)
    models = Models(tmp_path, tmp_path / "loras", tmp_path / "embeddings")
    (tmp_path / "embeddings").mkdir()
    save_embedding(tmp_path / "embeddings" / "dog.pt", "dog", torch.ones(3, 768))
    (tmp_path / "embeddings" / "bad.pt").write_bytes(b"PK\3\4 damaged")
    models.reader = reader
    for _ in range(3):
        described = models.describe_embeddings()
    assert described["skipped"] == {"bad": {}}
    assert described["loaded"]["dog"]["vectors"] == 3
    assert sorted(calls) == ["bad.pt"] * 2 + ["dog.pt"] * 2  # once for what it is, once for its shape


def test_a_worker_gets_the_lists_without_the_reader(reader, tmp_path):
    models = Models(tmp_path)
    models.reader = reader
    assert pickle.loads(pickle.dumps(models)).reader is None


def test_any_failure_is_a_refusal(tmp_path, monkeypatch):
    monkeypatch.setattr(model_index, "find_vectors", fail)
    save_embedding(tmp_path / "dog.pt", "dog", torch.ones(3, 768))
    with pytest.raises(UserError):
        shape_of(tmp_path / "dog.pt")


def test_a_file_whose_name_no_answer_can_hold_is_left_out(tmp_path):
    for name in (b"\xff.safetensors", b"good.safetensors"):
        with open(os.path.join(os.fsencode(tmp_path), name), "wb") as file:
            file.write(b"x")
    assert [path.name for path in model_files.models_below(tmp_path)] == ["good.safetensors"]
