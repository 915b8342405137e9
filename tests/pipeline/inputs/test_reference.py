"""Reference images in the pipeline: which image is read, in which passes, what is said, and that nothing remains."""

import numpy as np
import pytest
import torch
from PIL import Image

from sd.control.units import NO_MODEL, ControlUnit
from sd.pipeline.inputs.reference import ReferenceInput, fidelity_of
from sd.pipeline.latents import encode_image
from sd.pipeline.metadata.settings_infotext import read_settings
from sd.pipeline.noise import SeededNoise
from sd.schedule import SD1_SCHEDULE
from sd.utils.images import to_tensor

SMALL = dict(steps=2, seed=5, guidance_scale=3.0, sampler="euler")
NAMES = ("reference_only", "reference_adain", "reference_adain+attn")


def pixels(output):
    return np.array(output.images[0]).astype(int)


def unit(**given):
    return ControlUnit(NO_MODEL, **{"preprocessor": "reference_only"} | given)


def test_each_changes_the_image_and_leaves_no_trace(pipe, photo):
    plain = pipe("a cat", **SMALL)
    state = {key: tensor.clone() for key, tensor in pipe.unet.state_dict().items()}
    made = [pixels(pipe("a cat", control=name, control_image=photo, **SMALL)) for name in NAMES]
    every = [pixels(plain), *made]
    assert all(not np.array_equal(every[i], every[j]) for i in range(4) for j in range(i))
    assert np.array_equal(pixels(pipe("a cat", **SMALL)), pixels(plain))
    assert all(torch.equal(state[key], tensor) for key, tensor in pipe.unet.state_dict().items())
    other = pixels(pipe("a cat", control=NAMES[0], control_image=photo.rotate(90), **SMALL))
    assert not np.array_equal(other, made[0])


def test_the_values_of_a_unit_count(pipe, photo):
    def made(control, **given):
        return pixels(pipe("a cat", control=control, control_image=photo, **SMALL | given))

    usual = made("reference_only")
    assert np.array_equal(made("reference_only:a=0.5"), usual)
    assert np.array_equal(made("reference_only:0"), pixels(pipe("a cat", **SMALL)))
    for other in ("a=0", "a=1", "weight=0.4", "end=0.5", "mode=prompt", "mode=control"):
        assert not np.array_equal(made(f"reference_only:{other}"), usual), other
    assert np.array_equal(made("reference_only:mode=prompt"), made("reference_only:a=0"))
    assert np.array_equal(made("reference_only:mode=control"), made("reference_only:a=1"))


def test_the_reference_is_the_images_latent_and_its_noise_is_no_images(pipe, photo):
    wide = photo.resize((128, 64))
    control = ReferenceInput(unit(), wide, pipe.vae, SD1_SCHEDULE).control_for(64, 64)
    latent, noise = control.hint.chunk(2, dim=1)
    with torch.no_grad():
        expected = encode_image(pipe.vae, to_tensor(wide.crop((32, 0, 96, 64))))
    torch.testing.assert_close(latent, expected, rtol=0, atol=1e-5)  # the crop passes a resize to its own size
    assert torch.equal(noise, ReferenceInput(unit(), photo, pipe.vae, SD1_SCHEDULE).control_for(64, 64).hint[:, 4:])
    start = SeededNoise([0], (4, 8, 8), torch.device("cpu"))()
    assert abs((start * noise).mean().item()) < 0.3  # 256 products of independent normals: a deviation of 1 / 16


def test_the_fidelity_of_a_unit():
    assert [fidelity_of(unit(a=a)) for a in (None, 0.0, 0.2)] == [0.5, 0.0, 0.2]
    assert [fidelity_of(unit(mode=mode, a=0.2)) for mode in ("prompt", "control")] == [0, 1]
    assert fidelity_of(unit(a=0.2), second_pass=True) == 0
    assert fidelity_of(unit(mode="control"), second_pass=True) == 1


def test_a_batch_is_its_images_alone(pipe, photo):
    given = dict(control="reference_adain+attn:a=0.3", control_image=photo)
    both = pipe("a cat", num_images=2, batch_size=2, **given, **SMALL)
    alone = pipe("a cat", **given, **SMALL | {"seed": 6})
    # A batch adds in another order; 1 of 255 is rounding.
    assert abs(np.array(both.images[1]).astype(int) - pixels(alone)).max() <= 1


def test_with_everything_else(pipe, photo):
    """Two passes, windows, several prompts, merged tokens, seamless images, img2img and inpainting's own image."""
    given = dict(control="reference_only", control_image=photo, **SMALL)
    for more in (
        dict(hires_scale=1.5),
        dict(width=128, tile_size=64),
        dict(token_merging=0.5),
        dict(tiling=True),
        dict(guidance_scale=1.0),
        dict(ngms=5.0),
    ):
        assert not np.array_equal(
            pixels(pipe("a cat AND a dog", **given | more)), pixels(pipe("a cat AND a dog", **SMALL | more))
        ), more
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 32, 64))
    own = dict(image=photo, mask=mask, strength=1.0, control="reference_only", **SMALL)
    made = pipe("a cat", **own)
    assert np.array_equal(np.array(made.images[0])[:, 40:], np.array(photo)[:, 40:])
    assert np.array_equal(pixels(pipe("a cat", control_image=photo, **own)), pixels(made))


def test_an_inpainting_model_refers_too(inpainting_pipe, photo):
    mask = Image.new("L", (64, 64), 255)
    given = dict(image=photo, mask=mask, strength=1.0, **SMALL)
    plain = inpainting_pipe("a cat", **given)
    made = inpainting_pipe("a cat", control="reference_only", control_image=photo, **given)
    assert not np.array_equal(pixels(made), pixels(plain))


def test_infotext_has_it_in_the_webuis_words(pipe, photo):
    made = pipe("a cat", control="reference_only:0.8:a=0.7:end=0.9", control_image=photo, **SMALL)
    text = (
        'ControlNet 0: "Module: reference_only, Model: None, Weight: 0.8, Resize Mode: Crop and Resize, '
        'Threshold A: 0.7, Guidance Start: 0, Guidance End: 0.9, Control Mode: Balanced"'
    )
    assert text in made.infotexts[0]
    assert read_settings(made.infotexts[0]).values["control"] == "reference_only:weight=0.8:a=0.7:end=0.9"
    theirs = (
        'a cat\nSteps: 20, Sampler: Euler, CFG scale: 7, Seed: 1, ControlNet 0: "Module: reference_only, Model: None"'
    )
    assert read_settings(theirs).values["control"] == "reference_only"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (dict(control="reference_only:a=0.7:mode=prompt"), "0.7 changes nothing"),
        (dict(control="reference_only:1.5"), "1.5 is the same for reference_only"),
        (dict(control="reference_adain:1.5"), None),
        (dict(control="reference_only:0.5:mode=control"), None),
        (dict(control="reference_only", step_cache=2), "The step cache does not work with a reference"),
    ],
)
def test_what_changes_nothing_is_said(pipe, photo, given, said):
    notes = pipe("a cat", control_image=photo, **SMALL | given).notes
    assert notes == [] if said is None else said in notes[0]
