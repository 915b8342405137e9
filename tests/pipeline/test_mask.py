"""Masks as people have them."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from sd.pipeline.mask import blur_mask, latent_mask, mask_notes, mask_to_tensor, read_mask, stretch_mask, stretch_notes
from sd.utils.errors import UserError
from sd.utils.images import open_image

BOX = (16, 16, 48, 48)


def painted(mode, ground, color):
    mask = Image.new(mode, (64, 64), ground)
    mask.paste(color, BOX)
    return mask


def numbers(dtype, value):
    array = np.zeros((64, 64), dtype)
    array[16:48, 16:48] = value
    return Image.fromarray(array)


def palette(**options):
    mask = painted("P", 0, 1)
    mask.putpalette([0, 0, 0, 255, 255, 255])
    mask.info |= options
    return mask


MASKS = {
    "white on black": painted("L", 0, 255),
    "values 0 and 1": painted("L", 0, 1),
    "values 0 and 1 in color": painted("RGB", (0, 0, 0), (1, 1, 1)),
    "one bit": painted("1", 0, 1),
    "palette": palette(),
    "palette, black transparent": palette(transparency=0),
    "black strokes on nothing": painted("RGBA", (0, 0, 0, 0), (0, 0, 0, 255)),
    "red strokes on white nothing": painted("RGBA", (255, 255, 255, 0), (200, 0, 0, 255)),
    "white strokes on nothing": painted("RGBA", (255, 255, 255, 0), (255, 255, 255, 255)),
    "gray and opacity": painted("LA", (0, 0), (0, 255)),
    "white on black, all opaque": painted("RGBA", (0, 0, 0, 255), (255, 255, 255, 255)),
    "white on black, gray and opacity": painted("LA", (0, 255), (255, 255)),
    "16 bits": numbers(np.uint16, 65535),
    "0 and 1 in 16 bits": numbers(np.uint16, 1),
    "32 bits": numbers(np.int32, 255),
    "fractions": numbers(np.float32, 1.0),
    "fractions up to 255": numbers(np.float32, 255.0),
}


@pytest.mark.parametrize("kind", MASKS)
def test_every_kind_of_mask_means_the_same(kind):
    expected = np.zeros((64, 64), np.uint8)
    expected[16:48, 16:48] = 255
    assert np.array_equal(np.asarray(read_mask(MASKS[kind])), expected)


@pytest.mark.parametrize("kind", ["0 and 1 in 16 bits", "fractions", "palette", "one bit"])
def test_and_so_it_does_from_a_file(tmp_path, kind):
    path = tmp_path / ("mask.tiff" if kind == "fractions" else "mask.png")
    MASKS[kind].save(path)
    assert read_mask(open_image(path)).getbbox() == BOX


@pytest.mark.parametrize(
    "mask",
    [
        Image.new("L", (64, 64)),
        Image.new("L", (64, 64), 100),
        Image.new("RGBA", (64, 64), (255, 255, 255, 0)),
        Image.new("RGBA", (64, 64), (0, 0, 0, 255)),
    ],
)
def test_a_mask_that_leaves_nothing_to_regenerate_is_refused(pipe, mask):
    image = Image.new("RGB", (64, 64))
    with pytest.raises(UserError, match="the mask is empty"):
        pipe("x", image=image, mask=mask, steps=1)


def test_a_stroke_that_is_cut_off_with_the_image_is_named(pipe):
    mask = Image.new("L", (128, 64))
    mask.paste(255, (0, 0, 4, 64))
    with pytest.raises(UserError, match="cut off"):
        pipe("x", image=Image.new("RGB", (128, 64)), mask=mask, width=64, height=64, steps=1)


@pytest.mark.parametrize("side", [64, 200, 1000, 2048])
def test_a_stroke_of_one_pixel_counts_however_large_the_mask(side):
    mask = Image.new("L", (side, side))
    ImageDraw.Draw(mask).line((side // 4, side // 2, side * 3 // 4, side // 2), fill=255, width=1)
    cells = latent_mask(mask_to_tensor(mask, 64, 64))[0, 0]
    assert cells[:, 2:6].any(dim=0).all()  # every cell from a quarter of the way to three quarters
    assert cells.sum() <= 10


def test_a_blurred_thin_stroke_still_counts():
    mask = Image.new("L", (64, 64))
    ImageDraw.Draw(mask).line((10, 30, 50, 30), fill=255, width=1)
    soft = np.asarray(blur_mask(mask, 8))
    assert soft[30, 10:51].min() >= 128
    assert 0 < soft[38, 30] < 128


def test_a_mask_is_laid_over_the_image_before_both_are_cropped():
    mask = Image.new("L", (20, 10))
    mask.paste(255, (10, 0, 20, 10))  # the right half
    tensor = mask_to_tensor(mask, 64, 64, over=(200, 100))
    assert tensor[..., :30].max() < 0.5 < tensor[..., 34:].min()


def test_stretching_keeps_what_is_painted():
    mask = Image.new("L", (1000, 100))
    mask.putpixel((500, 50), 255)
    assert np.asarray(stretch_mask(mask, 50, 50)).max() >= 128


def test_notes_on_a_mask():
    some = torch.zeros(1, 1, 8, 8)
    some[..., 2, 3] = 1
    assert mask_notes(Image.new("L", (64, 64), 255), some) == []
    (note,) = mask_notes(Image.new("L", (64, 64), 255), torch.ones(1, 1, 8, 8))
    assert "whole image" in note
    square, wide = Image.new("L", (128, 128)), Image.new("L", (64, 32))
    assert stretch_notes(Image.new("L", (64, 64)), square) == stretch_notes(None, square) == []
    assert stretch_notes(wide, square) == ["The mask is 64x32 and is stretched over the image, which is 128x128."]


def test_notes_come_with_the_images(pipe):
    mask = Image.new("L", (64, 64), 255)
    made = pipe("x", image=Image.new("RGB", (64, 64)), mask=mask, steps=1)
    assert made.notes == ["The mask is white everywhere, so that the whole image is regenerated."]
    assert pipe("x", steps=1).notes == []
