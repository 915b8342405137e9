"""scripts/convert.py as a person runs it: each kind into each other, and what it says."""

import itertools
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from make_full_checkpoint import SMALL, lightning_checkpoint, random_weights

from sd.checkpoints.checkpoint import kind_to_save, load_models

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "convert.py"


def convert(*arguments, cwd):
    return subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, cwd=cwd)


def weights(path):
    *networks, _ = load_models(path)
    return [tensor for network in networks for tensor in network.state_dict().values()]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "model.ckpt"
    torch.save(lightning_checkpoint(random_weights(SMALL)), path)
    return path


def test_a_journey_through_all_kinds_and_back(tmp_path, source, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    journey = [str(source), "a.safetensors", "b", "c.ckpt", "d", "e.safetensors", "f.ckpt"]
    for before, after in itertools.pairwise(journey):
        monkeypatch.setattr(sys, "argv", ["convert.py", before, after])
        runpy.run_path(str(SCRIPT), run_name="__main__")
        assert f"written  {after}" in capsys.readouterr().out
        for found, expected in zip(weights(tmp_path / after), weights(source), strict=True):
            assert torch.equal(found, expected)


def test_the_source_is_not_replaced_and_another_file_is_only_with_a_word(run, tmp_path, source):
    shutil.copy(source, tmp_path / "mine.ckpt")
    before = (tmp_path / "mine.ckpt").read_bytes()
    for name in ("mine.ckpt", "./mine.ckpt"):
        code, _, err = run("convert.py", "mine.ckpt", name, "--dtype", "fp16")
        assert (code, "would be replaced" in err) == (2, True)
    assert (tmp_path / "mine.ckpt").read_bytes() == before
    assert "in place of what was there" not in run("convert.py", "mine.ckpt", "new.safetensors")[1]
    assert "new.safetensors, in place of what was there:" in run("convert.py", "mine.ckpt", "new.safetensors")[1]


@pytest.mark.parametrize("name", ["x.pth", "x.BIN", "x.onnx"])
def test_the_ending_of_another_kind_of_file_is_no_folders_name(run, tmp_path, source, name):
    code, _, err = run("convert.py", source, name)
    assert (code, "use .safetensors, .ckpt or a folder's name" in err) == (2, True)
    assert not (tmp_path / name).exists()
    assert kind_to_save(Path("model-v1.5")) == "diffusers"


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("file/x.ckpt", "there is a file in its place): choose another place"),
        ("file/new/x.safetensors", "there is a file in its place): choose another place"),
        ("file", "file is a file: name a new folder, or a file that ends in .safetensors or .ckpt"),
        ("stuff", "stuff is a folder with other things in it (mine.txt): name a new or an empty one"),
    ],
)
def test_a_target_that_cannot_be_written_is_refused_before_the_checkpoint_is_read(
    run, tmp_path, source, monkeypatch, target, said
):
    monkeypatch.setattr("sd.checkpoints.checkpoint.load_models", lambda *_, **__: pytest.fail("was read"))
    (tmp_path / "file").write_text("mine")
    (tmp_path / "stuff").mkdir()
    (tmp_path / "stuff" / "mine.txt").write_text("mine")
    code, _, err = run("convert.py", source, target)
    assert (code, said in err) == (2, True), err
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} >= {"file", "mine.txt"}


def test_what_it_says(tmp_path, source):
    done = convert(source, "out.safetensors", "--dtype", "fp16", cwd=tmp_path)
    for said in [
        f"read     {source}: ckpt",
        "parameters, float16",
        "model_channels 32, channel_mult [1, 2], num_res_blocks 1",
        "ignored  betas, alphas_cumprod,",
        "position_ids",
        "written  out.safetensors: safetensors,",
        "seconds",
    ]:
        assert said in done.stdout
    assert done.stderr == ""
    for found, expected in zip(weights(tmp_path / "out.safetensors"), weights(source), strict=True):
        assert torch.equal(found, expected.half())


def test_what_it_refuses(tmp_path, source):
    (tmp_path / "page.ckpt").write_text("<html>404</html>")
    for arguments, sentence in [
        (["nothing.ckpt", "out.ckpt"], "file not found: nothing.ckpt"),
        (["page.ckpt", "out.ckpt"], "is a web page"),
        ([source, "page.ckpt/out.ckpt"], "could not be written"),
        ([source, "."], "other things in it"),
    ]:
        done = convert(*arguments, cwd=tmp_path)
        assert done.returncode == 2
        assert sentence in done.stderr
        assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["page.ckpt"]
