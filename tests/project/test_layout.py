"""The house rules: who may import whom, how the reading order goes, how large a script may be."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
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


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_scripts_are_thin_and_import_no_other_script(path):
    text = path.read_text(encoding="utf-8")
    assert not imported(path) & {script.stem for script in SCRIPTS}
    assert text.count("\n") <= 80
