"""The options of masks: what is generated, and what stays."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageOps

from sd.pipeline.init_image import InitImage
from sd.pipeline.inputs.masked import fill_masked, paste_region, prepare_mask, prepare_masked, region_of
from sd.pipeline.inputs.options import CONTENTS
from sd.pipeline.inputs.soft_inpaint import SoftInpaint
from sd.pipeline.sampling_loop import add_noise
from sd.pipeline.settings import GenerationSettings
from sd.schedule import SD1_SCHEDULE
from sd.utils.errors import UserError


def mask_with(box, size=(64, 64)):
    mask = Image.new("L", size)
    ImageDraw.Draw(mask).rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill=255)
    return mask


def test_white_is_generated_or_black_is():
    mask = mask_with((0, 0, 10, 64))
    assert prepare_mask(mask.convert("RGB")).tobytes() == mask.tobytes()
    assert prepare_mask(mask, invert=True).getpixel((0, 0)) == 0
    assert prepare_mask(mask, invert=True).getpixel((63, 0)) == 255


def test_a_transparent_mask_is_its_opacity():
    mask = Image.new("RGBA", (64, 64), (255, 255, 255, 0))
    mask.paste((0, 0, 0, 255), (0, 0, 10, 10))  # black strokes on nothing, as a brush in a page leaves them
    assert prepare_mask(mask).getbbox() == (0, 0, 10, 10)


def test_blur_softens():
    soft = np.asarray(prepare_mask(mask_with((0, 0, 32, 64)), blur=4))
    row = soft[32].astype(int)
    assert row[0] == 255
    assert row[63] == 0
    assert (np.diff(row) <= 0).all()
    assert 100 < row[32] < 155  # the edge itself is half


def test_an_empty_mask_is_refused():
    for mask in (Image.new("L", (8, 8)), Image.new("RGBA", (8, 8), (0, 0, 0, 0))):
        with pytest.raises(UserError, match="empty"):
            prepare_mask(mask)


def test_filling_takes_the_colours_around():
    image = Image.new("RGB", (64, 64), (200, 40, 40))
    image.paste((0, 255, 0), (20, 20, 40, 40))
    filled = np.asarray(fill_masked(image, mask_with((20, 20, 40, 40)))).astype(int)
    # All around is one colour, so nothing else may come out; a few levels are lost in 8-bit premultiplying.
    assert np.abs(filled - (200, 40, 40)).max() <= 12


@pytest.mark.parametrize(
    ("box", "padding", "shape", "region"),
    [
        ((20, 20, 40, 40), 0, (64, 64), (20, 20, 40, 40)),
        ((20, 20, 40, 40), 4, (64, 64), (16, 16, 44, 44)),
        ((20, 28, 40, 38), 0, (64, 64), (20, 23, 40, 43)),  # widened to the shape, around its middle
        ((20, 20, 30, 40), 0, (128, 64), (5, 20, 45, 40)),
        ((0, 0, 10, 20), 0, (64, 64), (0, 0, 20, 20)),  # moved into the image
        ((0, 0, 64, 64), 32, (64, 64), (0, 0, 64, 64)),
        ((0, 0, 64, 10), 0, (64, 128), (0, 0, 64, 64)),  # no further than the image
    ],
)
def test_the_region_around_a_mask(box, padding, shape, region):
    assert region_of(mask_with(box), padding, *shape) == region


def test_putting_back_leaves_the_rest():
    image = Image.new("RGB", (64, 64), "blue")
    mask = mask_with((20, 20, 40, 40))
    whole = paste_region(image, Image.new("RGB", (128, 128), "red"), mask, (16, 16, 44, 44))
    assert whole.getpixel((30, 30)) == (255, 0, 0)
    kept = np.asarray(mask) == 0
    assert (np.asarray(whole)[kept] == np.asarray(image)[kept]).all()


# In the pipeline

SMALL = dict(steps=3, seed=5, guidance_scale=3.0, sampler="euler")


def pixels(output):
    return np.array(output.images[0]).astype(int)


def test_without_options_the_inputs_are_the_very_same(photo):
    settings = GenerationSettings(width=64, height=64)
    mask = mask_with((0, 0, 32, 64))
    made = prepare_masked(settings, photo, mask)
    assert (made.image is photo, made.mask is mask, made.region) == (True, True, None)


def test_an_inverted_mask_is_the_inverted_image_of_it(pipe, photo):
    mask = mask_with((0, 0, 32, 64))
    made = pipe("a cat", image=photo, mask=mask, invert_mask=True, **SMALL)
    assert np.array_equal(pixels(made), pixels(pipe("a cat", image=photo, mask=ImageOps.invert(mask), **SMALL)))
    assert np.array_equal(pixels(made)[:, :32], np.array(photo)[:, :32])


def test_only_masked_generates_the_region_at_full_size_and_pastes_it(pipe, photo):
    large = photo.resize((256, 192))
    mask = mask_with((100, 50, 140, 90), (256, 192))
    given = dict(width=64, height=64, only_masked=True, only_masked_padding=8, **SMALL)
    made = pipe("a cat", image=large, mask=mask, **given)
    assert made.images[0].size == (256, 192)
    assert made.latents.shape == (1, 4, 8, 8)
    changed = (pixels(made) != np.array(large)).any(axis=2)
    assert changed[50:90, 100:140].mean() > 0.9
    assert not changed[np.asarray(mask) == 0].any()
    region = (92, 42, 148, 98)
    alone = pipe("a cat", image=large.crop(region), mask=mask.crop(region), width=64, height=64, **SMALL)
    expected = paste_region(large, alone.images[0], mask, region)
    assert np.array_equal(pixels(made), np.array(expected))


def test_the_masked_content_is_what_the_sampling_starts_from(pipe, photo):
    """With one step of Euler at strength 1/3 the start still shows."""
    mask = mask_with((0, 0, 32, 64))
    given = dict(image=photo, mask=mask, strength=0.34, **SMALL)
    made = {content: pixels(pipe("a cat", masked_content=content, **given)) for content in CONTENTS}
    assert len({image.tobytes() for image in made.values()}) == 4
    for image in made.values():
        assert np.array_equal(image[:, 40:], np.array(photo)[:, 40:])
    filled = pixels(pipe("a cat", **given | {"image": fill_masked(photo, mask)}))
    assert np.array_equal(made["blurred"][:, :32], filled[:, :32])


def test_noise_and_nothing_in_the_latent():
    """x = content + sigma * noise in the masked part, and the image's latent elsewhere."""
    latent, noise = torch.full((1, 4, 2, 2), 3.0), torch.randn(1, 4, 2, 2)
    init = InitImage(latent_mask=torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]]))
    for content, start in (("original", latent), ("noise", noise), ("nothing", torch.zeros_like(noise))):
        x = add_noise(latent, init, GenerationSettings(masked_content=content), 2.0, noise)
        assert torch.equal(x[..., 0, 0], (start + 2 * noise)[..., 0, 0])
        assert torch.equal(x[..., 1, 1], (latent + 2 * noise)[..., 1, 1])


