"""Ctrl-C while a script still imports PyTorch, which takes seconds: no traceback, and the exit code of SIGINT."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = sorted((Path(__file__).resolve().parents[2] / "scripts").glob("*.py"))


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """A folder whose `torch` and `numpy` are interrupted while they are imported."""
    folder = tmp_path_factory.mktemp("modules")
    for name in ("torch", "numpy"):
        (folder / f"{name}.py").write_text("raise KeyboardInterrupt\n")
    return folder


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_an_interrupted_import_ends_a_script_without_a_traceback(script, interrupted):
    command = [sys.executable, script, "--help"]
    environ = os.environ | {"PYTHONPATH": str(interrupted)}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "stopped.\n")
