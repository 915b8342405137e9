"""The rules of the layout: what may import what, what stands where, and how large folders and scripts may be."""

import ast
import os
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted(ROOT.glob("scripts/*.py"))
MODULES = [path for folder in ("sd", "benchmarks", "tour") for path in sorted(ROOT.glob(f"{folder}/**/*.py"))]
# The eight files that are Stable Diffusion, in reading order: each imports only those before it, and the errors.
EIGHT = ("attention", "tokenizer", "clip", "vae", "unet", "schedule", "denoiser", "samplers")
# What a package may import stands before it, or in a line above it.
LAYERS = [
    {"utils"},
    set(EIGHT),
    {"checkpoints", "optimization"},
    {"vision"},
    {"adapters", "control", "upscalers"},
    {"prompts"},
    {"pipeline"},
    {"evaluation"},
    {"cli"},
    {"training"},
    {"web", "benchmarks"},
    {"tour"},
]
LARGEST_FOLDER = 16


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


NAMES = {name_of(path) for path in MODULES}


def imported(path: Path) -> set[str]:
    """The modules of ours that a file imports: "sd.clip", "sd.training.loop"."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            members = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= members & NAMES or {node.module}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name.split(".")[0] in ("sd", "benchmarks", "tour", "scripts")}


def place(module: str) -> tuple[int, str]:
    """(its layer, its package): "sd.clip" is of the second layer."""
    package = module.split(".")[1] if module.startswith("sd.") else module.split(".")[0]
    (layer,) = (i for i, packages in enumerate(LAYERS) if package in packages)
    return layer, package


def test_eight_files_and_the_packages_are_all_there_is():
    entries = {
        entry.name.removesuffix(".py") for entry in os.scandir(ROOT / "sd") if not entry.name.startswith("__pyc")
    }
    assert entries - {"__init__", "py.typed", "data"} == set().union(*LAYERS) - {"benchmarks", "tour"}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_imports_nothing_from_a_layer_above_its_own(path):
    name = name_of(path)
    if name == "sd":
        return  # it names what other people import from here
    layer, package = place(name)
    for other in imported(path) - {"sd"}:
        other_layer, other_package = place(other)
        assert other_layer < layer or other_package == package or layer == 1 == other_layer, f"{name} imports {other}"


@pytest.mark.parametrize("name", EIGHT)
def test_the_eight_files_import_only_those_before_them_and_the_errors(name):
    before = {f"sd.{other}" for other in EIGHT[: EIGHT.index(name)]}
    assert imported(ROOT / "sd" / f"{name}.py") <= before | {"sd.utils.errors"}


def test_no_two_modules_import_each_other_in_a_circle():
    imports = {name_of(path): imported(path) & NAMES for path in MODULES}
    while leaves := [name for name, others in imports.items() if not others & imports.keys() - {name}]:
        for name in leaves:
            del imports[name]
    assert not imports


def test_no_library_module_imports_the_command_line():
    for path in MODULES:
        if not name_of(path).startswith(("sd.cli", "sd.training", "sd.web")):
            assert not [name for name in imported(path) if name == "sd.cli" or name.startswith("sd.cli.")], path


def test_every_parser_is_the_one_whose_errors_are_one_sentence():
    for path in [*MODULES, *SCRIPTS]:
        assert "argparse.ArgumentParser(" not in path.read_text(encoding="utf-8"), path


def test_no_folder_is_crowded():
    count = Counter(path.parent for path in MODULES if path.name != "__init__.py")
    assert max(count.values()) <= LARGEST_FOLDER, count.most_common(1)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_scripts_are_thin_and_import_no_other_script(path):
    assert not [name for name in imported(path) if name.startswith("scripts")]
    assert path.read_text(encoding="utf-8").count("\n") <= 82
