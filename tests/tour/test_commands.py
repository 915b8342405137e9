"""The commands of "Change this and look": each runs as it is printed and leaves an image."""

import os
import re
import subprocess
import sys

import pytest

from tour.pages import read_chapters
from tour.source import ROOT

SECTION = re.compile(r"## Change this and look\n.*?```\n(.*?)\n```", re.DOTALL)


@pytest.mark.slow
@pytest.mark.parametrize("chapter", read_chapters(), ids=lambda chapter: chapter.name)
def test_a_chapters_command_runs(chapter, tmp_path):
    (command,) = SECTION.findall(chapter.text)
    command = command.replace("python ", f"{sys.executable} ", 1).replace(" scripts/", f" {ROOT}/scripts/")
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},  # other tests run beside it
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.rglob("*.png")) or done.stdout
