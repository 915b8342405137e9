"""Texts in image files, in every encoding that programs have put there."""

import zlib

import pytest
from foreign_images import png_with, saved, with_user_comment
from PIL import Image

from sd.pipeline.infotext import read_infotext
from sd.pipeline.metadata.embedded_text import decode_comment, embedded_texts
from sd.utils.files import save_png
from sd.utils.images import open_image

TEXT = "a café, 猫\nNegative prompt: é\nSteps: 3, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 8x8"
LATIN = "a café\nSteps: 3, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 8x8"


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "PNG"])
@pytest.mark.parametrize(
    "comment",
    [
        TEXT.encode(),  # no mark at all
        b"\0" * 8 + TEXT.encode(),
        b"ASCII\0\0\0" + TEXT.encode(),
        b"ASCII\0\0\0" + TEXT.encode() + b"\0\0",
        b"UNICODE\0" + TEXT.encode("utf-16-be"),
        b"UNICODE\0" + TEXT.encode("utf-16-le"),
        b"UNICODE\0\xfe\xff" + TEXT.encode("utf-16-be"),
        b"UNICODE\0\xff\xfe" + TEXT.encode("utf-16-le"),
        b"UNICODE\0" + TEXT.encode(),  # another encoding than is named
        b"\xff\xfe" + TEXT.encode("utf-16-le"),
        TEXT.encode("utf-16-be"),
        b"JIS\0\0\0\0\0" + TEXT.replace("é", "e").encode("iso2022_jp"),
        b"JIS\0\0\0\0\0" + TEXT.replace("é", "e").encode("shift_jis"),
    ],
)
def test_a_user_comment_in_any_encoding(kind, comment):
    expected = TEXT.replace("é", "e") if comment.startswith(b"JIS") else TEXT
    assert read_infotext(with_user_comment(comment, kind)) == expected


def test_a_user_comment_as_piexif_and_the_webui_write_it():
    piexif = pytest.importorskip("piexif")
    from piexif.helper import UserComment

    exif = piexif.dump({"Exif": {piexif.ExifIFD.UserComment: UserComment.dump(TEXT, encoding="unicode")}})
    for kind in ("JPEG", "WEBP"):
        assert read_infotext(saved(Image.new("RGB", (8, 8)), kind, exif=exif)) == TEXT


@pytest.mark.parametrize("letters", ["猫", "日本語の猫", "кот", "a"])
def test_utf16_of_any_script_without_a_mark_of_its_order(letters):
    for order in ("utf-16-be", "utf-16-le"):
        text = f"{letters}\nSteps: 3, Sampler: Euler"
        assert decode_comment(b"UNICODE\0" + text.encode(order)) == text


@pytest.mark.parametrize(
    "comment", [b"", b"\0" * 8, b"UNICODE\0", b"UNICODE\0a", b"\xff\xfe", b"\xff", b"JIS\0\0\0\0\0\x1b"]
)
def test_comments_that_are_cut_off_give_a_text(comment):
    assert isinstance(decode_comment(comment), str)


def chunk(kind, data):
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def with_chunk(kind, data, at_the_end=False):
    """A PNG with one more chunk, before or behind its pixels."""
    png = saved(Image.new("RGB", (8, 8)), "PNG").getvalue()
    place = png.index(b"IEND" if at_the_end else b"IDAT") - 4
    return png[:place] + chunk(kind, data) + png[place:]


@pytest.mark.parametrize("at_the_end", [False, True])
def test_utf8_in_a_text_that_is_latin_by_its_definition(tmp_path, at_the_end):
    path = tmp_path / "x.png"
    path.write_bytes(with_chunk(b"tEXt", b"parameters\0" + TEXT.encode(), at_the_end))
    assert read_infotext(path) == TEXT
    path.write_bytes(with_chunk(b"tEXt", b"parameters\0" + LATIN.encode("latin-1"), at_the_end))
    assert read_infotext(path) == LATIN


@pytest.mark.parametrize("prompt", ["Ã©", "café", "Ã", "a â\x80\x99 b", "猫 Ã©"])
def test_our_own_files_read_back_whatever_the_prompt(tmp_path, prompt):
    text = f"{prompt}\nSteps: 3, Sampler: Euler, CFG scale: 7, Seed: 1"
    assert read_infotext(save_png(Image.new("RGB", (8, 8)), tmp_path, text)) == text


@pytest.mark.parametrize("key", ["parameters", "Parameters", "PARAMETERS", "Description", "Comment", "whatever"])
def test_settings_under_any_key(key):
    assert read_infotext(png_with({key: LATIN})) == LATIN


def test_settings_in_an_images_description_and_in_a_comment():
    exif = Image.Exif()
    exif[0x010E] = LATIN.encode()
    assert read_infotext(saved(Image.new("RGB", (8, 8)), "JPEG", exif=exif)) == LATIN
    assert read_infotext(saved(Image.new("RGB", (8, 8)), "JPEG", comment=TEXT.encode())) == TEXT
    xmp = f"<r xmlns:d='x'><d:description>{LATIN}</d:description></r>".encode()
    assert read_infotext(saved(Image.new("RGB", (8, 8)), "JPEG", xmp=xmp)) == LATIN


@pytest.mark.parametrize(
    "xmp", [b"<", b"<!DOCTYPE x [<!ENTITY a 'b'>]><x>&a;</x>", b"\xff\xff", b"<x>" * 9999, b"<x/>"]
)
def test_a_broken_or_hostile_packet_is_nothing(xmp):
    assert embedded_texts(open_image(saved(Image.new("RGB", (8, 8)), "JPEG", xmp=xmp))) == {}
