import io
import os
import struct
import threading
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from sd.pipeline.mask import latent_mask, mask_to_tensor, read_mask
from sd.utils.errors import UserError
from sd.utils.files import check_outdir, save_png, write_png
from sd.utils.image_grid import grid
from sd.utils.images import (
    MAX_SIDE,
    check_size,
    count_gif_frames,
    first_frame_notes,
    from_tensor,
    is_first_frame,
    open_image,
    resize_and_crop,
    to_rgb,
    to_tensor,
)

RED, BLUE, WHITE, BLACK = (255, 0, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)


def pixels(image):
    return np.asarray(image).tolist()


def noise(width, height):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize(("width", "height"), [(8, 8), (512, 512), (MAX_SIDE, 64)])
def test_good_sizes(width, height):
    check_size(width, height)


@pytest.mark.parametrize(
    ("width", "height", "words"),
    [
        (0, 512, "width 0"),
        (512, -8, "height -8"),
        (500, 512, "use 496 or 504"),
        (3, 512, "multiple of 8: use 8"),
        (512, MAX_SIDE + 8, f"to {MAX_SIDE}"),
        (512.5, 512, "whole number"),
        (512, 10**30, "height 1000"),
    ],
)
def test_bad_sizes(width, height, words):
    with pytest.raises(UserError, match=words):
        check_size(width, height)


def test_sizes_of_other_multiples():
    check_size(96, 160, multiple=32)
    with pytest.raises(UserError, match="use 64 or 96"):
        check_size(72, 160, multiple=32)


def test_tensor_values_and_the_way_back():
    image = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(1, 256).repeat(3, 0)).convert("RGB")
    tensor = to_tensor(image)
    assert tensor.shape == (1, 3, 3, 256)
    assert tensor.dtype == torch.float32
    assert tensor[0, :, 0, 0].tolist() == [-1, -1, -1]
    assert tensor[0, :, 0, 255].tolist() == [1, 1, 1]
    assert pixels(from_tensor(tensor)[0]) == pixels(image)


def test_channels_rows_and_columns_keep_their_places():
    image = Image.new("RGB", (3, 2), BLUE)
    image.putpixel((2, 0), RED)
    tensor = to_tensor(image)
    assert tensor[0, :, 0, 2].tolist() == [1, -1, -1]
    assert tensor[0, :, 1, 2].tolist() == [-1, -1, 1]


def test_from_tensor_rounds_cuts_and_takes_batches():
    values = torch.tensor([-3.0, -1, -0.0001, 0.0, 0.9999, 1, 7])
    batch = values.view(1, 1, 1, 7).expand(2, 3, 1, 7).to(torch.float64)
    images = from_tensor(batch)
    assert len(images) == 2
    # (x + 1) * 127.5: -0.0001 -> 127.487 and 0 -> 127.5 (to the even 128) and 0.9999 -> 254.987
    assert pixels(images[1])[0] == [[v, v, v] for v in (0, 0, 127, 128, 255, 255, 255)]


def test_transparency_shows_the_background():
    image = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    image.putpixel((1, 0), (255, 0, 0, 0))
    assert pixels(to_rgb(image)) == [[list(RED), list(WHITE)]]
    assert pixels(to_rgb(image, background="black")) == [[list(RED), list(BLACK)]]
    image.putpixel((1, 0), (0, 0, 0, 51))  # a fifth black over white
    assert pixels(to_rgb(image))[0][1] == [204, 204, 204]
    assert pixels(to_rgb(Image.new("LA", (1, 1), (0, 0)))) == [[list(WHITE)]]


