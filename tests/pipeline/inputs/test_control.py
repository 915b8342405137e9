"""ControlNets in the pipeline: which image is read, in which passes, and that nothing remains."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

from sd.control.preprocessors import PREPROCESSORS
from sd.control.units import NO_MODEL, ControlUnit
from sd.pipeline.inputs.control_images import fit_control_image, hint_of
from sd.pipeline.metadata.settings_infotext import read_settings
from sd.utils.errors import UserError

SMALL = dict(steps=3, seed=5, guidance_scale=3.0, sampler="euler")


def pixels(output):
    return np.array(output.images[0]).astype(int)


def test_it_changes_the_image_and_leaves_no_trace(controlled, photo):
    plain = controlled("a cat", **SMALL)
    state = {key: tensor.clone() for key, tensor in controlled.unet.state_dict().items()}
    made = controlled("a cat", control="one", control_image=photo, **SMALL)
    assert abs(pixels(made) - pixels(plain)).mean() > 2
    assert np.array_equal(pixels(controlled("a cat", **SMALL)), pixels(plain))
    assert all(torch.equal(state[key], tensor) for key, tensor in controlled.unet.state_dict().items())


def test_weight_0_is_no_control_and_the_image_counts(controlled, photo):
    plain = pixels(controlled("a cat", **SMALL))
    assert np.array_equal(pixels(controlled("a cat", control="one:0", control_image=photo, **SMALL)), plain)
    one = pixels(controlled("a cat", control="one", control_image=photo, **SMALL))
    other = pixels(controlled("a cat", control="one", control_image=photo.rotate(90), **SMALL))
    edges = pixels(controlled("a cat", control="one:preprocessor=canny", control_image=photo, **SMALL))
    assert not np.array_equal(one, other)
    assert not np.array_equal(one, edges)


def test_a_preprocessor_that_finds_nothing_is_said(controlled, photo):
    gray = Image.new("RGB", (64, 64), "gray")
    noted = controlled("a cat", control="one:preprocessor=canny + two", control_image=[gray, gray], **SMALL).notes
    assert len(noted) == 1
    assert "preprocessor canny found nothing in the image for one" in noted[0]
    assert controlled("a cat", control="one:preprocessor=canny:a=1:b=2", control_image=photo, **SMALL).notes == []


def test_a_unit_between_whose_start_and_end_there_is_no_step_is_said(controlled, photo):
    """The 2 steps are at the times 501 and 1 of 0 to 999."""
    control = "one:end=0.4 + reference_only:start=0.6:end=0.9 + two:end=0.5 + two:0:start=0.6:end=0.7"
    noted = controlled("a cat", control=control, control_image=photo, **SMALL | {"steps": 2}).notes
    apart = "so it changes nothing: move them apart."
    assert noted == [
        f"None of the 2 steps lies between start 0 and end 0.4 of one, {apart}",
        f"None of the 2 steps lies between start 0.6 and end 0.9 of reference_only, {apart}",
    ]


def test_a_number_that_a_preprocessor_does_not_read_is_said(controlled, photo):
    control = "one:a=5 + two:preprocessor=threshold:a=99:b=3 + reference_only:a=1:b=7"
    assert controlled("a cat", control=control, control_image=photo, **SMALL).notes == [
        "The preprocessor none has no number a: 5 changes nothing.",
        "The preprocessor threshold has no number b: 3 changes nothing.",
        "The preprocessor reference_only has no number b: 7 changes nothing.",
    ]


def test_several_have_an_image_each_or_share_one(controlled, photo):
    turned = photo.rotate(90)
    made = [
        pixels(controlled("a cat", control="one + two:0.5", control_image=images, **SMALL))
        for images in ([photo, turned], [photo, photo], photo)
    ]
    assert np.array_equal(made[1], made[2])
    assert not np.array_equal(made[0], made[1])


def test_without_a_control_image_the_init_image_is_read(controlled, photo):
    given = dict(image=photo, strength=1.0, control="one", **SMALL)
    assert np.array_equal(
        pixels(controlled("a cat", **given)), pixels(controlled("a cat", control_image=photo, **given))
    )


@pytest.mark.parametrize("unit", ["one", "adapter", "one:preprocessor=inpaint_only"])
def test_with_only_masked_a_control_image_is_one_of_the_whole_image(controlled, unit):
    """It is cut as the image itself is, which is read where there is none."""
    image = Image.effect_noise((256, 192), 90).convert("RGB")
    mask = Image.new("L", image.size)
    mask.paste(255, (160, 96, 200, 130))
    given = dict(image=image, mask=mask, only_masked=True, control=unit, width=64, height=64, **SMALL)
    own = pixels(controlled("a cat", **given))
    assert np.array_equal(pixels(controlled("a cat", control_image=image, **given)), own)
    turned = pixels(controlled("a cat", control_image=image.rotate(180), **given))
    assert not np.array_equal(turned, own)
    if "inpaint" in unit:  # transparency far from the region is cut off
        corner = image.copy()
        corner.putalpha(Image.new("L", image.size, 255))
        corner.paste((0, 0, 0, 0), (0, 180, 20, 192))
        made = pixels(controlled("a cat", control_image=corner, **given))
        assert np.array_equal(made, pixels(controlled("a cat", control_image=image, **given | {"control": "one"})))


def test_a_batch_is_its_images_alone(controlled, photo):
    given = dict(control="one:mode=control + two:end=0.5", control_image=photo)
    both = controlled("a cat", num_images=2, batch_size=2, **given, **SMALL)
    alone = controlled("a cat", **given, **SMALL | {"seed": 6})
    # A batch adds in another order; 1 of 255 is rounding.
    assert abs(np.array(both.images[1]).astype(int) - pixels(alone)).max() <= 1


def test_the_second_pass_is_controlled_too(controlled, photo):
    given = dict(hires_scale=2.0, hires_strength=1.0, **SMALL)
    plain = controlled("a cat", **given)
    made = controlled("a cat", control="one", control_image=photo, **given)
    assert made.images[0].size == (128, 128)
    assert not np.array_equal(pixels(made), pixels(plain))


def test_a_t2i_adapter_is_used_as_a_controlnet_is(controlled, photo):
    plain = pixels(controlled("a cat", **SMALL))
    made = controlled("a cat", control="adapter:0.8", control_image=photo, **SMALL)
    assert abs(pixels(made) - plain).mean() > 2
    assert np.array_equal(
        pixels(controlled("a cat", control="adapter:0.8", control_image=photo, **SMALL)), pixels(made)
    )
    assert np.array_equal(pixels(controlled("a cat", **SMALL)), plain)
    assert read_settings(made.infotexts[0]).values["control"] == "adapter:weight=0.8"
    both = controlled("a cat", control="adapter + one:mode=control", control_image=photo, hires_scale=1.5, **SMALL)
    assert both.images[0].size == (96, 96)
    photo.putalpha(Image.linear_gradient("L").resize((64, 64)))
    with pytest.raises(UserError, match="adapter is a T2I-Adapter, and the preprocessor inpaint_only"):
        controlled("a cat", control="adapter:preprocessor=inpaint_only", control_image=photo, **SMALL)


@pytest.mark.parametrize("kind", ["adapter", "one"])
def test_control_images_of_any_kind(controlled, photo, kind):
    """A control image is read as any image is: a palette, gray, 16 bits; transparent parts are white."""
    gray = photo.convert("L")
    deep = Image.fromarray(np.array(gray).astype(np.uint16) * 257)
    expected = pixels(controlled("a cat", control=kind, control_image=gray, **SMALL))
    for other in (gray.convert("RGBA"), gray.convert("P"), deep, np.array(gray), gray.convert("LA")):
        assert abs(pixels(controlled("a cat", control=kind, control_image=other, **SMALL)) - expected).max() <= 1


@pytest.mark.parametrize("size", [(1, 1), (3000, 5), (17, 301), (64, 64)])
@pytest.mark.parametrize("name", list(PREPROCESSORS))
def test_every_preprocessor_takes_an_image_of_any_size(name, size):
    one = PREPROCESSORS[name]
    image = Image.effect_noise(size, 90).convert("RGBA")
    mask = Image.new("L", size, 255) if one.for_masks else None
    for resize in ("crop", "stretch", "fill"):
        hint = hint_of(
            image, mask, ControlUnit(NO_MODEL if one.model_free else "x", preprocessor=name, resize=resize), 72, 64
        )
        assert hint.shape == (1, 3, 64, 72)
        assert hint.max() <= 1


def test_the_step_cache_is_off_aloud(controlled, photo):
    given = dict(control="one", control_image=photo, **SMALL)
    cached = controlled("a cat", step_cache=2, **given)
    assert "The step cache does not work with a ControlNet" in cached.notes[0]
    assert np.array_equal(pixels(cached), pixels(controlled("a cat", **given)))


def test_with_tiling_and_with_inpainting(controlled, photo):
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 32, 64))
    controlled("a cat", tiling=True, control="one", control_image=photo, **SMALL)
    made = controlled("a cat", image=photo, mask=mask, control="one:preprocessor=inpaint_only", **SMALL)
    assert np.array_equal(np.array(made.images[0])[:, 40:], np.array(photo)[:, 40:])


def test_the_loaded_ones_are_those_of_the_last_call(controlled, photo):
    controlled("a cat", control="one + two", control_image=photo, **SMALL)
    first = next(iter(controlled.controlnets.loaded.values()))
    controlled("a cat", control="one", control_image=photo, **SMALL)
    assert list(controlled.controlnets.loaded.values()) == [first]


def test_a_replaced_file_is_loaded_again(controlled, photo, tmp_path):
    """A training that goes on writes the same name; a server would use the first network forever."""
    first = pixels(controlled("a cat", control="one", control_image=photo, **SMALL))
    os.replace(tmp_path / "controlnet" / "two.safetensors", tmp_path / "controlnet" / "one.safetensors")
    second = pixels(controlled("a cat", control="one", control_image=photo, **SMALL))
    assert not np.array_equal(second, first)
    assert len(controlled.controlnets.loaded) == 1


def test_infotext_has_the_units_in_the_webuis_words_and_no_path(controlled, photo, tmp_path):
    path = tmp_path / "controlnet" / "one.safetensors"
    made = controlled("a cat", control=f"{path}:0.8:preprocessor=canny:a=50", control_image=photo, **SMALL)
    assert (
        'ControlNet 0: "Module: canny, Model: one, Weight: 0.8, Resize Mode: Crop and Resize, Threshold A: 50, '
        'Threshold B: 200, Guidance Start: 0, Guidance End: 1, Control Mode: Balanced"' in made.infotexts[0]
    )
    reading = read_settings(made.infotexts[0])
    assert reading.values["control"] == "one:weight=0.8:preprocessor=canny:a=50"
    assert "whose image is not in it" in reading.notes["ControlNet"]


@pytest.mark.parametrize(
    ("text", "control"),
    [
        (
            "Module: tile_resample, Model: control_v11f1e_sd15_tile [a371b31b], Weight: 0.6, Resize Mode: Just Resize, "
            "Processor Res: 512, Threshold A: 1.0, Threshold B: 0.5, Guidance Start: 0.1, Guidance End: 0.9, "
            "Pixel Perfect: True, Control Mode: ControlNet is more important",
            "control_v11f1e_sd15_tile:weight=0.6:preprocessor=tile_resample:start=0.1:end=0.9:mode=control:"
            "resize=stretch",
        ),
        (
            "preprocessor: canny, model: control_v11p_sd15_canny [d14c016b], weight: 1, starting/ending: (0, 0.5), "
            "resize mode: Crop and Resize, pixel perfect: False, control mode: Balanced, "
            "preprocessor params: (512, 80, 200)",
            "control_v11p_sd15_canny:preprocessor=canny:a=80:end=0.5",
        ),
    ],
)
def test_the_webuis_texts_are_read(text, control):
    reading = read_settings(f'a cat\nSteps: 20, Sampler: Euler, CFG scale: 7, Seed: 1, ControlNet 0: "{text}"')
    assert reading.values["control"] == control


def test_a_preprocessor_that_is_not_here_is_a_problem_by_its_name():
    text = 'a cat\nSteps: 20, Sampler: Euler, CFG scale: 7, Seed: 1, ControlNet 0: "Module: midas, Model: depth"'
    assert "unknown preprocessor 'midas'" in read_settings(text).problems["control"]


# Images


def test_an_image_is_fitted_as_asked():
    wide = Image.new("RGB", (40, 20), "red")
    wide.paste("blue", (0, 0, 40, 3))
    assert fit_control_image(wide, "crop", 20, 20).getpixel((10, 10)) == (255, 0, 0)
    filled = fit_control_image(wide, "fill", 40, 40)
    assert filled.getpixel((20, 2)) == (255, 0, 0), "the border's median color"
    assert filled.getpixel((20, 11))[2] > 200
    assert fit_control_image(wide, "stretch", 20, 20).getpixel((10, 1))[2] > 200


def test_the_hint_is_0_to_1_and_minus_1_under_the_mask(photo):
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 32, 64))
    hint = hint_of(photo, mask, ControlUnit("x", preprocessor="inpaint_only"), 64, 64)
    assert hint.shape == (1, 3, 64, 64)
    assert (hint[..., :32] == -1).all()
    torch.testing.assert_close(hint[0, :, 5, 50], torch.tensor(photo.getpixel((50, 5))) / 255)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (dict(control="one"), "needs an image"),
        (dict(control_image=True), "without a ControlNet"),
        (dict(control="none such", control_image=True), "there is no ControlNet named none such"),
        (dict(control="one:preprocessor=inpaint_only", control_image=True), "needs a mask"),
    ],
)
def test_what_cannot_be_controlled_is_refused(controlled, photo, given, said):
    given = {name: photo if value is True else value for name, value in given.items()}
    with pytest.raises(UserError, match=said):
        controlled("a cat", **given, **SMALL)
