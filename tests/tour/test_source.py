"""Code by reference: functions, methods, classes and constants of files, with their lines."""

import inspect
import textwrap

import pytest

from sd import schedule, vae
from sd.utils.errors import UserError
from tour.source import ROOT, source_of


def test_a_method_is_the_text_that_python_finds():
    found = source_of("sd/schedule.py", "NoiseSchedule.add_noise")
    lines, first = inspect.getsourcelines(schedule.NoiseSchedule.add_noise)
    assert found.text == textwrap.dedent("".join(lines)).rstrip("\n")
    assert (found.first, found.last) == (first, first + len(lines) - 1)


def test_a_constant_has_the_comment_above_it():
    found = source_of("sd/vae.py", "LATENT_SCALE")
    assert found.text.startswith("# ")
    assert found.text.endswith(f"LATENT_SCALE = {vae.LATENT_SCALE}")
    assert (ROOT / "sd/vae.py").read_text(encoding="utf-8").split("\n")[found.last - 1].startswith("LATENT_SCALE")


def test_decorators_belong_to_a_function():
    assert source_of("tour/figure.py", "reproducible").text.startswith("@contextmanager\n")


@pytest.mark.parametrize("name", ["Nothing", "NoiseSchedule.nothing", "TIMES.real"])
def test_a_name_that_is_gone_is_an_error(name):
    with pytest.raises(UserError, match="has no"):
        source_of("sd/schedule.py", name)
