"""From what somebody asks for to a job."""

import pytest
from PIL import Image
from web_client import png

from sd.pipeline.inputs.sizes import check_named_models
from sd.pipeline.settings import GenerationSettings
from sd.utils.errors import UserError
from sd.web.jobs import submit as asking
from sd.web.jobs.model_index import Models
from sd.web.jobs.queue import Jobs
from sd.web.jobs.submit import GenerateRequest, submit_request, with_image_size


@pytest.mark.parametrize(("asked", "size"), [({}, (104, 8)), ({"width": 64}, (64, 8)), ({"height": 64}, (104, 64))])
def test_a_size_that_is_not_asked_for_is_the_images(asked, size):
    settings = with_image_size(GenerationSettings(seed=1, **asked), png(Image.new("RGB", (111, 5))))
    assert (settings.width, settings.height) == size


def test_an_image_is_not_opened_where_its_size_does_not_matter(monkeypatch):
    monkeypatch.setattr(asking, "image_size", lambda _: pytest.fail("was opened"))
    settings = GenerationSettings(seed=1, width=64, height=32)
    assert with_image_size(settings, b"a picture") == settings


@pytest.mark.parametrize("place", ["elsewhere", "models"])
@pytest.mark.parametrize(("kind", "ending"), [("ControlNet", ".safetensors"), ("upscaler", ".pth")])
def test_a_model_is_named_over_a_network_and_its_path_is_none(tmp_path, kind, ending, place):
    """Its file is not opened by the server: this one could not be."""
    models = Models(*(tmp_path / "models" / name for name in ("", "loras", "embeddings")))
    folder = tmp_path / place if place == "elsewhere" else models.folders[kind]
    folder.mkdir(parents=True)
    path = folder / f"mine{ending}"
    path.write_bytes(b"no weights")
    jobs = Jobs(tmp_path / "jobs", lambda job, tell: {})

    def settings_for(name):
        if kind == "upscaler":
            return GenerationSettings("x", width=64, height=64, hires_scale=2, hires_upscaler=str(name))
        return GenerationSettings("x", width=64, height=64, control=str(name))

    def submit(name):
        image = png(Image.new("RGB", (64, 64)))
        return submit_request(
            jobs, models, GenerateRequest(settings_for(name), control_images=[image][: kind[0] == "C"])
        )

    for name in (path, path.resolve(), f"{path}:weight=1" if kind == "ControlNet" else path.with_suffix("")):
        with pytest.raises(UserError, match=r"that is not|there is no|unknown upscaler"):
            submit(name)
    if place == "models":
        assert submit("mine").request["settings"]["width"] == 64
    if kind == "ControlNet":
        check_named_models(settings_for(path), models, 1, 0, has_image=False)
    else:
        with pytest.raises(UserError, match="mine"):  # what it is, since it was opened
            check_named_models(settings_for(path), models, 0, 0, has_image=False)
    jobs.close()
