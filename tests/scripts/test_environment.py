"""The scripts under any user, without a home, with any encoding, and with nobody who reads what they print."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
DRAW = (str(ROOT / "scripts" / "txt2img.py"), "--steps", "1", "--W", "64", "--H", "64", "--seed", "5", "--skip-grid")
PLAIN = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}  # ASCII everywhere
APPLE = "a red apple \U0001f34e"


def environment(**more: str) -> dict[str, str]:
    """Neither HOME nor a user's name, and nothing else that a container lacks."""
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "OMP_NUM_THREADS") if name in os.environ}
    return kept | more


def as_nobody() -> list[str]:
    """A command's beginning under which the user has a number and no entry in passwd; empty where that is refused."""
    command = ["unshare", "--user", "--map-user=12345"]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*command, "true"], capture_output=True, check=False).returncode
    ):
        return []
    return command


def test_a_user_without_home_name_or_utf_8_gets_the_image_of_an_emoji(tmp_path):
    command = [*as_nobody(), sys.executable, *DRAW, os.fsencode(APPLE), "--outdir", str(tmp_path)]
    run = subprocess.run(command, env=environment(**PLAIN), cwd=tmp_path, capture_output=True, check=False)
    assert run.returncode == 0, run.stderr.decode()
    assert b"Traceback" not in run.stderr
    with Image.open(tmp_path / "00000.png") as image:
        assert image.info["parameters"].startswith(APPLE)


def test_a_path_that_the_locale_cannot_write_is_one_sentence(tmp_path):
    program = (
        "from sd.utils.errors import plain_errors\n"
        "@plain_errors\ndef main():\n    open(chr(0x1f34e) + '.txt', 'w')\nmain()"
    )
    command = [sys.executable, "-c", program]
    run = subprocess.run(
        command,
        env=environment(**PLAIN, PYTHONPATH=str(ROOT)),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 2
    assert run.stderr.startswith("error: the locale has no UTF-8") or list(tmp_path.iterdir())
    assert run.stderr.count("\n") == 1


@pytest.mark.parametrize("flag", ["--help", "--list-optimizations"])
def test_output_that_nobody_reads_ends_the_script_quietly(flag, tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    run = subprocess.run(
        [sys.executable, DRAW[0], flag], stdout=writer, stderr=subprocess.PIPE, cwd=tmp_path, check=False
    )
    os.close(writer)
    assert run.stderr == b""
    assert run.returncode in (0, 141)
