"""Image folders as users have them: every format and caption list, and their errors."""

import json
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from sd.training.finetune.data.caption_files import FLICKR_IMAGES
from sd.training.finetune.data.image_folder import MAX_LISTED, ImageFolder
from sd.utils.errors import UserError

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)
FLICKR = """image_name| comment_number| comment
1000092795.jpg| 0| Two young guys with shaggy hair look at their hands while hanging out in the yard .
1000092795.jpg| 1| Two men in green shirts are standing in a yard .
2199200615.jpg| 3| A dog | a cat .
2199200615.jpg| 4   A dog runs across the grass .
"""  # the header and the broken last line are those of the file that goes round


@pytest.fixture
def folder(tmp_path):
    """Two images, b.jpg 40 x 30 and a.png 20 x 20."""
    Image.new("RGB", (40, 30), RED).save(tmp_path / "b.jpg")
    Image.new("RGB", (20, 20), BLUE).save(tmp_path / "a.png")
    return tmp_path


def quiet(*_):
    pass


def names(photos):
    return [photo.path.name for photo in photos.images]


def test_images_are_sorted_by_name_and_other_files_left_out(folder):
    Image.new("RGB", (8, 8)).save(folder / "C.WEBP")
    Image.new("RGB", (8, 8)).save(folder / "._b.jpg", format="JPEG")
    (folder / "notes.pdf").write_bytes(b"x")
    (folder / "below.jpg").mkdir()
    said = []
    photos = ImageFolder(folder, say=said.append)
    assert names(photos) == ["C.WEBP", "a.png", "b.jpg"]
    assert [photo.size for photo in photos.images] == [(8, 8), (20, 20), (40, 30)]
    assert [photo.caption for photo in photos.images] == [None] * 3
    assert len(photos) == 3
    assert said == [f"{folder}: 3 images, 0 with captions"]


def test_a_text_beside_is_the_caption_in_one_line(folder):
    (folder / "a.txt").write_text("\ufeffa blue\n  square \n", encoding="utf-8")
    (folder / "b.txt").write_text(" \n")
    a, b = ImageFolder(folder, say=quiet).images
    assert a.captions == ["a blue square"]
    assert b.caption is None


@pytest.mark.parametrize("key", ["text", "prompt", "caption"])
def test_metadata_gives_captions_of_images_in_subfolders_too(folder, key):
    (folder / "train").mkdir()
    Image.new("RGB", (8, 8)).save(folder / "train" / "c.png")
    lines = [{"file_name": "a.png", key: "a line\u2028break"}, {"file_name": "train/c.png", key: "black"}]
    lines += [{"file_name": "b.jpg"}]
    text = "\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    (folder / "metadata.jsonl").write_text(text + "\n\n", encoding="utf-8")
    photos = ImageFolder(folder, say=quiet)
    assert {photo.path.name: photo.caption for photo in photos.images} == {
        "a.png": "a line break",
        "b.jpg": None,
        "c.png": "black",
    }
    (folder / "a.txt").write_text("beside")
    assert ImageFolder(folder, say=quiet).images[0].captions == ["beside"]


@pytest.mark.parametrize(("where", "asked"), [(".", "."), (FLICKR_IMAGES, "."), (FLICKR_IMAGES, FLICKR_IMAGES)])
def test_flickr30k_gives_several_captions_and_counts_its_broken_line(tmp_path, where, asked):
    place = tmp_path / where
    place.mkdir(exist_ok=True)
    for name in ("1000092795.jpg", "2199200615.jpg"):
        Image.new("RGB", (50, 40)).save(place / name)
    (tmp_path / "results.csv").write_bytes(FLICKR.replace("\n", "\r\n").encode())
    photos = ImageFolder(tmp_path / asked, say=quiet)
    assert [photo.captions for photo in photos.images] == [
        [
            "Two young guys with shaggy hair look at their hands while hanging out in the yard .",
            "Two men in green shirts are standing in a yard .",
        ],
        ["A dog | a cat ."],
    ]
    (skipped,) = photos.skipped
    assert "results.csv, line 5" in skipped


def test_one_caption_for_all(folder):
    (folder / "a.txt").write_text("a blue square")
    photos = ImageFolder(folder, caption="a photo of a dog", say=quiet)
    assert [photo.captions for photo in photos.images] == [["a photo of a dog"]] * 2


def jpeg_with_orientation(path, orientation):
    """Stored red left of blue, with a note on how the camera was held."""
    image = Image.new("RGB", (32, 16), RED)
    image.paste(BLUE, (16, 0, 32, 16))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(path, exif=exif, quality=95, subsampling=0)


# Where red is after turning: EXIF 3 is half a turn, 6 a quarter clockwise, 8 a quarter back.
@pytest.mark.parametrize(
    ("orientation", "size", "red"),
    [(1, (32, 16), (4, 8)), (3, (32, 16), (28, 8)), (6, (16, 32), (8, 4)), (8, (16, 32), (8, 28))],
)
def test_exif_rotates_an_image_upright(tmp_path, orientation, size, red):
    jpeg_with_orientation(tmp_path / "a.jpg", orientation)
    (photo,) = ImageFolder(tmp_path, say=quiet).images
    image = photo.open()
    assert photo.size == image.size == size
    assert np.abs(np.subtract(image.getpixel(red), RED)).max() < 8  # JPEG's rounding


