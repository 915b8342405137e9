"""All backends of the benchmark do the same work, alternately, and the figures are right. The networks are small."""

import json
import math
import os
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from make_full_checkpoint import lightning_checkpoint, random_weights

from benchmarks import docs_page, gpu_list, multi_process
from benchmarks.backends import BACKENDS, OptimizedNetworks, backends_of
from benchmarks.diffusers_backend import have_compiler, load_single_file
from benchmarks.onnxruntime_backend import have_onnxruntime
from benchmarks.openvino_backend import have_openvino
from benchmarks.report import (
    RESULTS_FOLDER,
    format_rows,
    load_before,
    load_note,
    remark,
    report,
    results_of,
    results_path,
    short_name,
    table_rows,
)
from benchmarks.results import Result
from benchmarks.runner import alternate, count_flops, measure, peak_in_child, random_checkpoint, run
from benchmarks.tasks import TASKS, TINY, Options, RandomModel, guided_step, read_weights, shared_copy
from sd.checkpoints.checkpoint import load_models, read_checkpoint
from sd.checkpoints.diffusers_format import write_configs
from sd.optimization.registry import OPTIMIZATIONS, Optimization
from sd.schedule import SD1_SCHEDULE
from sd.utils.errors import UserError

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "bench.py"
BOTH = ("ours", "diffusers")
SMALL = Options(tiny=True, rounds=2, steps=2, backends=BOTH)


@pytest.fixture
def no_peaks(monkeypatch):
    monkeypatch.setattr("benchmarks.runner.peak_in_child", lambda *_: None)


@pytest.mark.parametrize(
    ("name", "plain", "ours"),
    [
        # The textbook's networks have equal arithmetic: what is left is float32's order of adding, 1e-6 over this few
        # layers. Patches change that order more, and guidance multiplies by 7.5 what it makes.
        ("unet", 1e-5, 1e-4),
        ("vae", 1e-5, 1e-5),
        ("text", 1e-5, 1e-5),
        # Levels of 8 bits: one place in a hundred may be rounded to the next level, 1/255 of a range of about 1.
        ("txt2img", 1e-3, 1e-3),
    ],
)
def test_our_sides_give_diffusers_answer(name, plain, ours, no_peaks):
    result = measure(name, replace(SMALL, backends=("ours", "plain", "diffusers")))
    assert result.differences["plain"] < plain
    assert result.differences["ours"] < ours
    assert {len(result.seconds[backend]) for backend in result.backends} == {2 * TASKS[name].turns}


def test_both_sides_learn_the_same(no_peaks):
    """The gradients of every adapter: the same sums, forwards and back, in another order."""
    result = measure("train", SMALL)
    assert result.differences["ours"] < 1e-4
    assert result.backends == ["ours", "diffusers"]


def test_what_is_off_by_default_is_a_side_of_its_own(monkeypatch):
    """With what is on by default, and left out where the machine has it not."""
    model, calls = RandomModel(SMALL), []
    fast = Optimization(
        "an approximation", lambda networks: calls.append(networks.unet), lambda _: None, exact=False, default=False
    )
    monkeypatch.setitem(
        OPTIMIZATIONS,
        "fast",
        replace(fast, obstacle=lambda device, dtype: "" if dtype == torch.bfloat16 else "it is for bf16."),
    )
    backend = OptimizedNetworks("fast")
    assert backend.missing("unet", SMALL) == "not on this machine"
    assert backend.missing("unet", replace(SMALL, dtype="bf16")) is None
    monkeypatch.setitem(OPTIMIZATIONS, "fast", fast)
    pipe = backend.pipe(model)
    assert calls == [pipe.unet]
    assert pipe.optimize() == [*BACKENDS["ours"].pipe(model).optimize(), "fast"]
    assert not any(task in dir(backend) for task in ("load", "train"))


def test_direct_convolutions_are_the_defaults_without_winograd():
    model, backend = RandomModel(SMALL), BACKENDS["direct"]
    assert backend.missing("unet", SMALL) is None
    assert backend.missing("unet", replace(SMALL, dtype="bf16")) == "the same as ours here"
    ours = BACKENDS["ours"].pipe(model).optimize()
    assert backend.pipe(model).optimize() == [name for name in ours if name != "winograd"]


