"""Conversion between image files, PIL images and tensors.

An image is a PIL image at the interfaces of the program and a tensor (B, 3, H, W) in [-1, 1] inside it.
"""

import io
import re
import struct
import zlib
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from PIL.PngImagePlugin import MAX_TEXT_CHUNK, iTXt
from torch import Tensor

from sd.utils.errors import UserError

MAX_SIDE = 4096
STRIP = 256  # rows of a tensor that are converted at once
MAX_PIXELS = 80_000_000  # of an image to open: more is a decompression bomb or a mistake
ANY_FILE, PER_BYTE = 1 << 28, 4  # bytes of pixels that any file may unpack to, and for each byte of the file besides
SAMPLE_BYTES = {"1": 1, "L": 1, "P": 1, "LA": 2, "I;16": 2}  # of a pixel in Pillow's memory; 4 in any other mode
MAX_TEXTS, MAX_TEXT_BYTES = 1000, 1 << 23  # of a PNG: chunks of text, and what they may unpack to in all
TEXT_CHUNKS = (b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"eXIf")
ANY_EXIF = 1 << 24  # bytes that the entries of any file's directories may name
EXIF_MARK = b"Exif\0\0"
TIFF_ORDERS = {b"II*\0": "<", b"MM\0*": ">", b"II+\0": "<", b"MM\0+": ">"}  # the first bytes of a TIFF
TIFF_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}  # bytes by type
DIRECTORIES = (0x014A, 0x8769, 0x8825, 0xA005)  # tags whose value is the place of another directory
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # without those that start a program, as EPS does
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
INFOTEXT_KEY = "parameters"  # the PNG text chunk where the webui keeps the settings
FIRST_FRAME = "first frame"  # in the `info` of an image that is the first of several in its file


