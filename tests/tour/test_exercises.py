"""The tour's exercises: their tests fail as they come, and pass with the project's own functions put in."""

import ast
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from exercise_solutions import SOLUTIONS

ROOT = Path(__file__).resolve().parents[2]
EXERCISES = ROOT / "docs" / "tour" / "exercises"
STUBS = sorted(EXERCISES.glob("[0-9]*.py"))


def run_exercises(report: Path, *flags: str) -> dict[str, str]:
    """Return the outcome of each of the exercises' tests: "" where it passed, or the message of its failure."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    environment.pop("PYTEST_ADDOPTS", None)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", *flags]
    command += ["docs/tour/exercises", "--junitxml", str(report)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert report.exists(), done.stdout + done.stderr
    outcomes = {}
    for case in ElementTree.parse(report).iter("testcase"):
        wrong = [*case.iter("failure"), *case.iter("error")]
        outcomes[f"{case.get('classname')}::{case.get('name')}"] = wrong[0].get("message", "?") if wrong else ""
    return outcomes


def test_as_they_come_all_fail_and_say_why(tmp_path):
    outcomes = run_exercises(tmp_path / "report.xml")
    assert len(outcomes) > 2 * len(STUBS)
    assert {name for name, message in outcomes.items() if "NotImplementedError: write this" not in message} == set()


def test_with_the_projects_own_functions_all_pass(tmp_path):
    outcomes = run_exercises(tmp_path / "report.xml", "-p", "exercise_solutions")
    assert len(outcomes) > 2 * len(STUBS)
    assert {name: message for name, message in outcomes.items() if message} == {}


def test_one_of_them_is_chosen_by_its_number(tmp_path):
    outcomes = run_exercises(tmp_path / "report.xml", "-p", "exercise_solutions", "-k", "04")
    assert list(outcomes) == [name for name in outcomes if "test_04_swap_a_word" in name] != []


def test_every_chapter_has_one():
    assert [path.stem[:2] for path in STUBS] == [f"{number:02}" for number in range(1, 13)]
    assert [path.stem for path in STUBS] == list(SOLUTIONS)
    page = (EXERCISES / "README.md").read_text(encoding="utf-8")
    for path in STUBS:
        assert path.with_name(f"test_{path.name}").exists()
        assert f"({path.name})" in page


@pytest.mark.parametrize("path", STUBS, ids=lambda path: path.stem)
def test_a_stub_asks_for_what_has_a_solution_and_names_it(path):
    text = path.read_text(encoding="utf-8")
    asked = [node.name for node in ast.parse(text).body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    assert asked == list(SOLUTIONS[path.stem])
    for place in SOLUTIONS[path.stem].values():
        assert f"`{place.split(':')[1].replace('SD1_SCHEDULE', 'NoiseSchedule')}`" in text
