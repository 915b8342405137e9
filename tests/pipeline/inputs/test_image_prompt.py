"""IP-Adapters in the pipeline: by name, with their images, in infotext, and what is refused."""

import numpy as np
import pytest
import torch
from small_models import save_image_encoder, save_ip_adapter

from sd.pipeline.metadata.settings_infotext import read_settings
from sd.utils.errors import UserError
from sd.vision.image_encoder import load_image_encoder

SMALL = dict(steps=2, seed=5, guidance_scale=3.0, sampler="euler")
V1_DIMS = [320] * 2 + [640] * 2 + [1280] * 5 + [640] * 3 + [320] * 3 + [1280]


def pixels(output):
    return np.array(output.images[0]).astype(int)


def test_it_changes_the_image_and_leaves_no_trace(controlled, photo):
    plain = controlled("a cat", **SMALL)
    state = {key: tensor.clone() for key, tensor in controlled.unet.state_dict().items()}
    made = controlled("a cat", control="face", control_image=photo, **SMALL)
    assert not np.array_equal(pixels(made), pixels(plain))
    assert made.notes == []
    assert np.array_equal(pixels(controlled("a cat", **SMALL)), pixels(plain))
    assert all(torch.equal(state[key], tensor) for key, tensor in controlled.unet.state_dict().items())
    again = controlled("a cat", control="face:preprocessor=ip-adapter-auto", control_image=photo, **SMALL)
    assert np.array_equal(pixels(again), pixels(made))


def test_the_values_of_a_unit_count(controlled, photo):
    wide = photo.resize((128, 64))

    def made(control):
        return pixels(controlled("a cat", control=control, control_image=wide, **SMALL))

    usual = made("face")
    assert np.array_equal(made("face:0"), pixels(controlled("a cat", **SMALL)))
    for other in ("0.5", "end=0.5", "resize=stretch", "resize=fill", "preprocessor=invert"):
        assert not np.array_equal(made(f"face:{other}"), usual), other
    notes = controlled("a cat", control="face:mode=prompt", control_image=wide, **SMALL).notes
    assert notes == ["face is an IP-Adapter, for which the mode changes nothing: use a weight, a start or an end."]


def test_it_works_with_a_controlnet_a_reference_and_a_second_pass(controlled, photo):
    given = dict(control_image=photo, hires_scale=1.5, **SMALL)
    without = controlled("a cat", control="one + reference_only", **given)
    made = controlled("a cat", control="one + reference_only + face:0.5", **given)
    assert made.images[0].size == (96, 96)
    assert not np.array_equal(pixels(made), pixels(without))


def test_the_encoder_is_kept_while_units_name_it(controlled, photo, tmp_path, monkeypatch):
    """Two adapters share it, two images and two calls read it, and a call without it releases it."""
    save_ip_adapter(tmp_path / "controlnet" / "body.safetensors")
    read = []

    def load_counted(path, *where):
        read.append(path.name)
        return load_image_encoder(path, *where)

    monkeypatch.setattr("sd.control.ip_adapter.kept_encoder.load_image_encoder", load_counted)
    made = controlled("a cat", control="face + body", control_image=[photo, photo.rotate(90)], **SMALL)
    turned = controlled("a cat", control="face", control_image=photo.rotate(180), **SMALL)
    assert read == ["image_encoder"]
    assert not np.array_equal(pixels(made), pixels(turned))
    controlled("a cat", **SMALL)
    assert controlled.controlnets.encoders == {}
    again = controlled("a cat", control="face", control_image=photo.rotate(180), **SMALL)
    assert np.array_equal(pixels(again), pixels(turned))
    assert read == ["image_encoder"] * 2


def test_a_replaced_encoder_is_read_again(controlled, photo, tmp_path):
    first = controlled("a cat", control="face", control_image=photo, **SMALL)
    (encoder,) = {one.path for one in controlled.controlnets.encoders.values()}
    save_image_encoder(encoder, seed=7)
    assert not np.array_equal(pixels(controlled("a cat", control="face", control_image=photo, **SMALL)), pixels(first))


def test_infotext_has_it_as_a_unit_and_its_encoder(controlled, photo, tmp_path):
    (tmp_path / "image_encoders").mkdir()
    (tmp_path / "controlnet" / "image_encoder").rename(tmp_path / "image_encoders" / "tiny")
    control = "face:0.6:preprocessor=ip-adapter_clip_sd15:encoder=tiny"
    made = controlled("a cat", control=control, control_image=photo, **SMALL)
    assert "Module: ip-adapter_clip_sd15, Model: face, Weight: 0.6" in made.infotexts[0]
    assert read_settings(made.infotexts[0]).values["control"] == (
        "face:weight=0.6:preprocessor=ip-adapter_clip_sd15:encoder=tiny"
    )
    found = controlled("a cat", control="face:0.6", control_image=photo, **SMALL)
    assert np.array_equal(pixels(found), pixels(made)), "it is the only one"


@pytest.mark.parametrize(
    ("control", "said"),
    [
        ("face:preprocessor=inpaint_only", "face is an IP-Adapter, and the preprocessor inpaint_only is for a"),
        ("one:preprocessor=ip-adapter_clip_sd15", "ip-adapter_clip_sd15 is for an IP-Adapter, and one is a ControlNet"),
        ("one:encoder=tiny", "an encoder is for an IP-Adapter, and one is a ControlNet: leave it out"),
        ("face:encoder=tiny", "there is no image encoder named tiny"),
        ("face:encoder=face", "face is an IP-Adapter, not an image encoder"),
        (
            "sd15",
            r"as it was published \(its text has 768 channels and it changes 16 layers\)",
        ),
        ("sdxl", "sdxl.safetensors is an IP-Adapter for Stable Diffusion XL: give an IP-Adapter for Stable Diffusion"),
    ],
)
def test_what_does_not_fit_is_refused(controlled, photo, tmp_path, control, said):
    save_ip_adapter(tmp_path / "controlnet" / "sd15.safetensors", V1_DIMS, 768)
    save_ip_adapter(tmp_path / "controlnet" / "sdxl.safetensors", [32] * 4, 2048)
    photo.putalpha(photo.convert("L"))
    with pytest.raises(UserError, match=said):
        controlled("a cat", control=control, control_image=photo, **SMALL)


def test_without_its_encoder_it_says_what_to_download(controlled, photo, tmp_path):
    (tmp_path / "controlnet" / "image_encoder").rename(tmp_path / "elsewhere.bak")
    for file in (tmp_path / "elsewhere.bak").iterdir():
        file.unlink()
    with pytest.raises(UserError, match="needs the image encoder OpenCLIP ViT-H/14, and there is none"):
        controlled("a cat", control="face", control_image=photo, **SMALL)
