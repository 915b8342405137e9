"""The table of images: where its images lie, and that its texts wrap and fit."""

import numpy as np
from PIL import Image, ImageFont

from sd.utils.image_grid import GAP, LARGEST, contact_sheet, render_label, split_word

COLOURS = ["red", "green", "blue", "cyan", "magenta", "yellow"]


def plain(colour, size=(64, 64)):
    return Image.new("RGB", size, colour)


def places(sheet: Image.Image, colour: str) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of all pixels of a colour."""
    wanted = np.array(Image.new("RGB", (1, 1), colour))[0, 0]
    rows, columns = np.nonzero((np.asarray(sheet) == wanted).all(axis=-1))
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


def test_rows_and_columns_stand_in_line():
    rows = [[plain(c) for c in COLOURS[:3]], [plain(c) for c in COLOURS[3:]]]
    sheet = contact_sheet(rows, ["100", "200"], ["one", "two", "three"])
    boxes = [places(sheet, colour) for colour in COLOURS]
    assert all((right - left, bottom - top) == (64, 64) for left, top, right, bottom in boxes)
    lefts, tops = [box[0] for box in boxes], [box[1] for box in boxes]
    assert lefts[:3] == lefts[3:]
    assert np.diff(lefts[:3]).tolist() == [64 + GAP] * 2
    assert len(set(tops[:3])) == len(set(tops[3:])) == 1
    assert boxes[5][2] == sheet.width - GAP


def test_texts_are_at_the_sides_and_leave_the_images_alone():
    without = contact_sheet([[plain("red")]], [""], [""])
    sheet = contact_sheet([[plain("red")]], ["a row"], ["a column"], ["CLIP-T 0.251 ± 0.012"])
    assert without.size == (64 + 3 * GAP, 64 + 3 * GAP)
    left, top, _, bottom = places(sheet, "red")
    pixels = np.asarray(sheet).min(axis=-1) < 128  # text is dark
    pixels[top:bottom, left : left + 64] = False
    assert pixels[:top, left:].any()
    assert pixels[top:bottom, :left].any()
    assert pixels[bottom:, left:].any()
    assert not pixels[bottom:, :left].any()


def test_a_long_text_makes_room_for_itself():
    short = contact_sheet([[plain("red")], [plain("blue")]], ["a", "b"], ["c"])
    tall = contact_sheet([[plain("red")], [plain("blue")]], ["a", "b " * 60], ["c"])
    assert tall.height > short.height
    assert places(tall, "blue")[3] - places(tall, "blue")[1] == 64


def test_words_wider_than_a_column_are_broken():
    font = ImageFont.load_default(size=12)
    pieces = split_word("an_embedding_with_a_very_long_name-000500", font, 64)
    assert "".join(pieces) == "an_embedding_with_a_very_long_name-000500"
    assert max(font.getlength(piece) for piece in pieces) <= 64
    assert render_label("an_embedding_with_a_very_long_name-000500", font, 64).width <= 64


def test_images_of_other_sizes_shapes_and_modes():
    wide = Image.new("RGBA", (2000, 1000), (0, 0, 255, 255))
    sheet = contact_sheet([[plain("red"), wide, None]], ["x"], ["a", "b", "c"])
    left, top, right, bottom = places(sheet, "blue")
    assert (right - left, bottom - top) == (LARGEST, LARGEST // 2)
    left, top, right, bottom = places(sheet, "red")
    assert right - left == bottom - top == LARGEST // 2  # enlarged as far as its place goes