def test_palettes_with_and_without_transparency(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *BLUE])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "plain.png")
    image.save(tmp_path / "clear.png", transparency=1)
    assert pixels(to_rgb(open_image(tmp_path / "plain.png"))) == [[list(RED), list(BLUE)]]
    assert pixels(to_rgb(open_image(tmp_path / "clear.png"))) == [[list(RED), list(WHITE)]]


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_sixteen_bits_are_scaled_and_not_cut(tmp_path, suffix):
    values = np.array([[0, 257, 257 * 128, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / f"deep.{suffix}")
    assert pixels(to_rgb(open_image(tmp_path / f"deep.{suffix}")))[0] == [[v] * 3 for v in (0, 1, 128, 255)]
    assert pixels(to_rgb(Image.fromarray(values.astype(np.int32))))[0] == [[v] * 3 for v in (0, 1, 128, 255)]


@pytest.mark.parametrize(
    ("mode", "color", "rgb"), [("1", 1, WHITE), ("L", 7, (7, 7, 7)), ("CMYK", (0, 255, 255, 0), RED)]
)
def test_other_modes(mode, color, rgb):
    assert pixels(to_rgb(Image.new(mode, (1, 1), color))) == [[list(rgb)]]


def test_premultiplied_gray_is_read_as_gray_with_alpha():
    gray = Image.merge("LA", [Image.new("L", (3, 1), 100), Image.new("L", (3, 1), 255)])
    gray.putpixel((1, 0), (0, 0))
    assert pixels(to_rgb(gray.convert("La"))) == pixels(to_rgb(gray)) == [[[100] * 3, [255] * 3, [100] * 3]]
    assert pixels(read_mask(gray.convert("La"))) == pixels(read_mask(gray)) == [[255, 0, 255]]


def test_a_phones_image_comes_upright(tmp_path):
    image = Image.new("RGB", (16, 8), BLUE)
    image.paste(RED, (0, 0, 8, 8))  # red on the left
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it
    image.save(tmp_path / "turned.jpg", exif=exif, quality=100)
    for upright in (open_image(tmp_path / "turned.jpg"), to_rgb(Image.open(tmp_path / "turned.jpg"))):
        assert upright.size == (8, 16)
        top, bottom = upright.getpixel((4, 2)), upright.getpixel((4, 13))
        assert top[0] > 200 > 50 > top[2]
        assert bottom[2] > 200 > 50 > bottom[0]
    assert to_rgb(open_image(tmp_path / "turned.jpg")).size == (8, 16)  # not turned twice


def test_fit_covers_and_crops_the_middle():
    image = Image.new("RGB", (300, 100), BLUE)
    image.paste(RED, (100, 0, 200, 100))
    assert pixels(resize_and_crop(image, 100, 100)) == pixels(Image.new("RGB", (100, 100), RED))
    assert resize_and_crop(image, 64, 96).size == (64, 96)
    assert pixels(resize_and_crop(noise(64, 48), 64, 48)) == pixels(noise(64, 48))  # the same size: not a pixel changes


def test_masks():
    mask = Image.new("L", (64, 32), 0)
    mask.paste(255, (32, 0, 64, 32))
    tensor = mask_to_tensor(mask, 64, 32)
    assert tensor.shape == (1, 1, 32, 64)
    assert tensor[..., :32].eq(0).all()
    assert tensor[..., 32:].eq(1).all()
    assert torch.equal(mask_to_tensor(mask.convert("RGB"), 64, 32), tensor)
    assert mask_to_tensor(mask, 128, 64).shape == (1, 1, 64, 128)


def test_a_masks_transparent_part_stays():
    mask = Image.new("RGBA", (8, 8), (255, 255, 255, 0))
    mask.putpixel((3, 3), (255, 255, 255, 255))
    tensor = mask_to_tensor(mask, 8, 8)
    assert tensor.sum() == 1
    assert tensor[0, 0, 3, 3] == 1


def test_blurred_mask():
    mask = Image.new("L", (64, 8), 0)
    mask.paste(255, (32, 0, 64, 8))
    row = mask_to_tensor(mask, 64, 8, blur=4)[0, 0, 4]
    assert (row.diff() >= 0).all()
    assert row[:16].max() == 0
    assert row[48:].min() == 1
    # A step blurred by a Gaussian is its integral: Phi(-3.5 / 4) at the pixel whose middle is 3.5 before the edge.
    # Pillow's three passes of a box are within a few hundredths of it.
    assert row[28].item() == pytest.approx(0.191, abs=0.02)


def test_latent_mask_keeps_the_thinnest_stroke():
    mask = torch.zeros(1, 1, 32, 64)
    mask[0, 0, 9, 20] = 1  # one pixel
    mask[0, 0, 31, 63] = 0.49  # not quite
    cells = latent_mask(mask)
    assert cells.shape == (1, 1, 4, 8)
    assert cells.nonzero().tolist() == [[0, 0, 1, 2]]
    assert cells[0, 0, 1, 2] == 1
    assert latent_mask(mask, factor=2).nonzero().tolist() == [[0, 0, 4, 10]]


def test_grid_places():
    colors = [(i, 0, 0) for i in range(5)]
    sheet = grid([Image.new("RGB", (10, 6), color) for color in colors])
    assert sheet.size == (3 * 10 + 2 * 2, 2 * 6 + 2)  # three columns, and 2 pixels of white between
    corners = [(0, 0), (12, 0), (24, 0), (0, 8), (12, 8)]
    assert [sheet.getpixel(corner) for corner in corners] == colors
    assert sheet.getpixel((24, 8)) == WHITE
    assert grid([Image.new("RGB", (10, 6))] * 5, columns=1).size == (10, 5 * 6 + 4 * 2)
    assert grid([Image.new("RGB", (10, 6))], columns=4).size == (10, 6)


def test_grid_labels():
    images = [Image.new("RGB", (64, 64), RED)] * 2
    plain, labelled = grid(images), grid(images, labels=["", "a label of several words, wrapped"])
    assert labelled.height > plain.height + 20
    below = np.asarray(labelled)[64:]
    assert (below[:, :64] == 255).all()
    assert (below[:, 68:] < 128).any()
    one_line = grid(images, labels=["", "a"])
    assert plain.height < one_line.height < labelled.height


def png_header_of(width, height):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [9_000, 10_000, 100_000])  # over our bound, over Pillow's warning, over Pillow's bound
def test_a_decompression_bomb_is_refused_unread(side):
    with pytest.raises(UserError, match="million pixels"):
        open_image(io.BytesIO(png_header_of(side, side)))


def test_what_is_no_image(tmp_path):
    file = io.BytesIO()
    noise(64, 64).save(file, "PNG")
    (tmp_path / "cut.png").write_bytes(file.getvalue()[:3000])
    (tmp_path / "page.png").write_bytes(b"<html></html>")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "script.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n")
    for name in ("cut.png", "page.png", "empty.png", "script.eps"):
        with pytest.raises(UserError, match=f"{name} cannot be opened as an image"):
            open_image(tmp_path / name)
    with pytest.raises(UserError, match="file not found"):
        open_image(tmp_path / "none.png")
    with pytest.raises(UserError, match="is a folder"):
        open_image(tmp_path)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"])