@pytest.mark.slow
@pytest.mark.skipif(not have_openvino(), reason="openvino is an optional development package")
def test_openvino_gives_the_same_answers(no_peaks):
    """Other kernels with other sums, and approximations of exp and erf in some; guidance multiplies what they differ.

    Whole images then are rounded to other levels in many places, by one of 255.
    """
    bounds = {"unet": 1e-4, "vae": 1e-4, "text": 1e-4, "txt2img": 1e-2}
    for result in run(list(bounds), replace(SMALL, rounds=1, backends=("ours", "diffusers", "openvino"))):
        assert 0 < result.differences["openvino"] < bounds[result.name]


@pytest.mark.slow
@pytest.mark.skipif(not have_onnxruntime(), reason="onnxruntime is an optional development package")
def test_onnxruntime_gives_the_same_answers(no_peaks):
    for result in run(["unet", "vae"], replace(SMALL, rounds=1, batch=2, backends=("plain", "onnxruntime"))):
        assert 0 < result.differences["onnxruntime"] < 1e-4  # other sums; guidance multiplies what they differ


def test_the_bundled_model_has_its_own_sizes():
    sizes = RandomModel(Options(bundled=True), "meta").sizes
    assert (sizes["image_size"], sizes["unet"]["model_channels"]) == (128, 64)
    assert results_path(["unet"], Options(bundled=True, batch=8)).name.startswith("fp32-bundled-unet-batch8-")
    x, t, context = RandomModel(replace(SMALL, batch=3)).step_inputs
    assert len(x) == len(t) == len(context) == 6


def test_without_a_gpu_the_list_for_gpus_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code, _, err = bench(monkeypatch, capsys, "--gpu")
    assert code == 2
    assert err == "error: PyTorch finds no GPU; leave out --gpu, or add --tiny for a rehearsal on the CPU.\n"


def test_the_list_for_gpus_is_rehearsed_on_a_cpu(monkeypatch, capsys, tmp_path, no_peaks):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpu_list, "run_tests", lambda: print("tested"))
    monkeypatch.setattr("benchmarks.backends.have_compiler", lambda: False)  # it would compile for minutes
    flags = ["--gpu", "--tiny", "--rounds", 1, "--steps", 1, "--json", tmp_path / "gpu.json"]
    code, out, _ = bench(monkeypatch, capsys, *flags)
    assert code == 0
    assert "tested" in out
    assert [stage.title in out for stage in gpu_list.STAGES] == [True] * len(gpu_list.STAGES)
    written = {path.stem.removeprefix("gpu-") for path in tmp_path.iterdir()}
    assert written == {stage.name for stage in gpu_list.STAGES if stage.tasks}
    assert json.loads((tmp_path / "gpu-step-8.json").read_text())["options"]["batch"] == 8


def test_the_list_for_gpus_ends_with_its_time(monkeypatch, capsys):
    monkeypatch.setattr(gpu_list, "run_tests", lambda: None)
    assert gpu_list.run_gpu_list(SMALL, gpu_list.path_for(False, None), minutes=-1) == []
    assert capsys.readouterr().out.count("left out, because 0 of -1 minutes are over.") == len(gpu_list.STAGES)


