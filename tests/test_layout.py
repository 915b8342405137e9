"""The house rules: who may import whom, how the reading order goes, how large a script may be."""

import ast
from pathlib import Path

import pytest

import sd

ROOT = Path(__file__).resolve().parents[1]
ORDER = [line.split()[0] for line in sd.__doc__.splitlines() if line and line[0].islower()]
CORE = sorted(ROOT.glob("sd/*.py"))
SCRIPTS = sorted(ROOT.glob("scripts/*.py"))


def imported(path: Path) -> set[str]:
    """The modules of ours that a file imports, without `sd.`: "clip", "training.loop"."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "sd":
                found |= {alias.name for alias in node.names}
            elif node.module.startswith("sd."):
                found.add(node.module.removeprefix("sd."))
        elif isinstance(node, ast.Import):
            found |= {alias.name.removeprefix("sd.") for alias in node.names if alias.name.startswith("sd.")}
    return found


def test_every_file_has_its_place_in_the_reading_order():
    assert sorted(ORDER) == [path.stem for path in CORE if path.stem != "__init__"]


@pytest.mark.parametrize("path", CORE, ids=lambda path: path.stem)
def test_a_file_imports_only_files_above_it(path):
    above = [] if path.stem == "__init__" else ORDER[: ORDER.index(path.stem)]
    assert imported(path) <= set(above)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_scripts_are_thin_and_import_no_other_script(path):
    text = path.read_text(encoding="utf-8")
    assert not imported(path) & {script.stem for script in SCRIPTS} - set(ORDER)
    assert text.count("\n") <= 80


def test_readme_maps_every_file():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for path in CORE:
        if path.stem != "__init__":
            assert f"`sd/{path.name}`" in readme, path.name
