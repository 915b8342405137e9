"""Masks as the webui takes them."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from sd.utils.errors import UserError
from sd.web.jobs.masks import MaskOptions, fill_masked, paste_region, prepare_mask, region_of


def mask_with(box, size=(64, 64)):
    mask = Image.new("L", size)
    ImageDraw.Draw(mask).rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill=255)
    return mask


def test_white_is_drawn_or_black_is():
    mask = mask_with((0, 0, 10, 64))
    assert prepare_mask(mask.convert("RGB"), MaskOptions()).tobytes() == mask.tobytes()
    assert prepare_mask(mask, MaskOptions(invert=True)).getpixel((0, 0)) == 0
    assert prepare_mask(mask, MaskOptions(invert=True)).getpixel((63, 0)) == 255


def test_a_transparent_mask_is_its_opacity():
    mask = Image.new("RGBA", (64, 64), (255, 255, 255, 0))
    mask.paste((0, 0, 0, 255), (0, 0, 10, 10))  # black strokes on nothing, as a brush in a page leaves them
    assert prepare_mask(mask, MaskOptions()).getbbox() == (0, 0, 10, 10)


def test_blur_softens():
    soft = np.asarray(prepare_mask(mask_with((0, 0, 32, 64)), MaskOptions(blur=4)))
    row = soft[32].astype(int)
    assert row[0] == 255
    assert row[63] == 0
    assert (np.diff(row) <= 0).all()
    assert 100 < row[32] < 155  # the edge itself is half


def test_an_empty_mask_is_refused():
    for mask in (Image.new("L", (8, 8)), Image.new("RGBA", (8, 8), (0, 0, 0, 0))):
        with pytest.raises(UserError, match="empty"):
            prepare_mask(mask, MaskOptions())


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
        ((0, 0, 10, 20), 0, (64, 64), (0, 0, 20, 20)),  # moved into the picture
        ((0, 0, 64, 64), 32, (64, 64), (0, 0, 64, 64)),
        ((0, 0, 64, 10), 0, (64, 128), (0, 0, 64, 64)),  # no further than the picture
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
