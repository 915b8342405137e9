"""One sentence for whatever is wrong with a file, and a bound on what reading one may cost."""

import json
import os

import pytest
import torch

from sd.checkpoints.config import fill_defaults
from sd.checkpoints.diffusers_format import read_network
from sd.checkpoints.foreign_files import (
    COPIES,
    COPIES_OF_ANY,
    LARGEST_JSON,
    Budget,
    convert_errors,
    read_json_file,
    reads_file,
)
from sd.checkpoints.weight_files import read_weights, write_weights
from sd.utils.errors import UserError


@pytest.mark.parametrize(
    "error",
    [
        ValueError("first line\nException raised from THPVariable (most recent call first):\nframe #0: c10::Error"),
        KeyError("a"),
        RecursionError("deep"),
        AssertionError(),
        MemoryError(),
        PermissionError(13, "Permission denied"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
        ZeroDivisionError("x" * 5000),
    ],
    ids=lambda error: type(error).__name__,
)
def test_whatever_goes_wrong_is_one_short_sentence_that_names_the_file(error):
    with pytest.raises(UserError) as caught, convert_errors("some/model.ckpt"):
        raise error
    assert "some/model.ckpt" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    assert caught.value.__cause__ is error


def test_sentences_of_our_own_and_interrupts_pass():
    own = UserError("our own sentence.")
    for error in (own, KeyboardInterrupt()):
        with pytest.raises(type(error)) as caught, convert_errors("model.ckpt"):
            raise error
        assert caught.value is error


def test_the_decorator_keeps_the_function():
    @reads_file
    def read(path, factor=2):
        """Reads."""
        return 1 / factor

    assert (read("a"), read("a", factor=4), read.__doc__) == (0.5, 0.25, "Reads.")
    with pytest.raises(UserError, match=r"^a is damaged or not what it should be \(division by zero\)"):
        read("a", 0)


def test_a_budget_is_the_files_size_times_a_factor(tmp_path):
    budget = Budget(tmp_path / "a", 1000)
    budget.spend(COPIES * 1000 + COPIES_OF_ANY)
    with pytest.raises(UserError, match="far more memory"):
        budget.spend(1)


CONFIGS = {
    "empty": b"",
    "cut": b'{"a": [1, 2',
    "deep": b"[" * 100_000,
    "deep objects": b'{"a":' * 100_000,
    "a list": b"[]",
    "null": b"null",
    "not UTF-8": b'{"a": "\xff"}',
    "a long number": b'{"a": ' + b"9" * 10_000 + b"}",
    "too large": b'{"a": "' + b"x" * LARGEST_JSON + b'"}',
}


@pytest.mark.parametrize("content", CONFIGS)
def test_json_that_is_no_configuration(tmp_path, content):
    (tmp_path / "config.json").write_bytes(CONFIGS[content])
    with pytest.raises(UserError) as caught:
        read_json_file(tmp_path / "config.json")
    assert "config.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_one_number_that_is_none_does_not_refuse_a_configuration(tmp_path):
    (tmp_path / "config.json").write_text('\ufeff{"loss": NaN, "best": -Infinity, "rank": 4}', encoding="utf-8")
    assert read_json_file(tmp_path / "config.json") == {"loss": None, "best": None, "rank": 4}


CLAIMS = [
    {"clip": {"layers": 10**9}},
    {"clip": {"layers": 1.5}},
    {"clip": {"layers": True}},
    {"unet": {"channel_mult": [1] * 100_000}},
    {"unet": {"num_res_blocks": "2"}},
    {"unet": {"model_channels": -320}},
    {"vae": {"channels": 10**9}},
    {"image_size": 10**12},
    {"image_size": float("inf")},
    {"unet": [1]},
    "[" * 100_000,
    "null",
]


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: str(claim)[:40])
def test_a_configuration_that_no_model_can_have_is_refused_before_a_network_is_built(claim):
    with pytest.raises(UserError, match=r"^model\.ckpt: "):
        fill_defaults(claim if isinstance(claim, str) else json.dumps(claim), "model.ckpt")


def test_half_a_character_in_a_checkpoints_texts_can_be_written_again(tmp_path):
    torch.save({"note": "half \ud83d", "state_dict": {"a": torch.ones(1)}}, tmp_path / "a.ckpt")
    found = read_weights(tmp_path / "a.ckpt")
    write_weights(tmp_path / "b.safetensors", "safetensors", found.content["state_dict"], found.metadata)
    assert read_weights(tmp_path / "b.safetensors").metadata == {"note": "half ?"}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no pipes among its files")
@pytest.mark.parametrize("kind", ["a pipe", "a link to a device", "a folder"])
def test_what_would_never_end_is_not_read_as_a_configuration(kind, tmp_path):
    path = tmp_path / "config.json"
    if kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(UserError, match=r"config\.json is not a file"):
        read_json_file(path)


def test_shards_of_one_name_are_read_once(tmp_path):
    """A list of 50,000 shards in a file of 2 MB would read the same file 50,000 times."""
    write_weights(tmp_path / "good.safetensors", "safetensors", {"a": torch.ones(2)}, {})
    shards = {str(number): f"{number}/good.safetensors" for number in range(50_000)}
    index = tmp_path / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": shards}))
    tensors, files, _ = read_network(tmp_path)
    assert list(tensors) == ["a"]
    assert len(files) == 1
