"""What a request may ask for at most."""

import base64
import io
import struct
import zlib

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from web_client import png

from sd.pipeline.settings import GenerationSettings
from sd.utils.errors import UserError
from sd.web.jobs import limits
from sd.web.jobs.limits import TooLarge, check_image, check_settings, decode_image


def test_an_image_in_base64_or_a_data_url(photo):
    data = png(photo)
    text = base64.b64encode(data).decode()
    assert decode_image(text) == data
    assert decode_image(f"data:image/png;base64,{text}") == data
    assert decode_image("\n".join(text[i : i + 76] for i in range(0, len(text), 76))) == data


@pytest.mark.parametrize(
    "text",
    ["", "!", "http://127.0.0.1/x.png", "file:///etc/passwd", "data:", "data:image/png;base64,*", "Ü", "QUJD"],
)
def test_what_is_no_image(text):
    with pytest.raises(UserError):
        decode_image(text)


def test_a_large_file_is_refused_before_it_is_decoded(monkeypatch):
    monkeypatch.setattr(limits.base64, "b64decode", lambda *_, **__: pytest.fail("was decoded"))
    with pytest.raises(TooLarge, match="over 16 MB"):
        decode_image("A" * (limits.MAX_FILE * 4 // 3 + 8))


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims to be large."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 10)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("size", [(100_000, 100_000), (8192, 4096), (2**31 - 1, 2**31 - 1), (1, 2**24 + 1)])
def test_a_decompression_bomb_is_not_unpacked(size, monkeypatch):
    monkeypatch.setattr(limits, "open_image", lambda _: pytest.fail("was unpacked"))
    with pytest.raises(TooLarge, match="million pixels"):
        check_image(bomb(*size))


def test_a_large_image_that_is_allowed():
    assert check_image(png(Image.new("1", (4096, 4096)))).size == (4096, 4096)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (dict(prompt="a" * 8001), "8001 characters"),
        (dict(negative_prompt="a" * 8001), "negative prompt"),
        (dict(prompt="a\0b"), "NUL"),
        (dict(num_images=65), "too many"),
        (dict(width=4096, height=2048), "too large"),
        (dict(width=1024, height=1024, hires_scale=2.1), "second pass"),
        (dict(hires_scale=8.0), "second pass"),
    ],
)
def test_what_is_too_much(changes, sentence):
    with pytest.raises(UserError, match=sentence):
        check_settings(GenerationSettings(**changes))


def test_what_is_allowed():
    check_settings(GenerationSettings(prompt="a" * 8000, num_images=64, width=2048, height=2048))
    check_settings(GenerationSettings(hires_scale=4.0))


def test_a_png_with_a_large_text_is_taken():
    file = io.BytesIO()
    info = PngInfo()
    info.add_text("workflow", "x" * (3 << 20), zip=True)
    Image.new("RGB", (8, 8)).save(file, "PNG", pnginfo=info)
    assert check_image(file.getvalue()).size == (8, 8)
