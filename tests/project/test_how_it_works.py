"""docs/how-it-works.md: what it links to and names exists, and it covers the eight files in their order."""

import re
from pathlib import Path

import pytest

from tests.project.test_layout import EIGHT

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "how-it-works.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)]+)\)", TEXT))))
def test_its_links_lead_to_files(link):
    assert (ROOT / "docs" / link).is_file()


@pytest.mark.parametrize(("name", "path"), re.findall(r"`(test_\w+)` in \[(tests/\w+\.py)\]", TEXT))
def test_the_tests_that_it_names_exist(name, path):
    assert f"def {name}(" in (ROOT / path).read_text(encoding="utf-8")


def test_the_reading_order_is_that_of_the_imports():
    rows = re.findall(r"^\| \[sd/(\w+)\.py\]", TEXT, re.MULTILINE)
    assert tuple(rows) == EIGHT