def test_broken_bytes_give_an_image_or_one_sentence(kind):
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 3
    noise(24, 24).save(file, kind, **({"exif": exif} if kind in ("PNG", "JPEG", "WEBP", "TIFF") else {}))
    whole, random = file.getvalue(), np.random.default_rng(1)
    outcomes = set()
    for changes in list(range(1, 7)) * 25:
        broken = bytearray(whole)
        for place in random.integers(0, min(len(whole), 400), changes):
            broken[place] = random.integers(256)
        try:
            outcomes.add(to_rgb(open_image(io.BytesIO(bytes(broken)))).mode)
        except UserError:
            outcomes.add("refused")
    assert outcomes == ({"refused"} if kind == "PNG" else {"RGB", "refused"})  # every part of a PNG has its checksum


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "TIFF"])
def test_the_first_of_several_frames_is_told_from_an_only_one(tmp_path, kind):
    path, frames = tmp_path / "image", [noise(24, 16), noise(24, 16).rotate(180), noise(24, 16).transpose(0)]
    for further in (frames[1:], frames[1:2], []):
        several = {"save_all": True, "append_images": further} if further else {}
        frames[0].save(path, kind, **several | ({"lossless": True} if kind == "WEBP" else {}))
        found = open_image(path)
        assert is_first_frame(found) is bool(further)
        assert is_first_frame(open_image(io.BytesIO(path.read_bytes()))) is bool(further)
        if kind != "GIF":  # whose colors are rounded
            assert to_rgb(found).tobytes() == frames[0].tobytes()


def test_a_camera_s_small_images_in_a_jpeg_are_no_frames(tmp_path):
    noise(24, 16).save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[noise(8, 8)])
    with Image.open(tmp_path / "a.jpg") as opened:
        assert (opened.format, opened.n_frames) == ("MPO", 2)
    assert not is_first_frame(open_image(tmp_path / "a.jpg"))


def test_frames_of_a_gif_are_counted_to_the_damage():
    file, turned = io.BytesIO(), [noise(24, 16).rotate(180 * (i % 2)) for i in range(1, 5)]  # Pillow merges equal ones
    noise(24, 16).save(file, "GIF", save_all=True, append_images=turned, comment=b"c" * 700)
    whole = file.getvalue()
    assert [count_gif_frames(whole, most) for most in (1, 2, 5, 9)] == [1, 2, 5, 5]
    counts = [count_gif_frames(whole[:end], 9) for end in range(len(whole))]
    assert counts == sorted(counts)
    assert set(counts) == {0, 1, 2, 3, 4, 5}
    assert count_gif_frames(whole[:-1] + b"!\xfe" + b"\xff" * (1 << 22), 9) == 5


def test_notes_name_what_has_several_frames(tmp_path):
    noise(8, 8).save(tmp_path / "a.gif", save_all=True, append_images=[noise(8, 8).rotate(90)])
    first = open_image(tmp_path / "a.gif")
    assert first_frame_notes(init_image=[noise(8, 8), first], mask=[None], control_image=[]) == [
        "The file of the init image has several frames or pages, of which only the first is used."
    ]


