"""The examples in docstrings are run."""

import doctest
import importlib
import pkgutil
from pathlib import Path

import pytest

import sd

ROOT = Path(__file__).resolve().parents[2]
MODULES = [
    module.name
    for module in pkgutil.walk_packages(sd.__path__, "sd.")
    if not module.ispkg and ">>>" in (ROOT / (module.name.replace(".", "/") + ".py")).read_text(encoding="utf-8")
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    found = doctest.testmod(importlib.import_module(name))
    assert found.attempted > 0
    assert found.failed == 0


def test_there_are_some():
    assert "sd.prompts.weighting" in MODULES