def check_size(width: int, height: int, multiple: int = 8) -> None:
    """Raise UserError unless both sides are multiples of `multiple` from `multiple` to MAX_SIDE."""
    for name, side in (("width", width), ("height", height)):
        if not isinstance(side, int) or not 0 < side <= MAX_SIDE:
            raise UserError(f"the {name} {side} cannot be made: use a whole number from {multiple} to {MAX_SIDE}.")
        if side % multiple:
            below = max(side // multiple, 1) * multiple
            near = f"{below}" if below > side else f"{below} or {below + multiple}"
            raise UserError(f"the {name} {side} is not a multiple of {multiple}: use {near}.")


def cut_size(width: int, height: int, multiple: int = 8) -> tuple[int, int]:
    """Return the size that an image of this size is generated at: the multiples of `multiple` below, or one of them."""
    return max(width // multiple, 1) * multiple, max(height // multiple, 1) * multiple


def open_image(source: str | Path | BinaryIO) -> Image.Image:
    """Read an image from a path or an open file, in its EXIF orientation and the file's own mode.

    Of an animation or a file of several pages it is the first one, which `is_first_frame` tells. Raises UserError if it
    is missing, corrupt, not an image, larger than MAX_PIXELS, or unpacks to far more than a file of its size may need.
    """
    name = source if isinstance(source, (str, Path)) else "the image"
    if source == "":  # the current folder, as a path
        raise UserError("the path of an image is empty: give the path of one image, or leave it out.")
    if isinstance(source, (str, Path)) and not Path(source).is_file():
        if Path(source).is_dir():
            raise UserError(f"{name} is a folder: give the path of one image.")
        raise UserError(f"file not found: {name}; check the path of the image.")
    try:
        try:
            with open_header(source) as image:
                return mark_first_frame(load_pixels(image, size_of_file(source)), image, source)
        except UserError:
            raise
        except ValueError:  # a text chunk behind the pixels is too large
            with Image.open(io.BytesIO(without_large_texts(whole_file(source))), formats=FORMATS) as image:
                return mark_first_frame(load_pixels(image, size_of_file(source)), image, source)
    except UserError:
        raise
    except Image.DecompressionBombError as error:
        raise UserError(f"{name} has over {MAX_PIXELS // 10**6} million pixels: make it smaller first.") from error
    except Exception as error:  # Pillow raises nearly anything on a broken file
        raise UserError(
            f"{name} cannot be opened as an image (corrupt or unsupported format); convert it to PNG or JPEG."
        ) from error


def open_header(source: str | Path | BinaryIO) -> Image.Image:
    """Open an image and read only its header; like Pillow it may raise any exception.

    A PNG's text or color profile of over 1 MB when decompressed, which Pillow rejects, is left out, and so is what is
    beyond MAX_TEXTS and MAX_TEXT_BYTES.
    """
    check_directories(source)
    if count_texts(source) > MAX_TEXTS:
        return Image.open(io.BytesIO(without_large_texts(whole_file(source))), formats=FORMATS)
    try:
        return Image.open(source, formats=FORMATS)
    except ValueError:
        return Image.open(io.BytesIO(without_large_texts(whole_file(source))), formats=FORMATS)


def load_pixels(image: Image.Image, file_size: int) -> Image.Image:
    """Read the pixels of an opened image and apply its EXIF orientation; Pillow's bomb error if it is too large.

    Raises UserError, before any pixel is unpacked, where the pixels take far more memory than the file's size allows.
    """
    if image.width * image.height > MAX_PIXELS:
        raise Image.DecompressionBombError
    check_memory(image, file_size, copies=1)
    image.load()
    if orientation_of(image) == 1:  # known only now: a PNG may have it behind the pixels
        return image
    check_memory(image, file_size, copies=2)
    return apply_orientation(image)


def mark_first_frame(pixels: Image.Image, opened: Image.Image, source: str | Path | BinaryIO) -> Image.Image:
    """Note in the `info` of `pixels`, which are those of `opened`, that its file has further frames or pages.

    A JPEG's further images, such as the small ones of a camera, show the same, and do not count.
    """
    if opened.format == "GIF":  # Pillow would read to the second frame, and forget the first
        several = count_gif_frames(whole_file(source), most=2) > 1
    else:
        several = opened.format in ("PNG", "WEBP", "TIFF") and getattr(opened, "is_animated", False)
    if several:
        pixels.info[FIRST_FRAME] = True
    return pixels


def is_first_frame(image: Image.Image) -> bool:
    """Return whether `open_image` has read an image as the first of several frames or pages."""
    return FIRST_FRAME in image.info


def first_frame_notes(**images: Sequence[Image.Image | None]) -> list[str]:
    """Return a sentence for each name under which an image is the first of several frames or pages.

    images: by what they are, such as init_image.
    """
    return [
        f"The file of the {what.replace('_', ' ')} has several frames or pages, of which only the first is used."
        for what, some in images.items()
        if any(one is not None and is_first_frame(one) for one in some)
    ]


def count_gif_frames(data: bytes, most: int) -> int:
    """Return how many images a GIF holds, at most `most`; of a damaged one those that begin before the damage.

    CompuServe 1990, "Graphics Interchange Format, Version 89a", sections 15 to 27.
    """

    def color_table(flags: int) -> int:
        return 3 << (flags & 7) + 1 if flags & 0x80 else 0

    frames, place = 0, 13 + color_table(data[10]) if len(data) > 10 else len(data)
    while place < len(data) and frames < most:
        if data[place] == 0x2C:  # an image: 10 bytes, its colors, and a byte before its blocks
            frames += 1
            place += 11 + color_table(data[min(place + 9, len(data) - 1)])
        elif data[place] == 0x21:  # an extension: its kind, and blocks
            place += 2
        else:  # the end, or damage
            break
        while place < len(data) and data[place]:  # blocks, each after its length, up to one of length 0
            place += 1 + data[place]
        place += 1
    return frames


def check_memory(image: Image.Image, file_size: int, copies: int) -> None:
    """Raise UserError where copies of an image's pixels take far more memory than a file of its size may need."""
    if image.width * image.height * SAMPLE_BYTES.get(image.mode, 4) * copies > ANY_FILE + PER_BYTE * file_size:
        raise UserError(
            f"an image of {image.width}x{image.height} pixels in {file_size:,} bytes is refused: it would take far "
            "more memory than a file of its size may need; make it smaller first."
        )


def orientation_of(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 for an upright image and where there is none."""
    try:
        return exif_of(image).get(ExifTags.Base.Orientation, 1)
    except Exception:  # corrupt EXIF data is ignored; Pillow may raise any exception
        return 1


def exif_of(image: Image.Image) -> Image.Exif:
    """Return an image's EXIF data; an empty one where reading it would take far more than its size. May raise anything.

    Every entry of a directory names bytes anywhere in the data, which Pillow copies: 60,000 entries, 60,000 copies.
    """
    data = image.info.get("exif")
    if data is None and (profile := image.info.get("Raw profile type exif")):
        data = bytes.fromhex("".join(profile.split("\n")[3:]))
    while data and data.startswith(EXIF_MARK):
        data = data[len(EXIF_MARK) :]
    return Image.Exif() if data and is_repetitive(data) else image.getexif()


def check_directories(source: str | Path | BinaryIO) -> None:
    """Raise UserError for a TIFF, or a JPEG's EXIF data, that Pillow would copy again and again on opening it."""
    with open(source, "rb") if isinstance(source, (str, Path)) else nullcontext(source) as file:
        file.seek(0)
        head, data = file.read(4), b""
        if head.startswith(b"\xff\xd8"):
            whole = head + file.read()
            for found in re.finditer(rb"\xff\xe1(..)" + EXIF_MARK, whole, re.DOTALL):
                data += whole[found.end() : found.start() + 2 + int.from_bytes(found[1], "big")]
        elif head in TIFF_ORDERS:
            data = head + file.read()
        file.seek(0)
    if is_repetitive(data):
        raise UserError("the image is refused: its directory names the same bytes again and again; save it as PNG.")


def is_repetitive(data: bytes) -> bool:
    return copied_bytes(data) > ANY_EXIF + PER_BYTE * len(data)


def copied_bytes(data: bytes) -> int:
    """Return how many bytes the entries of a TIFF's first directory, and of those that it points to, name in all.

    0 for what is no TIFF. TIFF 6.0, section 2.
    """
    order = TIFF_ORDERS.get(data[:4])
    if order is None or len(data) < 8:
        return 0
    if b"+" in data[:4]:  # BigTIFF, for files of over 4 GB
        return 1 << 62
    total, todo = 0, list(struct.unpack_from(f"{order}L", data, 4))
    for start in todo:
        count = int.from_bytes(data[start : start + 2], "little" if order == "<" else "big")
        entries = data[start + 2 : start + 2 + 12 * count]
        for tag, kind, number, value in struct.iter_unpack(f"{order}HHLL", entries[: len(entries) // 12 * 12]):
            total += min(TIFF_SIZES.get(kind, 1) * number, len(data))
            if tag in DIRECTORIES and value not in todo and len(todo) < 8:
                todo.append(value)
    return total


def size_of_file(source: str | Path | BinaryIO) -> int:
    if isinstance(source, (str, Path)):
        return Path(source).stat().st_size
    return source.seek(0, io.SEEK_END)


def count_texts(source: str | Path | BinaryIO) -> int:
    """Return how many chunks of text a PNG has, MAX_TEXTS + 1 for more; 0 for other formats. Nothing is unpacked."""
    with open(source, "rb") if isinstance(source, (str, Path)) else nullcontext(source) as file:
        file.seek(0)
        count, signature = 0, file.read(len(PNG_SIGNATURE))
        while signature == PNG_SIGNATURE and count <= MAX_TEXTS and len(head := file.read(8)) == 8:
            count += head[4:] in TEXT_CHUNKS
            file.seek(int.from_bytes(head[:4], "big") + 4, io.SEEK_CUR)
        file.seek(0)
    return count


def whole_file(source: str | Path | BinaryIO) -> bytes:
    """Return all bytes of a path or an open file."""
    if isinstance(source, (str, Path)):
        return Path(source).read_bytes()
    source.seek(0)
    return source.read()


def without_large_texts(png: bytes) -> bytes:
    """Return a PNG's bytes without the compressed chunks that Pillow would reject for their size.

    Of the texts the first MAX_TEXTS stay, up to MAX_TEXT_BYTES unpacked. Raises ValueError for other formats.
    """
    if not png.startswith(PNG_SIGNATURE):
        raise ValueError
    kept, place = [PNG_SIGNATURE], len(PNG_SIGNATURE)
    texts, left = 0, MAX_TEXT_BYTES
    while place + 12 <= len(png):
        length = int.from_bytes(png[place : place + 4], "big")
        kind, end = png[place + 4 : place + 8], place + 12 + length
        if kind in TEXT_CHUNKS:
            texts += 1
            size = unpacked_size(kind, png[place + 8 : end - 4]) if left > 0 and texts <= MAX_TEXTS else left + 1
            left -= size
            if size <= MAX_TEXT_CHUNK and left >= 0:
                kept.append(png[place:end])
        else:
            kept.append(png[place:end])
        place = end
    return b"".join(kept)


def unpacked_size(kind: bytes, chunk: bytes) -> int:
    """Return how many bytes of work a text chunk is, MAX_TEXT_CHUNK + 1 at most for one attempt to unpack it.

    Its compressed data begins after its names, with zlib's first byte.
    """
    if kind not in (b"zTXt", b"iTXt", b"iCCP"):
        return min(len(chunk), MAX_TEXT_CHUNK)
    largest, begin = len(chunk), chunk.find(b"\x78", chunk.find(b"\0"))
    while begin != -1 and largest <= MAX_TEXT_CHUNK:
        try:
            unpacked = len(zlib.decompressobj().decompress(chunk[begin:], MAX_TEXT_CHUNK + 1))
            largest = max(largest, unpacked)
        except zlib.error:
            pass
        begin = chunk.find(b"\x78", begin + 1, 200)
    return largest


def apply_orientation(image: Image.Image) -> Image.Image:
    """Return a copy, rotated as its EXIF orientation says."""
    if orientation_of(image) == 1:
        return image.copy()
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # corrupt EXIF data is ignored; Pillow may raise any exception
        return image.copy()


def to_rgb(image: Image.Image, background: str = "white") -> Image.Image:
    """Convert any PIL image to RGB in its EXIF orientation; transparent areas get the background color."""
    image = in_8_bits(apply_orientation(image))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, background), image)
    return image.convert("RGB")


def in_8_bits(image: Image.Image) -> Image.Image:
    """Scale an image of more than 8 bits per channel to 8, where Pillow would clip at 255; others are unchanged.

    Gray with premultiplied alpha (La), which Pillow converts to nothing else, becomes LA.
    """
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(to_8_bits(np.asarray(image)))
    return image.convert("LA") if image.mode == "La" else image


def to_8_bits(pixels: np.ndarray) -> np.ndarray:
    """Convert numbers of any type to uint8, from the range that they are assumed to have: 1, 255, 65535 or 2^31 - 1.

    16-bit integers are always 0 to 65535. The range of others is the smallest that holds their maximum; integers are
    never 0 to 1.
    """
    if pixels.dtype == np.uint8:
        return pixels
    values = np.nan_to_num(pixels.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    ranges = [1.0] if pixels.dtype.kind == "f" else []
    ranges += [65535.0] if pixels.dtype == np.uint16 else [255.0, 65535.0, 2.0**31 - 1]
    highest = next((value for value in ranges if values.max() <= value), values.max())
    return (values / highest * 255).clip(0, 255).round().astype(np.uint8)


def resize_and_crop(image: Image.Image, width: int, height: int) -> Image.Image:
    """Return an image as RGB in exactly this size: resized until it covers it, then cropped around its center."""
    return ImageOps.fit(to_rgb(image), (width, height), Image.Resampling.LANCZOS)


def to_tensor(image: Image.Image) -> Tensor:
    """Convert a PIL image to (1, 3, H, W), fp32 in [-1, 1]."""
    pixels = torch.from_numpy(np.array(to_rgb(image)))  # (H, W, 3), 0 to 255
    return pixels.permute(2, 0, 1)[None].float().div_(127.5).sub_(1)  # in place: a large image is held once


def from_tensor(image: Tensor) -> list[Image.Image]:
    """Convert (B, 3, H, W) in [-1, 1], clipped to it, to B PIL images; `from_tensor(to_tensor(x))` is x again."""
    batch, channels, height, width = image.shape
    pixels = np.empty((batch, height, width, channels), np.uint8)
    for top in range(0, height, STRIP):  # so that a large image is not held in fp32 several times
        strip = image[:, :, top : top + STRIP].detach().float()
        strip = ((strip + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        pixels[:, top : top + STRIP] = strip.permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(one) for one in pixels]


def decode_chunk(text: str) -> str:
    """Decode a PNG's text. `tEXt` is Latin-1 by definition, but many programs write UTF-8 there, which is detected."""
    if isinstance(text, iTXt) or text.isascii():
        return str(text)
    try:
        return text.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return str(text)


def ambiguous_in_latin(text: str) -> bool:
    """Return whether `decode_chunk` would misread a text of Latin-1 characters as UTF-8."""
    try:
        text.encode("latin-1")
    except UnicodeError:
        return False
    return decode_chunk(text) != text