def kinds_of_files(folder):
    """Each of them red, or white where it is transparent."""
    red = Image.new("RGB", (16, 16), RED)
    red.save(folder / "moves.gif", save_all=True, append_images=[Image.new("RGB", (16, 16), BLUE)])
    red.save(folder / "moves.webp", save_all=True, append_images=[Image.new("RGB", (16, 16), BLUE)], lossless=True)
    red.convert("CMYK").save(folder / "cmyk.jpg", quality=95)
    red.convert("P").save(folder / "palette.png")
    Image.new("RGBA", (16, 16), (0, 0, 0, 0)).save(folder / "clear.png")
    Image.new("LA", (16, 16), (0, 0)).save(folder / "clear-grey.png")
    Image.fromarray(np.full((16, 16), 65535, np.uint16)).save(folder / "sixteen-bits.png")


def test_every_image_format_works_and_only_animations_have_a_note(tmp_path):
    kinds_of_files(tmp_path)
    said = []
    photos = ImageFolder(tmp_path, say=said.append)
    assert photos.skipped == []
    assert said[1:] == ["note: only the first frame or page is used of moves.gif, moves.webp"]
    pixels = {photo.path.name: np.asarray(photo.open())[8, 8].astype(int) for photo in photos.images}
    assert len(pixels) == 7
    for name, pixel in pixels.items():
        wanted = WHITE if name.startswith(("clear", "sixteen")) else RED
        assert np.abs(pixel - wanted).max() <= 8, name  # JPEG's rounding; the others are exact
        if not name.endswith(".jpg"):
            assert tuple(pixel) == wanted, name


def png_header(width, height):
    """A PNG that promises a size and holds nothing."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_what_cannot_be_read_is_named_skipped_and_counted(folder):
    whole = (folder / "b.jpg").read_bytes()
    broken = {
        "bomb.png": png_header(60000, 60000),
        "cut.jpg": whole[: len(whole) * 2 // 3],
        "empty.png": b"",
        "page.jpg": b"<html>not found</html>",
        "phone.HEIC": b"\0\0\0\x18ftypheic",
    }
    for name, data in broken.items():
        (folder / name).write_bytes(data)
    (folder / "metadata.jsonl").write_text('{"file_name": "gone.png", "text": "a dog"}')
    said = []
    photos = ImageFolder(folder, say=said.append)
    assert names(photos) == ["a.png", "b.jpg"]
    unread = [*broken, "gone.png"]
    assert len(photos.skipped) == len(unread)
    for name in unread:
        assert sum(name in sentence for sentence in photos.skipped) == 1, name
    assert any("million pixels" in sentence for sentence in photos.skipped)
    assert len(said) == 1 + MAX_LISTED + 1
    assert said[-1] == f"skipped: {len(unread) - MAX_LISTED} more, {len(unread)} in all"


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "no images in"),
        ({"notes.txt": "a dog"}, "no images in"),
        ({"a.jpg": "no picture"}, "none of the images in .*a.jpg"),
        ({"metadata.jsonl": '{"file_name": "gone.png"}'}, "none of the images in .*gone.png"),
        (
            {"metadata.jsonl": '{"file_name": "a.png"}\n{"file_name": '},
            "metadata.jsonl, line 2: invalid; the format is",
        ),
        ({"metadata.jsonl": '{"text": "a dog"}'}, "metadata.jsonl, line 1"),
        ({"metadata.jsonl": '["a.png", "a dog"]'}, "metadata.jsonl, line 1"),
        ({"metadata.jsonl": '{"file_name": "a.png", "text": 5}'}, "metadata.jsonl, line 1"),
        ({"metadata.jsonl": '{"file_name": 5, "text": "a"}'}, "metadata.jsonl, line 1"),
        ({"results.csv": ""}, "first line must be 'image_name"),
        ({"results.csv": "image,caption\na.png,a dog"}, "first line must be 'image_name"),
        ({"results.csv": "image_name| comment_number| comment\na.png, 0, a dog"}, "no line has the three fields"),
    ],
)
def test_mistakes_get_one_sentence(tmp_path, files, words):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=words):
        ImageFolder(tmp_path, say=quiet)


def test_a_folder_that_is_none(folder):
    for path, said in ((folder / "missing", "folder not found"), (folder / "a.png", "this is a file")):
        with pytest.raises(UserError, match=said):
            ImageFolder(path, say=quiet)


def test_a_caption_that_is_not_text(folder):
    (folder / "a.txt").write_bytes("größe".encode("latin-1"))
    with pytest.raises(UserError, match=r"a\.txt is not UTF-8"):
        ImageFolder(folder, say=quiet)


@pytest.mark.skipif(os.geteuid() == 0 if hasattr(os, "geteuid") else True, reason="root may read everything")
def test_a_file_without_permission_is_skipped(folder):
    (folder / "a.png").chmod(0)
    photos = ImageFolder(folder, say=quiet)
    assert names(photos) == ["b.jpg"]
    assert "a.png" in photos.skipped[0]