@pytest.mark.slow
@pytest.mark.skipif(not have_compiler(), reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize(("name", "bound"), [("text", 1e-5), ("vae", 1e-5)])  # the same sums in another order
def test_compiled_networks_give_the_same_answer(name, bound):
    result = measure(name, replace(SMALL, rounds=1, backends=("ours", "diffusers", "compiled")))
    assert result.differences["compiled"] < bound
    assert result.differences["compiled"] > 0  # other kernels have run


def test_a_step_is_guided():
    """uncond + 7.5 (cond - uncond), by the U-Net's own answers."""
    model = RandomModel(SMALL)
    x, t, context = model.step_inputs
    sigma = SD1_SCHEDULE.sigma_of(500)
    with torch.no_grad():
        scaled = x[:1] / math.sqrt(1 + sigma**2)
        uncond, cond = model.unet(torch.cat([scaled, scaled]), t, context).chunk(2)
        eps = guided_step(model.unet, model)() / sigma
    # x - (x - sigma * eps) loses the digits by which x, of size 1, is larger than sigma * eps, of size 0.1.
    assert torch.allclose(eps, uncond + 7.5 * (cond - uncond), atol=2e-6)


def test_both_sides_load_the_same_weights_and_the_checkpoint_goes_away(monkeypatch, no_peaks):
    made = []

    def remembered(path, options):
        made.append(path)
        return random_checkpoint(path, options)

    monkeypatch.setattr("benchmarks.runner.random_checkpoint", remembered)
    (result,) = run(["load"], replace(SMALL, rounds=1, dtype="bf16"))
    assert result.differences["ours"] == 0  # the same numbers, whatever they are called
    assert result.flops == {}
    assert not made[0].exists()


def test_touch_sees_every_weight(tmp_path):
    path = random_checkpoint(tmp_path / "random.ckpt", SMALL)
    networks = load_models(path)[:3]
    before = read_weights(networks)
    with torch.no_grad():
        networks[2].out[2].bias[1] = 1000
    assert read_weights(networks)[-1] == 1000
    assert before[-1] < 1000


def test_diffusers_is_allowed_the_names_in_a_lightning_checkpoint(tmp_path):
    torch.save(lightning_checkpoint(random_weights(TINY)), tmp_path / "lightning.ckpt")
    write_configs(tmp_path / "configs", read_checkpoint(tmp_path / "lightning.ckpt").config)
    theirs = load_single_file(tmp_path / "lightning.ckpt", tmp_path / "configs", torch.float32)
    assert torch.equal(read_weights(theirs), read_weights(load_models(tmp_path / "lightning.ckpt")[:3]))


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


MEASURED = Result(
    "unet",
    {"ours": [1, 4, 9], "diffusers": [2, 4, 6], "openvino": [4, 2, 9], "matmul": [1, 0.5, 2]},
    {"task": 80, "matmul": 20},
    {"ours": 1e-6, "openvino": 2e-3},
    {"ours": 3 * 10**9, "diffusers": 4 * 10**9},
    {"compiled": "no C++ compiler"},
)


def test_figures_are_of_pairs():
    assert MEASURED.ratios("diffusers") == [0.5, 1, 1.5]
    assert MEASURED.ratios("openvino") == [0.25, 2, 1]
    assert MEASURED.share("ours") == 0.5  # 80 operations in 4 s, beside 20 in 0.5 s
    assert table_rows(MEASURED) == [
        ("U-Net step", "ours", "4.000 s", "", "50%", "1.0e-06", "3.00 GB"),
        ("U-Net step", "diffusers", "4.000 s", "1.000 (0.500, 1.500)", "50%", "", "4.00 GB"),
        ("U-Net step", "OpenVINO", "4.000 s", "1.000 (0.250, 2.000)", "50%", "2.0e-03", ""),
        ("U-Net step", "diffusers, compiled", "no C++ compiler", "", "", "", ""),
    ]
    assert format_rows(table_rows(MEASURED))[0].split() == "U-Net step ours 4.000 s 50% 1.0e-06 3.00 GB".split()


def test_flops_are_those_of_the_published_model():
    """0.8 TFLOP a pass of v1-5 at 512x512, twice for guidance; images add the text, the steps and the decoder."""
    options = Options(steps=3)
    unet, vae, text = (count_flops(name, options)["task"] for name in ("unet", "vae", "text"))
    assert unet == pytest.approx(1.607e12, rel=1e-3)
    assert count_flops("txt2img", options)["task"] == text + 3 * unet + vae


def test_random_model_is_one_copy_in_its_own_dtype():
    model = RandomModel(Options(tiny=True, dtype="bf16"))
    assert {p.dtype for p in model.unet.parameters()} == {torch.bfloat16}
    peer = BACKENDS["diffusers"].unet_of(model)
    ours = {p.data_ptr() for p in model.unet.parameters()}
    assert {p.data_ptr() for p in peer.parameters()} == ours
    assert {p.data_ptr() for p in BACKENDS["ours"].pipe(model).unet.parameters()} == ours


def test_random_weights_are_the_same_in_any_order():
    """What one process converts, another compares with its own."""
    first, second = RandomModel(SMALL), RandomModel(SMALL)
    assert first.vae is not second.unet  # made in another order
    for part in ("unet", "vae", "clip"):
        ours, theirs = getattr(first, part).state_dict(), getattr(second, part).state_dict()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_twin_shares_tensors_and_nothing_else():
    model = RandomModel(SMALL)
    other = shared_copy(model.unet)
    other.out[2].bias = torch.nn.Parameter(torch.ones(4))
    other.out[0].forward = None
    assert not torch.equal(model.unet.out[2].bias, other.out[2].bias)
    assert model.unet.out[0].forward is not None
    assert model.unet.out[2].weight is other.out[2].weight


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells a process's peak")
def test_peak_is_the_childs_own(tmp_path):
    """A gigabyte that this process holds is not counted; the interpreter with torch in it is, at least 100 MB."""
    ballast = torch.ones(2**28)  # 1 GiB
    options = Options(tiny=True, ckpt=random_checkpoint(tmp_path / "random.ckpt", SMALL))
    assert 1e8 < peak_in_child("load", "ours", options) < ballast.nbytes


def absent_peers(missing: dict[str, str]) -> dict[str, str]:
    """Without the patches of ours that this machine has not."""
    return {backend: why for backend, why in missing.items() if backend not in OPTIMIZATIONS}


def test_without_the_others_ours_alone(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    monkeypatch.setattr("benchmarks.onnxruntime_backend.have_onnxruntime", lambda: False)
    result = measure("unet", replace(SMALL, backends=None))
    assert {"ours", "matmul"} <= result.seconds.keys()
    others = ("diffusers", "compiled", "openvino", "onnxruntime")
    assert not set(others) & result.seconds.keys()
    assert absent_peers(result.missing) == dict.fromkeys(others, "not installed")
    assert result.share("ours") > 0
    assert table_rows(result)[-1][:3] == ("U-Net step", "onnxruntime", "not installed")


def test_each_absent_package_is_named(monkeypatch):
    monkeypatch.setattr("benchmarks.openvino_backend.have_openvino", lambda: False)
    monkeypatch.setattr("benchmarks.onnxruntime_backend.have_onnxruntime", lambda: False)
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setitem(sys.modules, "peft", None)
    every = replace(SMALL, backends=None)
    absent = absent_peers(backends_of("unet", every)[1])
    assert absent == {"compiled": "no C++ compiler", "openvino": "not installed", "onnxruntime": "not installed"}
    assert backends_of("train", every)[1] == {"diffusers": "peft is not installed"}
    with pytest.raises(UserError, match="unknown backend 'nonsense'"):
        backends_of("unet", replace(SMALL, backends=("nonsense",)))


def test_the_quick_side_generates_whole_images_and_caches_steps(no_peaks, monkeypatch):
    assert backends_of("unet", replace(SMALL, backends=("quick",)))[0] == []
    monkeypatch.setattr(BACKENDS["quick"], "missing", lambda task, options: None)
    # Whose answer is exact, on any machine.
    monkeypatch.setattr(BACKENDS["quick"].ours, "optimizations", ("channels-last",))
    figures = {}
    for cache in (1, 4):
        monkeypatch.setattr(BACKENDS["quick"], "step_cache", cache)
        result = measure("txt2img", replace(SMALL, steps=4, rounds=1, backends=("ours", "quick", "plain")))
        figures[cache] = result.differences["quick"]
    assert figures[1] < 2e-3 < figures[4]  # a grey level in some pixels, where sums are in another order


def test_rates_are_from_each_process_first_image_to_its_last(tmp_path):
    """Two processes that took the numbers in turn, one twice as fast as the other and started later."""
    for number, seconds in enumerate([10, 21, 14, 23, 18, 25]):
        path = tmp_path / f"{number:05}.png"
        path.touch()
        os.utime(path, ns=(seconds * 10**9,) * 2)
    images = sorted(tmp_path.glob("*.png"))
    assert multi_process.images_per_second(images, 2) == [2 / 8, 2 / 4]
    assert multi_process.images_per_second(images, 1) == [5 / 15]


def test_many_are_compared_to_one_alone_on_its_share(monkeypatch):
    """One alone needs 1 s an image, and two beside each other 0.52 s together: 96 % of what two would generate."""
    asked = []

    def seconds_per_image(launcher, cores, threads, processes, options):
        asked.append((bool(launcher), len(cores), threads, processes))
        return {(True, 2): 0.52, (False, 1): 1.0, (False, 2): 0.7}[bool(launcher), len(cores)]

    monkeypatch.setattr(multi_process, "seconds_per_image", seconds_per_image)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    result = multi_process.measure(replace(SMALL, rounds=2))
    assert asked == [(True, 2, 1, 2), (False, 1, 1, 1), (False, 2, 2, 1)] * 2
    assert result.ratios("alone") == [1.04, 1.04]
    assert remark(result).startswith("2 processes reach 96.2%")


@pytest.mark.slow
def test_many_prompts_are_generated_three_ways():
    (result,) = run(["many"], Options(tiny=True, rounds=1, steps=2, size=64))
    assert result.backends == ["ours", "alone", "threads"]
    assert all(seconds > 0 for backend in result.backends for seconds in result.seconds[backend])


def test_a_file_is_named_by_its_tasks_and_its_machine(monkeypatch):
    xeon = {"processor": "Intel(R) Xeon(R) Platinum 8488C CPU @ 2.40GHz", "gpu": None, "cores": 2}
    xeon |= {"abilities": ["amx_bf16", "avx512_bf16"]}
    assert short_name(xeon) == "intel-xeon-platinum-8488c-amx-2-cores"
    assert short_name(xeon | {"gpu": "NVIDIA H200"}) == "nvidia-h200"
    monkeypatch.setattr("benchmarks.report.machine", lambda: xeon | {"processor": "AMD EPYC", "abilities": []})
    names = ["unet", "vae", "text", "txt2img", "load"]
    assert results_path(names, Options(dtype="bf16")).name == "bf16-amd-epyc-2-cores.json"
    assert results_path(["train"], Options(size=256)).name == "fp32-train-256px-amd-epyc-2-cores.json"


def test_what_is_kept_is_what_was_measured():
    kept = json.loads(json.dumps(report([MEASURED], SMALL)))
    assert results_of(kept) == [MEASURED]
    assert kept["results"]["unet"]["ratios"]["diffusers"] == [0.5, 1, 1.5]
    assert kept["options"]["size"] == 64
    assert kept["versions"]["torch"] == torch.__version__
    assert kept["machine"]["cores"] >= 1


def test_a_busy_machine_is_told(monkeypatch):
    for load, said in ((0.2, ""), (3.14, "note: other processes use this machine (load average 3.1")):
        load_before.cache_clear()
        monkeypatch.setattr(os, "getloadavg", lambda load=load: (load, 9, 9))
        assert load_note().startswith(said)
        assert bool(load_note()) == bool(said)
        assert report([MEASURED], SMALL)["load_before"] == load
    load_before.cache_clear()


def test_page_has_every_file_newest_first_with_its_plot(tmp_path):
    folder = tmp_path / "performance"
    folder.mkdir()
    for name, date in (("old", "2026-01-02T00:00:00+00:00"), ("new", "2026-03-04T00:00:00+00:00")):
        kept = report([MEASURED], SMALL) | {"date": date}
        (folder / f"{name}.json").write_text(json.dumps(kept))
    text = docs_page.write_page(folder).read_text()
    assert text.index("2026-03-04") < text.index("2026-01-02")
    assert "| U-Net step | OpenVINO | 4.000 s | 1.000 (0.250, 2.000) | 50% | 2.0e-03 |  |" in text
    for name in ("old", "new"):
        assert f"(performance/{name}.png)" in text
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_page_in_docs_is_made_from_the_files_beside_it():
    """`python scripts/bench.py --report` makes it."""
    assert docs_page.page(RESULTS_FOLDER) == RESULTS_FOLDER.with_name("performance.md").read_text(encoding="utf-8")
    assert all(path.with_suffix(".png").exists() for path in RESULTS_FOLDER.glob("*.json"))


def bench(monkeypatch, capsys, *flags: object) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["bench.py", *map(str, flags)])
    try:
        runpy.run_path(str(SCRIPT), run_name="__main__")
        code = 0
    except SystemExit as stop:
        code = stop.code
    return code, *capsys.readouterr()


def test_script(monkeypatch, capsys, tmp_path):
    flags = ["--tiny", "--only", "text,vae", "--backends", "ours,diffusers", "--rounds", 1]
    code, out, _ = bench(monkeypatch, capsys, *flags, "--json", tmp_path / "bench.json")
    assert code == 0
    assert "64x64, fp32" in out
    assert [row.split()[:3] for row in out.splitlines()[-4:]] == [
        [*task, backend] for task in (["text", "encode"], ["VAE", "decode"]) for backend in BOTH
    ]
    kept = json.loads((tmp_path / "bench.json").read_text())
    assert kept["results"].keys() == {"text", "vae"}
    assert len(kept["results"]["text"]["seconds"]["ours"]) == TASKS["text"].turns
    assert kept["options"]["dtype"] == "fp32"


@pytest.mark.parametrize(
    "flags",
    [
        ["--only", "unet,nonsense"],
        ["--backends", "ours,nonsense"],
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
