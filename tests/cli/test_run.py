"""The main part of the scripts: LoRAs are loaded once, and an interrupted one prints the command for the rest."""

import shlex
from argparse import Namespace
from pathlib import Path

import pytest
from small_models import save_lora

from sd.adapters.manager import Adapters
from sd.checkpoints.discovery import Models
from sd.cli.requests import GenerationRequest
from sd.cli.run import generate_and_save
from sd.pipeline.settings import GenerationSettings
from sd.pipeline.stable_diffusion import StableDiffusion

FLAGS = ("--steps", 1, "--ckpt", "emoji", "--width", 64, "--height", 64, "--skip-grid")


def test_the_loras_of_a_prompt_are_loaded_once_for_all_images(pipe, tmp_path, monkeypatch):
    """On a CPU, where each image is a call of its own."""
    save_lora(tmp_path / "bent.safetensors")
    pipe.adapters.models = Models(tmp_path / "none", tmp_path, tmp_path / "none")
    loaded, load = [], Adapters.load_lora
    monkeypatch.setattr(Adapters, "load_lora", lambda self, *given: loaded.append(given[0].stem) or load(self, *given))
    settings = GenerationSettings("a cat <lora:bent:0.5>", steps=1, seed=3, num_images=3, width=64, height=64)
    args = Namespace(outdir=tmp_path / "out", control_image=[], region_mask=[], preview=False, skip_grid=True)
    generate_and_save(pipe, [GenerationRequest(settings)], args)
    assert loaded == ["bent"]
    assert len(list((tmp_path / "out").glob("*.png"))) == 3
    assert pipe.adapters.names() == []


@pytest.fixture
def interrupt(monkeypatch):
    """interrupt(after): from now on generating is interrupted by a Ctrl-C once so many calls are done."""
    real = StableDiffusion.generate

    def interrupt(after):
        left = [after]

        def generate(self, *args, **more):
            left[0] -= 1
            if left[0] == -1:
                raise KeyboardInterrupt
            return real(self, *args, **more)

        monkeypatch.setattr(StableDiffusion, "generate", generate)

    return interrupt


def commands(tmp_path, photo):
    (tmp_path / "prompts.txt").write_text("a cat\na dog\na fish\n")
    (tmp_path / "in put").mkdir()
    for name in ("a.png", "b.png", "c.png"):
        photo.save(tmp_path / "in put" / name)
    return {
        "prompts": ["txt2img.py", "--from-file", "prompts.txt"],
        "several": ["txt2img.py", "a cat", "--num-images", "3"],
        "variations": ["txt2img.py", "a cat", "--n-iter", "3", "--variation-strength", "0.2"],
        "folder": ["img2img.py", "it's a cat", "--init-img", "in put"],
        "grid": ["xyz_grid.py", "a cat", "--x", "steps=1-3"],
    }


@pytest.mark.parametrize("name", ["prompts", "several", "variations", "folder", "grid"])
def test_an_interrupted_script_says_how_to_go_on(run, interrupt, tmp_path, photo, name):
    script, *flags = commands(tmp_path, photo)[name]
    flags += FLAGS if name != "grid" else FLAGS[2:-1]
    interrupt(after=2)
    code, out, err = run(script, *flags)
    assert code == 130
    hint, stopped = err.splitlines()[-2:]
    assert stopped == "stopped."
    before = {path: path.read_bytes() for path in (tmp_path / "outputs").rglob("*.png")}
    assert len(before) == 2
    words = shlex.split(hint.removeprefix("to go on: "))
    assert (words[0], Path(words[1]).name) == ("python", script)
    code, out, err = run(script, *words[2:])
    assert code == 0, err
    after = {path: path.read_bytes() for path in (tmp_path / "outputs").rglob("*.png") if path.name != "grid.png"}
    assert len(after) == 3
    assert before.items() <= after.items()
    first, *_ = words[words.index("--seed") + 1 :] if "--seed" in words else [""]
    seeds = [line.partition("seed ")[2].split()[0] for line in out.splitlines() if "  seed " in line]
    last = {"folder": int(first or 0), "grid": None}.get(name, int(first or 0) + 2)
    assert seeds == ([] if last is None else [str(last)])


def test_a_script_that_has_its_seed_needs_no_other_and_one_image_no_hint(run, interrupt, tmp_path, photo):
    commands(tmp_path, photo)
    interrupt(after=1)
    code, _, err = run("img2img.py", "a cat", "--init-img", "in put", "--seed", 3, "--resume", *FLAGS)
    assert code == 130
    assert err.splitlines()[-2].endswith("--resume --steps 1 --ckpt emoji --width 64 --height 64 --skip-grid")
    interrupt(after=0)
    code, _, err = run("txt2img.py", "a cat", *FLAGS)
    assert (code, "to go on" in err) == (130, False)
