"""What an image file costs is checked before the work: pixels, chunks of text, and their number."""

import io
import struct
import time
import zlib

import pytest
from PIL import Image

from sd.adapters import embedding_files
from sd.adapters.embedding_files import read_embeddings
from sd.pipeline.infotext import LONGEST_TEXT, parse_infotext
from sd.pipeline.metadata.embedded_text import embedded_texts
from sd.utils import images
from sd.utils.errors import UserError
from sd.utils.files import save_png
from sd.utils.images import MAX_TEXT_BYTES, MAX_TEXTS, PNG_SIGNATURE, open_image

SLOW = 5  # seconds of the processor, the project's bound for any file; what is tested takes a tenth of it


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def small() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(file, "PNG")
    return file.getvalue()


def with_chunks(chunks: bytes, at_the_end: bool) -> bytes:
    png = small()
    place = len(png) - 12 if at_the_end else len(PNG_SIGNATURE) + 25
    return png[:place] + chunks + png[place:]


def header(width: int, height: int, depth: int = 8, color: int = 2) -> bytes:
    """A PNG of any size whose pixels are missing, so that reading them fails at once."""
    head = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    return PNG_SIGNATURE + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("width", "height", "color"), [(8900, 8900, 2), (8200, 8200, 6), (60000, 1300, 2)])
def test_a_bomb_is_refused_before_a_pixel_is_unpacked(width, height, color, monkeypatch):
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("unpacked"))
    with pytest.raises(UserError, match="far more memory than a file of its size"):
        open_image(io.BytesIO(header(width, height, color=color)))


@pytest.mark.parametrize(("size", "mode"), [((4096, 4096), "RGB"), ((8000, 8000), "RGB"), ((16000, 5000), "1")])
def test_plain_images_that_compress_well_are_read(size, mode):
    file = io.BytesIO()
    Image.new(mode, size).save(file, "PNG", compress_level=1)
    assert open_image(file).size == size


def test_a_rotated_image_counts_twice(monkeypatch):
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (200, 100)).save(file, "PNG", exif=exif)
    assert open_image(file).size == (100, 200)
    monkeypatch.setattr(images, "ANY_FILE", 200 * 100 * 4 + 1000)
    with pytest.raises(UserError, match="200x100"):
        open_image(file)


KINDS = {b"tEXt": b"\0", b"zTXt": b"\0\0", b"iTXt": b"\0\1\0\0\0"}


@pytest.mark.parametrize("at_the_end", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_many_texts_cost_little_and_the_image_is_read(kind, at_the_end):
    packed = b"a" * 1000 if kind == b"tEXt" else zlib.compress(b"a" * ((1 << 20) - 100), 9)
    chunks = b"".join(chunk(kind, b"k%d" % i + KINDS[kind] + packed) for i in range(1500))
    began = time.process_time()
    image = open_image(io.BytesIO(with_chunks(chunks, at_the_end)))
    assert time.process_time() - began < SLOW
    assert image.getpixel((0, 0)) == (255, 0, 0)
    texts = [text for text in image.info.values() if isinstance(text, str)]
    assert 0 < len(texts) <= MAX_TEXTS
    assert sum(map(len, texts)) <= MAX_TEXT_BYTES


def test_ordinary_texts_stay_beside_a_huge_one():
    huge = chunk(b"zTXt", b"huge\0\0" + zlib.compress(b"a" * (100 << 20), 1))
    data = with_chunks(huge + chunk(b"tEXt", b"parameters\0a red apple"), False)
    assert open_image(io.BytesIO(data)).info["parameters"] == "a red apple"


@pytest.mark.parametrize("text", ["a" * 5_000_000, "a\nSteps: 1, " + 'a: "' * 2_000_000, "a: 1, " * 1_000_000])
def test_a_text_of_megabytes_is_no_settings(text):
    began = time.process_time()
    assert "Steps" not in parse_infotext(text)
    assert time.process_time() - began < SLOW


def test_a_text_at_the_bound_is_still_quick():
    text = "a" * (LONGEST_TEXT - 60) + "\nSteps: 20, Sampler: Euler, CFG scale: 7"
    began = time.process_time()
    assert parse_infotext(text)["Steps"] == "20"
    assert time.process_time() - began < SLOW


def test_an_image_of_margins_is_checked_by_its_size(tmp_path, monkeypatch):
    path = tmp_path / "wide.png"
    Image.new("RGB", (2048, 2048)).save(path)
    pixels = Image.new("RGB", (2048, 2048), "white")
    for column in (1023, 1024):
        pixels.paste("black", (column, 0, column + 1, 2048))
    pixels.save(path, compress_level=1)
    monkeypatch.setattr(embedding_files.np, "empty_like", lambda *_: pytest.fail("the margins were read"))
    with pytest.raises(UserError, match="without an embedding"):
        read_embeddings(path, 768)


def test_what_a_killed_program_left_reserves_no_number(tmp_path):
    (tmp_path / ".00000.png.part").touch()  # as earlier versions left it
    assert save_png(Image.new("RGB", (8, 8)), tmp_path).name == "00000.png"


def test_a_disk_without_hard_links(tmp_path, monkeypatch):
    def link(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("sd.utils.files.os.link", link)
    names = [save_png(Image.new("RGB", (8, 8)), tmp_path, number=0).name for _ in range(3)]
    assert names == ["00000.png", "00001.png", "00002.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def directory(count: int, size: int) -> bytes:
    """A TIFF directory of `count` entries, each of which names the same `size` bytes."""
    entries = b"".join(struct.pack("<HHLL", 1000 + tag % 60_000, 2, size, 0) for tag in range(count))
    return b"II*\0\x08\0\0\0" + struct.pack("<H", count) + entries + bytes(4) + bytes(size)


def repetitive(kind: str) -> bytes:
    data = directory(20_000, 1 << 20)
    if kind == "TIFF":
        return data
    if kind == "PNG":
        return with_chunks(chunk(b"eXIf", data), at_the_end=False)
    file = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(file, kind, exif=b"Exif\0\0" + (data if kind == "WEBP" else b""))
    if kind == "WEBP":
        return file.getvalue()
    pieces = [b"Exif\0\0" + data[place : place + 65_000] for place in range(0, len(data), 65_000)]
    segments = b"".join(b"\xff\xe1" + struct.pack(">H", 2 + len(piece)) + piece for piece in pieces)
    return b"\xff\xd8" + segments + file.getvalue()[2:]


@pytest.mark.parametrize("kind", ["TIFF", "JPEG", "PNG", "WEBP"])
def test_a_directory_that_names_the_same_bytes_again_and_again_is_not_read(kind):
    """Pillow copies them for each entry: here 20 GB."""
    data, began = repetitive(kind), time.process_time()
    if kind in ("TIFF", "JPEG"):  # which Pillow reads on opening the file
        with pytest.raises(UserError, match="names the same bytes again and again"):
            open_image(io.BytesIO(data))
    else:
        image = open_image(io.BytesIO(data))
        assert image.size == (8, 8)
        assert embedded_texts(image) == {}
    assert time.process_time() - began < SLOW


def test_an_ordinary_directory_is_read():
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a red apple"
    exif.get_ifd(0x8769)[0x9286] = b"ASCII\0\0\0hello"
    for kind in ("TIFF", "JPEG", "PNG", "WEBP"):
        file = io.BytesIO()
        Image.new("RGB", (8, 4), "red").save(file, kind, exif=exif)
        image = open_image(file)
        assert image.size == (4, 8)
        assert "a red apple" in embedded_texts(image).values()
