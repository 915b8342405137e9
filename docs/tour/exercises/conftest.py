"""The fixture of the exercises' tests: `exercise` is the module beside the test, `04_name.py` for `test_04_name.py`."""

import runpy
from types import SimpleNamespace

import pytest


@pytest.fixture
def exercise(request):
    file = request.path.with_name(request.path.name.removeprefix("test_"))
    return SimpleNamespace(**runpy.run_path(str(file)))
