"""The benchmark: both sides do the same work, in turn, and the figures are what they say. Small networks throughout."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from make_full_checkpoint import lightning_checkpoint, random_weights

from sd.benchmark.measure import Result, alternate, count_flops, measure, peak_in_child, random_checkpoint, run
from sd.benchmark.peers import load_single_file
from sd.benchmark.report import lines, report
from sd.benchmark.tasks import TASKS, TINY, Options, RandomModel, touch
from sd.checkpoint import load_models, read
from sd.diffusers_folder import write_configs

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "bench.py"
QUICK = Options(tiny=True, rounds=2, steps=2)


@pytest.mark.parametrize(
    ("name", "bound"),
    [
        # Equal weights and equal arithmetic: what is left is float32's order of adding, 1e-6 over this few layers.
        *(("unet", 1e-5), ("vae", 1e-5), ("text", 1e-5)),
        # Levels of 8 bits: one place in a hundred may be rounded to the next level, 1/255 of a range of about 1.
        ("txt2img", 1e-3),
    ],
)
def test_both_sides_give_the_same_answer(name, bound, monkeypatch):
    monkeypatch.setattr("sd.benchmark.measure.peak_in_child", lambda *_: None)
    result = measure(name, QUICK)
    assert result.difference < bound
    assert len(result.seconds["ours"]) == len(result.seconds["diffusers"]) == 2 * TASKS[name].turns


def test_both_sides_load_the_same_weights_and_the_checkpoint_goes_away(monkeypatch):
    monkeypatch.setattr("sd.benchmark.measure.peak_in_child", lambda *_: None)
    made = []

    def remembered(path, options):
        made.append(path)
        return random_checkpoint(path, options)

    monkeypatch.setattr("sd.benchmark.measure.random_checkpoint", remembered)
    (result,) = run(["load"], Options(tiny=True, rounds=1, dtype="bf16"))
    assert result.difference == 0  # the same numbers, whatever they are called
    assert result.flops == {}
    assert not made[0].exists()


def test_touch_sees_every_weight(tmp_path):
    path = random_checkpoint(tmp_path / "random.ckpt", QUICK)
    networks = load_models(path)[:3]
    before = touch(networks)
    with torch.no_grad():
        networks[2].out[2].bias[1] = 1000
    assert touch(networks)[-1] == 1000
    assert before[-1] < 1000


def test_diffusers_is_allowed_the_names_in_a_lightning_checkpoint(tmp_path):
    torch.save(lightning_checkpoint(random_weights(TINY)), tmp_path / "lightning.ckpt")
    write_configs(tmp_path / "configs", read(tmp_path / "lightning.ckpt").sizes)
    theirs = load_single_file(tmp_path / "lightning.ckpt", tmp_path / "configs", torch.float32)
    assert torch.equal(touch(theirs), touch(load_models(tmp_path / "lightning.ckpt")[:3]))


def test_turns_are_taken_in_turn(monkeypatch):
    """Each turn's own seconds, and nothing else's, by a clock that each turn sets forward."""
    clock, calls = [0.0], []
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])

    def turn(name, seconds):
        def take():
            calls.append(name)
            clock[0] += seconds

        return take

    seconds = alternate({"ours": turn("ours", 2), "diffusers": turn("diffusers", 3)}, rounds=3)
    assert calls == ["ours", "diffusers"] * 3
    assert seconds == {"ours": [2] * 3, "diffusers": [3] * 3}


def test_figures_are_of_pairs():
    seconds = {"ours": [1, 4, 9], "diffusers": [2, 4, 6], "matmul": [1, 0.5, 2]}
    result = Result("unet", seconds, {"task": 80, "matmul": 20}, 1e-6, {"ours": 3 * 10**9, "diffusers": 4 * 10**9})
    assert result.ratios() == [0.5, 1, 1.5]
    assert result.share("ours") == 0.5  # 80 operations in 4 s, beside 20 in 0.5 s
    time_row, memory_row = lines(result)
    assert time_row.split() == [*"U-Net step 4.000 s 4.000 s 1.000 (0.500, 1.500) 50% 1.0e-06".split()]
    assert memory_row.split() == "U-Net step, memory 3.00 GB 4.00 GB 0.750".split()


def test_flops_are_those_of_the_published_model():
    """0.8 TFLOP a pass of v1-5 at 512x512, twice for guidance; pictures add the text, the steps and the decoder."""
    options = Options(steps=3)
    unet, vae, text = (count_flops(name, options)["task"] for name in ("unet", "vae", "text"))
    assert unet == pytest.approx(1.607e12, rel=1e-3)
    assert count_flops("txt2img", options)["task"] == text + 3 * unet + vae


def test_random_model_is_one_copy_in_its_own_dtype():
    model = RandomModel(Options(tiny=True, dtype="bf16"))
    assert {p.dtype for p in model.unet.parameters()} == {torch.bfloat16}
    peer_step = TASKS["unet"].sides["diffusers"](model, QUICK).__closure__
    (peer,) = (cell.cell_contents for cell in peer_step if isinstance(cell.cell_contents, torch.nn.Module))
    ours = {p.data_ptr() for p in model.unet.parameters()}
    assert {p.data_ptr() for p in peer.parameters()} == ours


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells a process's peak")
def test_peak_is_the_childs_own(tmp_path):
    """A gigabyte that this process holds is not counted; the interpreter with torch in it is, at least 100 MB."""
    ballast = torch.ones(2**28)  # 1 GiB
    options = Options(tiny=True, ckpt=random_checkpoint(tmp_path / "random.ckpt", QUICK))
    assert 1e8 < peak_in_child("load", "ours", options) < ballast.nbytes


def test_without_diffusers_ours_alone(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    result = measure("unet", QUICK)
    assert result.seconds.keys() == {"ours", "matmul"}
    assert result.ratios() == []
    assert result.difference is None
    assert result.share("ours") > 0
    (row,) = lines(result)
    assert row.split()[:2] == ["U-Net", "step"]
    assert "diffusers" not in report([result], QUICK)["results"]["unet"]["seconds"]


def bench(monkeypatch, capsys, *flags: object) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["bench.py", *map(str, flags)])
    try:
        runpy.run_path(str(SCRIPT), run_name="__main__")
        code = 0
    except SystemExit as stop:
        code = stop.code
    return code, *capsys.readouterr()


def test_script(monkeypatch, capsys, tmp_path):
    flags = ["--tiny", "--only", "text,vae", "--rounds", 1, "--json", tmp_path / "bench.json"]
    code, out, _ = bench(monkeypatch, capsys, *flags)
    assert code == 0
    assert "64x64, fp32" in out
    assert [row.split()[:2] for row in out.splitlines()[-2:]] == [["text", "encode"], ["VAE", "decode"]]
    kept = json.loads((tmp_path / "bench.json").read_text())
    assert kept["results"].keys() == {"text", "vae"}
    assert len(kept["results"]["text"]["seconds"]["ours"]) == TASKS["text"].turns
    assert kept["versions"]["torch"] == torch.__version__
    assert kept["options"]["dtype"] == "fp32"
    assert kept["machine"]["cores"] >= 1


def test_script_says_when_diffusers_is_absent(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    code, out, _ = bench(monkeypatch, capsys, "--tiny", "--only", "text", "--rounds", 1)
    assert code == 0
    assert "diffusers" in out.splitlines()[0]
    assert "alone" in out.splitlines()[0]


@pytest.mark.parametrize(
    "flags",
    [
        ["--only", "unet,nonsense"],
        ["--rounds", "0"],
        ["--steps", "-1"],
        ["--size", "100"],
        ["--ckpt", "no-such-file"],
        ["--json", "no-such-folder/file.json"],
    ],
)
def test_script_refuses_in_one_sentence(monkeypatch, capsys, flags):
    code, _, err = bench(monkeypatch, capsys, "--tiny", *flags)
    assert code == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