def test_at_strength_1_the_content_is_said_not_to_matter(pipe, photo):
    made = pipe("a cat", image=photo, mask=mask_with((0, 0, 32, 64)), strength=1.0, masked_content="nothing", **SMALL)
    assert any("the masked content does not matter" in note for note in made.notes)


@pytest.mark.parametrize("more", [{}, {"mask_blur": 3}, {"only_masked": True}, {"invert_mask": True}, {"outpaint": 8}])
def test_a_mask_of_another_shape_is_said_to_be_stretched_with_every_option(pipe, photo, more):
    wide = mask_with((0, 0, 32, 64)).resize((64, 16))
    made = pipe("a cat", image=photo, mask=wide, **more, **SMALL)
    assert made.notes == ["The mask is 64x16 and is stretched over the image, which is 64x64."]


def test_options_of_a_mask_without_one_are_said_to_do_nothing(pipe, photo):
    made = pipe("a cat", image=photo, only_masked=True, mask_blur=3, **SMALL)
    assert made.notes == ["Without a mask, mask blur and only masked change nothing."]
    assert np.array_equal(pixels(made), pixels(pipe("a cat", image=photo, **SMALL)))


# Soft inpainting


def test_a_cell_of_value_m_changes_in_the_last_share_m():
    mask = torch.tensor([0.0, 0.25, 0.5, 1.0]).view(1, 1, 1, 4)
    first = SD1_SCHEDULE.sigma_of(800)
    soft = SoftInpaint(lambda x, sigma: torch.ones(1, 4, 1, 4), torch.zeros(1, 4, 1, 4), mask, first)
    for time, changing in ((800, [0, 0, 0, 1]), (401, [0, 0, 0, 1]), (399, [0, 0, 1, 1]), (199, [0, 1, 1, 1])):
        x0 = soft(torch.zeros(1, 4, 1, 4), SD1_SCHEDULE.sigma_of(time))
        assert x0[0, 0, 0].tolist() == changing, time
    assert soft.keep(torch.ones(1, 4, 1, 4))[0, 0, 0].tolist() == [0, 1, 1, 1]


def test_a_black_and_white_mask_is_the_same_soft_or_not(pipe, photo):
    given = dict(image=photo, mask=mask_with((0, 0, 32, 64)), strength=0.8, **SMALL)
    assert np.array_equal(pixels(pipe("a cat", soft_inpainting=True, **given)), pixels(pipe("a cat", **given)))


def test_gray_changes_less_than_white(pipe, photo):
    ramp = Image.fromarray(np.tile(np.linspace(0, 255, 64).astype(np.uint8), (64, 1)))
    steps = SMALL | {"steps": 8}
    made = pipe("a cat", image=photo, mask=ramp, soft_inpainting=True, strength=0.9, **steps)
    change = abs(pixels(made) - np.array(photo)).mean(axis=(0, 2))
    assert change[:8].mean() < change[24:40].mean() < change[56:].mean()
