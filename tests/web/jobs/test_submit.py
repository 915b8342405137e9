"""From what somebody asks for to a job."""

import pytest
from PIL import Image
from web_client import png

from sd.pipeline.settings import GenerationSettings
from sd.web.jobs import submit as asking
from sd.web.jobs.submit import with_image_size


@pytest.mark.parametrize(("asked", "size"), [({}, (104, 8)), ({"width": 64}, (64, 8)), ({"height": 64}, (104, 64))])
def test_a_size_that_is_not_asked_for_is_the_images(asked, size):
    settings = with_image_size(GenerationSettings(seed=1, **asked), png(Image.new("RGB", (111, 5))))
    assert (settings.width, settings.height) == size


def test_an_image_is_not_opened_where_its_size_does_not_matter(monkeypatch):
    monkeypatch.setattr(asking, "image_size", lambda _: pytest.fail("was opened"))
    settings = GenerationSettings(seed=1, width=64, height=32)
    assert with_image_size(settings, b"a picture") == settings
