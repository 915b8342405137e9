"""Outpainting: where the image stands, what the new part starts from, and what stays."""

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageOps

from sd.pipeline.inputs.options import canonical_sides
from sd.pipeline.inputs.outpaint import OVERLAP, extend_colors, extend_image, extension_mask
from sd.pipeline.settings import GenerationSettings
from sd.utils.errors import UserError

SMALL = dict(steps=2, seed=5, guidance_scale=3.0, sampler="euler")
SIZED = dict(width=64, height=64)


@pytest.mark.parametrize(
    ("text", "sides"),
    [
        ("all", "left, right, up, down"),
        ("down left", "left, down"),
        ("Right,UP", "right, up"),
        ("up+left+up", "left, up"),
    ],
)
def test_sides_as_people_write_them(text, sides):
    assert canonical_sides(text) == sides
    assert GenerationSettings(outpaint_sides=text).outpaint_sides == sides


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (dict(outpaint=12), "multiple of 8"),
        (dict(outpaint=2000), "from 0 to 1024"),
        (dict(outpaint=8, outpaint_sides="top"), "'top'"),
        (dict(outpaint_sides=" , "), "are empty"),
        (dict(outpaint=1024, width=4096, height=64), "cannot be made"),
    ],
)
def test_values_that_cannot_be_used_are_refused(given, said):
    with pytest.raises(UserError, match=said):
        GenerationSettings(**given)


def test_the_size_grows_on_the_chosen_sides():
    settings = GenerationSettings(outpaint=16, outpaint_sides="left, right, down", **SIZED)
    assert settings.margins == (16, 16, 0, 16)
    assert settings.outpainted_size == (96, 80)


def test_the_mask_is_white_outside_and_fades_inside_over_one_position_of_the_latent():
    mask = np.asarray(extension_mask((64, 32), (16, 0, 8, 0))).astype(int)
    assert mask.shape == (40, 80)
    assert (mask[:8] == 255).all()
    assert (mask[:, :16] == 255).all()
    assert (mask[8 + OVERLAP :, 16 + OVERLAP :] == 0).all()
    expected = [round(255 * (1 - (d + 0.5) / OVERLAP)) for d in range(OVERLAP)]
    assert mask[30, 16 : 16 + OVERLAP].tolist() == expected
    assert mask[8 : 8 + OVERLAP, 60].tolist() == expected


def test_the_new_part_starts_from_the_colors_at_the_edge(photo):
    image = Image.new("RGB", (64, 64), (200, 40, 40))
    image.paste((20, 20, 200), (32, 0, 64, 64))
    colors = np.asarray(extend_colors(image, (64, 64, 0, 0))).astype(int)
    assert np.array_equal(colors[:, 64:128], np.asarray(image))
    # The nearest color is nearly alone within the smallest blurs; a few levels are lost in 8-bit premultiplying.
    assert np.abs(colors[:, 60:64] - (200, 40, 40)).max() <= 12
    assert np.abs(colors[:, 128:132] - (20, 20, 200)).max() <= 12
    assert colors[:, :64, 0].min() > 100  # and no black anywhere


def test_without_outpaint_all_is_as_given(photo):
    settings = GenerationSettings(**SIZED)
    assert extend_image(settings, photo, None) == (settings, photo, None)


def test_the_image_stays_and_is_extended(pipe, photo):
    made = pipe("a cat", image=photo, outpaint=16, outpaint_sides="left, down", strength=1.0, **SMALL)
    assert made.images[0].size == (80, 80)
    assert made.latents.shape == (1, 4, 10, 10)
    kept = made.images[0].crop((16 + OVERLAP, 0, 80, 64 - OVERLAP))
    assert np.array_equal(np.asarray(kept), np.asarray(photo.crop((OVERLAP, 0, 64, 64 - OVERLAP))))
    (text,) = made.infotexts
    assert "Size: 64x64" in text  # that of the image, so that the same settings give the same image again
    assert 'Outpainting pixels: 16, Outpainting sides: "left, down"' in text
    by_hand = extend_image(GenerationSettings(outpaint=16, outpaint_sides="left, down", **SIZED), photo, None)
    again = pipe("a cat", image=by_hand[1], mask=by_hand[2], strength=1.0, **SMALL)
    assert np.array_equal(np.asarray(again.images[0]), np.asarray(made.images[0]))


def test_a_mask_is_regenerated_as_well_also_inverted(photo):
    mask = Image.new("L", (64, 64))
    ImageDraw.Draw(mask).rectangle((20, 20, 39, 39), fill=255)
    settings = GenerationSettings(outpaint=16, outpaint_sides="right", **SIZED)
    _, _, both = extend_image(settings, photo, mask)
    alone = extension_mask((64, 64), (0, 16, 0, 0))
    assert np.array_equal(np.asarray(both)[:, 40:], np.asarray(alone)[:, 40:])
    assert both.crop((20, 20, 40, 40)).getextrema() == (255, 255)
    inverted = settings.replace(invert_mask=True)
    changed, _, other = extend_image(inverted, photo, ImageOps.invert(mask))
    assert (other.tobytes(), changed.invert_mask) == (both.tobytes(), False)
    with pytest.raises(UserError, match="there is none"):
        extend_image(inverted, photo, None)


def test_only_masked_keeps_the_image_at_its_own_size(pipe, photo):
    large = photo.resize((200, 128))
    given = dict(outpaint=64, outpaint_sides="right", only_masked=True, only_masked_padding=16, strength=1.0)
    made = pipe("a cat", image=large, **SIZED, **given, **SMALL)
    assert made.images[0].size == (264, 128)
    assert made.latents.shape == (1, 4, 8, 8)
    kept = np.asarray(made.images[0].crop((0, 0, 200 - OVERLAP, 128)))
    assert np.array_equal(kept, np.asarray(large.crop((0, 0, 200 - OVERLAP, 128))))


def test_nine_channels_blur_and_soft_inpainting_work_too(inpainting_pipe, pipe, photo):
    given = dict(image=photo, outpaint=16, outpaint_sides="up", mask_blur=4, soft_inpainting=True, strength=0.9)
    for one in (inpainting_pipe, pipe):
        assert one("a cat", **given, **SMALL).images[0].size == (64, 80)


def test_without_an_image_it_is_refused(pipe):
    with pytest.raises(UserError, match="outpainting extends an image"):
        pipe("a cat", outpaint=16, **SMALL)
