"""Images in and out: files, PIL images, tensors in [-1, 1].

A picture is a PIL image at the edges of the program and a tensor (B, 3, H, W) in [-1, 1] inside it.
"""

import io
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps
from PIL.PngImagePlugin import MAX_TEXT_CHUNK, iTXt
from torch import Tensor

from sd.utils.errors import UserError

MAX_SIDE = 4096
MAX_PIXELS = 80_000_000  # of a picture to open: more is a decompression bomb or a mistake
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # none that starts another program, as EPS does
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
INFOTEXT_KEY = "parameters"  # the PNG text chunk where the webui keeps the settings


def check_size(width: int, height: int, multiple: int = 8) -> None:
    """Raises UserError unless both sides are multiples of `multiple` from `multiple` to MAX_SIDE."""
    for name, side in (("width", width), ("height", height)):
        if not isinstance(side, int) or not 0 < side <= MAX_SIDE:
            raise UserError(f"the {name} {side} cannot be made: use a whole number from {multiple} to {MAX_SIDE}.")
        if side % multiple:
            below = max(side // multiple, 1) * multiple
            near = f"{below}" if below > side else f"{below} or {below + multiple}"
            raise UserError(f"the {name} {side} is not a multiple of {multiple}: use {near}.")


def open_image(source: str | Path | BinaryIO) -> Image.Image:
    """A picture from a path or an open file, upright and wholly read, in the file's own mode.

    Raises UserError where it is missing, broken, not a picture or over MAX_PIXELS.
    """
    name = source if isinstance(source, (str, Path)) else "the picture"
    if isinstance(source, (str, Path)) and not Path(source).is_file():
        raise UserError(f"there is no picture {name}.")
    try:
        try:
            with open_header(source) as image:
                return load(image)
        except ValueError:  # a text that is too large stands behind the pixels
            with Image.open(io.BytesIO(without_large_texts(whole_file(source))), formats=FORMATS) as image:
                return load(image)
    except Image.DecompressionBombError as error:
        raise UserError(f"{name} has over {MAX_PIXELS // 10**6} million pixels: make it smaller first.") from error
    except Exception as error:  # Pillow raises nearly anything on a broken file
        raise UserError(f"{name} is not a picture, or broken, or of a rare kind: save it as PNG or JPEG.") from error


def open_header(source: str | Path | BinaryIO) -> Image.Image:
    """An image of which the header is read only; raises nearly anything, as Pillow does.

    A PNG's text or color profile of over 1 MB once unpacked, which Pillow refuses, is left out.
    """
    try:
        return Image.open(source, formats=FORMATS)
    except ValueError:
        return Image.open(io.BytesIO(without_large_texts(whole_file(source))), formats=FORMATS)


def load(image: Image.Image) -> Image.Image:
    if image.width * image.height > MAX_PIXELS:
        raise Image.DecompressionBombError
    image.load()
    return upright(image)


def whole_file(source: str | Path | BinaryIO) -> bytes:
    if isinstance(source, (str, Path)):
        return Path(source).read_bytes()
    source.seek(0)
    return source.read()


def without_large_texts(png: bytes) -> bytes:
    """A PNG's bytes without the compressed chunks that Pillow would refuse. Nothing is unpacked beyond that.

    Raises ValueError for what is no PNG.
    """
    if not png.startswith(PNG_SIGNATURE):
        raise ValueError
    kept, place = [PNG_SIGNATURE], len(PNG_SIGNATURE)
    while place + 12 <= len(png):
        length = int.from_bytes(png[place : place + 4], "big")
        kind, end = png[place + 4 : place + 8], place + 12 + length
        if kind not in (b"zTXt", b"iTXt", b"iCCP") or not unpacks_too_large(png[place + 8 : end - 4]):
            kept.append(png[place:end])
        place = end
    return b"".join(kept)


def unpacks_too_large(chunk: bytes) -> bool:
    """The compressed part of such a chunk begins after its names, with the marks of zlib."""
    begin = chunk.find(b"\x78", chunk.find(b"\0"))
    while begin != -1:
        try:
            if len(zlib.decompressobj().decompress(chunk[begin:], MAX_TEXT_CHUNK + 1)) > MAX_TEXT_CHUNK:
                return True
        except zlib.error:
            pass
        begin = chunk.find(b"\x78", begin + 1, 200)
    return False


def upright(image: Image.Image) -> Image.Image:
    """A copy, turned as a camera's EXIF note says."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # a broken note says nothing; Pillow raises nearly anything on it
        return image.copy()


def to_rgb(image: Image.Image, background: str = "white") -> Image.Image:
    """Any PIL image as upright RGB; where it is transparent the background shows."""
    image = in_8_bits(upright(image))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, background), image)
    return image.convert("RGB")


def in_8_bits(image: Image.Image) -> Image.Image:
    """An image of more bits a pixel scaled to 8, where Pillow would cut it at 255; any other as it is."""
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(to_8_bits(np.asarray(image)))
    return image


def to_8_bits(pixels: np.ndarray) -> np.ndarray:
    """Numbers of any type to uint8, by the range that they are meant in: 1, 255, 65535 or 2^31 - 1.

    16-bit numbers are always 0 to 65535. Others tell by their largest; whole numbers are never 0 to 1.
    """
    if pixels.dtype == np.uint8:
        return pixels
    values = np.nan_to_num(pixels.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    ranges = [1.0] if pixels.dtype.kind == "f" else []
    ranges += [65535.0] if pixels.dtype == np.uint16 else [255.0, 65535.0, 2.0**31 - 1]
    highest = next((value for value in ranges if values.max() <= value), values.max())
    return (values / highest * 255).clip(0, 255).round().astype(np.uint8)


def fit(image: Image.Image, width: int, height: int) -> Image.Image:
    """As RGB at exactly this size: scaled until it covers it, then cropped around its middle."""
    return ImageOps.fit(to_rgb(image), (width, height), Image.Resampling.LANCZOS)


def to_tensor(image: Image.Image) -> Tensor:
    """A PIL image to (1, 3, H, W), fp32 in [-1, 1]."""
    pixels = torch.from_numpy(np.array(to_rgb(image)))  # (H, W, 3), 0 to 255
    return pixels.permute(2, 0, 1)[None].float() / 127.5 - 1


def from_tensor(image: Tensor) -> list[Image.Image]:
    """(B, 3, H, W) in [-1, 1], cut to it, to B PIL images. `from_tensor(to_tensor(x))` is x again."""
    pixels = ((image.detach().float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return [Image.fromarray(one) for one in pixels.permute(0, 2, 3, 1).cpu().numpy()]


def decode_chunk(text: str) -> str:
    """A PNG's text. `tEXt` is Latin-1 by its definition, but many programs write UTF-8 there, which is told apart."""
    if isinstance(text, iTXt) or text.isascii():
        return str(text)
    try:
        return text.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return str(text)


def ambiguous_in_latin(text: str) -> bool:
    """True where `decode_chunk` would take a text of Latin-1 characters for something else."""
    try:
        text.encode("latin-1")
    except UnicodeError:
        return False
    return decode_chunk(text) != text
