"""The wheel: what it holds, what it needs, and that it generates an image far away from the clone."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import readme_commands as readme

from sd.pipeline.infotext import read_infotext

ROOT = Path(__file__).resolve().parents[2]
tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no tomllib")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
BUILD = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"


def requirements(name: str) -> set[str]:
    lines = (ROOT / name).read_text().splitlines()
    return {line.strip() for line in lines if line.strip() and not line.startswith(("#", "-r"))}


def included(name: str) -> set[str]:
    return set(re.findall(r"^-r requirements-?(\w*)\.txt$", (ROOT / name).read_text(), re.MULTILINE)) - {""}


def test_the_dependencies_are_those_of_the_requirements_files():
    assert set(PROJECT["dependencies"]) == requirements("requirements.txt")
    extras = PROJECT["optional-dependencies"]
    assert {f"requirements-{name}.txt" for name in extras} == {path.name for path in ROOT.glob("requirements-*.txt")}
    for name, wanted in extras.items():
        file, nested = f"requirements-{name}.txt", [one for one in wanted if one.startswith("sd-by-hand")]
        assert set(wanted) - set(nested) == requirements(file), name
        assert {part for one in nested for part in re.search(r"\[(.*)\]", one)[1].split(",")} == included(file), name


SAFE = {  # the oldest versions without a known defect that a stranger's file reaches, and when that was looked up
    "pillow": ((12, 3), "2026-11-26: overflows of the heap in decoders of earlier versions"),
    "torch": ((2, 6), "2026-11-26: before it torch.load, which reads our training states, could execute code"),
}


def test_no_version_with_a_known_defect_is_accepted():
    """`make audit` looks for new ones, where it can reach its data."""
    for name, (oldest, why) in SAFE.items():
        wanted = next(one for one in PROJECT["dependencies"] if re.match(rf"{name}\b", one))
        floor = tuple(map(int, re.search(r">=([\d.]+)", wanted)[1].split(".")))
        assert floor >= oldest, why


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from a copy of what git knows and unpacked."""
    pytest.importorskip("setuptools", reason="setuptools is not installed: make test installs it")
    if not shutil.which("git"):
        pytest.skip("git is not installed")
    folder = tmp_path_factory.mktemp("wheel")
    copy, out, unpacked = folder / "copy", folder / "dist", folder / "unpacked"
    copy.mkdir()
    out.mkdir()
    readme.copy_files(copy)
    (copy / "weights" / "own.safetensors").write_bytes(b"the user's own model is not part of a wheel")
    subprocess.run([sys.executable, "-c", BUILD, out], cwd=copy, check=True, capture_output=True)
    zipfile.ZipFile(next(out.glob("*.whl"))).extractall(unpacked)
    return unpacked


def test_the_wheel_holds_all_modules_and_data(wheel):
    files = {path.relative_to(wheel).as_posix() for path in wheel.rglob("*") if path.is_file()}
    for module in ROOT.glob("sd/**/*"):
        name = module.relative_to(ROOT).as_posix()
        if module.is_file() and "__pycache__" not in name:
            assert name in files, name
    assert {f"sd/weights/emoji{part}.safetensors" for part in ("", "-clip", "-edges")} <= files
    assert "sd/weights/own.safetensors" not in files


def test_every_command_names_a_function_of_the_wheel(wheel):
    for command, target in PROJECT["scripts"].items():
        module, function = target.split(":")
        path = wheel / (module.replace(".", "/") + ".py")
        assert path.stem == command.removeprefix("sd-").replace("-", "_")
        assert re.search(rf"^def {function}\(", path.read_text(), re.MULTILINE), command


@pytest.mark.slow
def test_the_wheel_generates_from_another_folder(wheel, tmp_path):
    """With the weights inside it, and with a user's own models and wildcards in the current folder."""
    (tmp_path / "data" / "wildcards").mkdir(parents=True)
    (tmp_path / "data" / "wildcards" / "fruit.txt").write_text("apple\n")
    program = (
        "from sd_scripts.txt2img import main; from sd.checkpoints import discovery; main(); print(discovery.WEIGHTS)"
    )
    environ = {name: value for name, value in os.environ.items() if name != "SD_WEIGHTS"} | {"PYTHONPATH": str(wheel)}
    command = [sys.executable, "-c", program, "a red __fruit__", "--steps", "1", "--seed", "1"]
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == str(tmp_path / "weights")
    assert read_infotext(tmp_path / "outputs" / "00000.png").startswith("a red apple\n")
