"""Every script at its door: help, unknown flags, numbers that are none, files that are not there."""

import argparse
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted(path.name for path in ROOT.glob("scripts/*.py"))
GENERATING = {
    "txt2img.py": ["a red apple"],
    "img2img.py": ["a red apple", "--init-img", "no such file.png"],
    "inpaint.py": ["a red apple", "--image", "no such file.png", "--mask", "no such file.png"],
}
WITHOUT_FILE = GENERATING | {
    "txt2img.py": ["--from-file", "no such file.txt"],
    "compare.py": ["a red apple", "--with", "embedding=no such file.pt"],
    "convert.py": ["no such file.ckpt", "out.safetensors"],
    "evaluate.py": ["--generated", "no such folder"],
    "evaluate_emoji.py": ["--data", "no such folder"],
    "train_ti.py": ["--images", "no such folder", "--word", "rex"],
    "train_lora.py": ["--images", "no such folder", "--name", "rex"],
    "train_dreambooth.py": ["--images", "no such folder", "--name", "rex"],
    "train_scratch.py": ["clip", "--data", "no such folder"],
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_names_every_default(run, script, monkeypatch):
    parsers = []
    kept = argparse.ArgumentParser.parse_args

    def parse(self, *args, **kwargs):
        parsers.append(self)
        return kept(self, *args, **kwargs)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse)
    code, out, _ = run(script, "--help")
    assert code == 0
    assert out.startswith("usage: ")
    for action in parsers[0]._actions:
        if type(action.default) in (int, float, str) and action.default not in ("", argparse.SUPPRESS):
            said = parsers[0]._get_formatter()._expand_help(action) if action.help else ""
            assert f"{action.default:g}" in said if type(action.default) is not str else action.default in said, said


@pytest.mark.parametrize("script", SCRIPTS)
def test_an_unknown_flag_is_one_sentence(run, script):
    code, out, err = run(script, "--no-such-flag")
    assert (code, out) == (2, "")
    assert err.startswith("error: ")  # a missing argument comes before an unknown one
    assert err.endswith("; see --help.\n")
    assert err.count("\n") == 1


def test_a_setting_out_of_bounds_is_named_as_its_flag(run):
    for flags, said in (
        (["--steps", "0"], "--steps must be a whole number from 1 to 1000, not 0."),
        (["--ddim_steps", "x"], "--steps must be a whole number, not 'x'; see --help."),
        (["--guidance-scale", "nan"], "--guidance-scale must be a number from 0 to 100, not nan."),
        (["--n-iter", "0"], "--n-iter must be a whole number from 1 to "),
        (["--stpes", "3"], "unknown flag --stpes: the nearest is --steps; see --help."),
    ):
        code, out, err = run("txt2img.py", "a red apple", *flags)
        assert (code, out) == (2, ""), err
        assert err.startswith(f"error: {said}")


@pytest.mark.parametrize("script", WITHOUT_FILE)
def test_a_file_that_is_not_there_is_one_sentence(run, script):
    code, _, err = run(script, *WITHOUT_FILE[script])
    assert code == 2, err
    assert err.splitlines()[-1].startswith("error: ")
    assert "no such" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("script", GENERATING)
@pytest.mark.parametrize(
    "flags",
    [
        ["--seed", "99999999999999999999"],
        ["--seed", "-2"],
        ["--seed", "1.5"],
        ["--steps", "abc"],
        ["--steps", "0"],
        ["--steps", "-1"],
        ["--width", "1e3"],
        ["--width", "-64"],
        ["--guidance-scale", "nan"],
        ["--guidance-scale", "inf"],
        ["--num-images", "0"],
        ["--clip-skip", "0"],
        ["--precision", "fp8"],
    ],
    ids=" ".join,
)
def test_numbers_that_cannot_be_meant_are_one_sentence(run, script, flags):
    code, out, err = run(script, *GENERATING[script], *flags)
    assert (code, out) == (2, ""), err
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_a_script_can_be_run_from_anywhere(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["txt2img.py", "--help"])
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(ROOT / "scripts" / "txt2img.py"), run_name="__main__")
    assert left.value.code == 0
    assert "usage" in capsys.readouterr().out