def test_saved_names_count_on(tmp_path):
    image = noise(8, 8)
    assert save_png(image, tmp_path / "new" / "folder").name == "00000.png"
    assert save_png(image, tmp_path).name == "00000.png"
    (tmp_path / "00007.png").write_bytes(b"mine")
    (tmp_path / "00012.jpg").touch()
    (tmp_path / "grid-00031.png").touch()
    saved = save_png(image, tmp_path)
    assert saved == tmp_path / "00008.png"
    assert pixels(Image.open(saved)) == pixels(image)
    assert save_png(image, tmp_path, prefix="grid-").name == "grid-00032.png"
    (tmp_path / "99999.png").touch()
    assert save_png(image, tmp_path).name == "100000.png"
    assert save_png(image, tmp_path).name == "100001.png"
    assert (tmp_path / "00007.png").read_bytes() == b"mine"
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


def test_two_savers_never_share_a_name(tmp_path):
    image, saved, start = noise(8, 8), [], threading.Barrier(8)

    def save():
        start.wait()
        saved.extend(save_png(image, tmp_path) for _ in range(8))

    threads = [threading.Thread(target=save) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(saved)) == 64 == len(os.listdir(tmp_path))


def test_a_png_takes_the_place_of_an_earlier_one(tmp_path):
    path, images = tmp_path / "folder" / "preview.png", (noise(8, 8), noise(16, 8))
    for image in images:
        write_png(image, path)
        assert Image.open(path).tobytes() == image.tobytes()
    assert os.listdir(path.parent) == ["preview.png"]


def test_a_failed_save_leaves_nothing(tmp_path, monkeypatch):
    def full(self, file, **options):
        file.write_bytes(b"\x89PNG half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(UserError, match="No space left on device"):
        save_png(noise(8, 8), tmp_path)
    assert os.listdir(tmp_path) == []
    (tmp_path / "preview.png").write_bytes(b"earlier")
    with pytest.raises(UserError, match="No space left on device"):
        write_png(noise(8, 8), tmp_path / "preview.png")
    assert os.listdir(tmp_path) == ["preview.png"]
    assert (tmp_path / "preview.png").read_bytes() == b"earlier"


def test_an_unwritable_folder(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match="cannot write into"):
            check_outdir(folder)
        with pytest.raises(UserError, match="cannot write into"):
            save_png(noise(8, 8), folder)
    assert check_outdir(tmp_path / "a" / "b").is_dir()
    assert os.listdir(tmp_path / "a" / "b") == []


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="cannot write into"):
        check_outdir(tmp_path)


@pytest.mark.parametrize(
    ("values", "dtype", "expected"),
    [
        ([0, 0.5, 1], np.float32, [0, 128, 255]),
        ([0, 100, 255], np.float32, [0, 100, 255]),
        ([0, 257, 65535], np.float32, [0, 1, 255]),
        ([-3, 0.5, np.nan], np.float32, [0, 128, 0]),
        ([0, 100, 255], np.int32, [0, 100, 255]),
        ([0, 257, 65535], np.int32, [0, 1, 255]),
        ([0, 1, 257], np.uint16, [0, 0, 1]),  # a dark image of 16 bits stays dark
    ],
)
def test_images_of_more_bits_are_scaled_by_their_range(tmp_path, values, dtype, expected):
    Image.fromarray(np.array([values], dtype)).save(tmp_path / "deep.tiff")
    assert [pixel[0] for pixel in pixels(to_rgb(open_image(tmp_path / "deep.tiff")))[0]] == expected


def png_with_chunk(kind, data, at_the_end=False):
    file = io.BytesIO()
    noise(16, 16).save(file, "PNG")
    png = file.getvalue()
    place = png.index(b"IEND" if at_the_end else b"IDAT") - 4
    chunk = struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return png[:place] + chunk + png[place:]


LARGE = zlib.compress(b"x" * (3 << 20))


@pytest.mark.parametrize("at_the_end", [False, True])
@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (b"zTXt", b"workflow\0\0" + LARGE),
        (b"iTXt", b"workflow\0\1\0en\0\0" + LARGE),
        (b"iCCP", b"a large profile\0\0" + LARGE),
        (b"zTXt", b"xx x\0\0" + zlib.compress(b"x" * (300 << 20), 9)),  # a bomb is not unpacked
    ],
)
def test_a_png_with_a_large_text_or_profile_opens(tmp_path, kind, data, at_the_end):
    png = png_with_chunk(kind, data, at_the_end)
    (tmp_path / "large.png").write_bytes(png)
    for source in (tmp_path / "large.png", io.BytesIO(png)):
        assert pixels(open_image(source)) == pixels(noise(16, 16))


def test_a_large_text_takes_no_other_text_with_it():
    png = png_with_chunk(b"zTXt", b"workflow\0\0" + LARGE)
    small = b"parameters\0a cat\nSteps: 1"
    place = png.index(b"IDAT") - 4
    chunk = struct.pack(">I", len(small)) + b"tEXt" + small + struct.pack(">I", zlib.crc32(b"tEXt" + small))
    assert open_image(io.BytesIO(png[:place] + chunk + png[place:])).info["parameters"] == "a cat\nSteps: 1"
