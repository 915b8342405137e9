"""Pictures in and out: files, tensors in [-1, 1], contact sheets.

A picture is a PIL image at the edges of the program and a tensor (B, 3, H, W) in [-1, 1] inside it.
"""

import io
import math
import os
import re
import tempfile
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps
from PIL.PngImagePlugin import MAX_TEXT_CHUNK, PngInfo
from torch import Tensor

from sd.checkpoints.weight_files import replacing
from sd.utils.embedded_text import ambiguous_in_latin
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


def grid(images: list[Image.Image], columns: int | None = None, labels: list[str] | None = None) -> Image.Image:
    """All pictures on one white sheet, row by row, each with its label (if any) below it; near square by default."""
    columns = min(math.ceil(math.sqrt(len(images))) if columns is None else columns, len(images))
    width, height = (max(sizes) for sizes in zip(*(image.size for image in images)))
    texts = [""] * len(images) if labels is None else labels
    font = ImageFont.load_default(size=max(11, width // 24))
    texts = [wrap(text, font, width) for text in texts]
    canvas = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    text_height = math.ceil(max(canvas.textbbox((0, 0), text, font=font)[3] for text in texts))
    gap = 2 if text_height == 0 else 4
    rows = math.ceil(len(images) / columns)
    cell = (width + gap, height + text_height + gap)
    sheet = Image.new("RGB", (columns * cell[0] - gap, rows * cell[1] - gap), "white")
    for i, (image, text) in enumerate(zip(images, texts)):
        x, y = i % columns * cell[0], i // columns * cell[1]
        sheet.paste(to_rgb(image), (x, y))
        label = Image.new("RGB", (width, text_height), "white")  # a sheet of its own cuts off what is too wide
        ImageDraw.Draw(label).text((0, 0), text, font=font, fill="black")
        sheet.paste(label, (x, y + height))
    return sheet


def wrap(text: str, font: ImageFont.ImageFont, width: int) -> str:
    """The text with line breaks between words, so that lines stay within `width` pixels where words allow it."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return "\n".join(lines)


def check_outdir(outdir: str | Path) -> Path:
    """The folder, made if it was not there. Raises UserError if nothing can be written there: ask before long work."""
    folder = Path(outdir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise UserError(f"cannot write into {outdir} ({error.strerror}): choose another --outdir.") from error


def save_png(
    image: Image.Image, outdir: str | Path, infotext: str = "", prefix: str = "", number: int | None = None
) -> Path:
    """Saves as the next free `{prefix}00000.png` of a folder, made if needed, and returns its path.

    Nothing is ever overwritten, also not by several programs at once, and no half-written PNG is ever to be seen.
    infotext: settings to keep inside. number: the first to try, one after the highest if None. Raises UserError where
    the folder cannot be written to.
    """
    info = PngInfo()
    if infotext:
        add = info.add_itxt if ambiguous_in_latin(infotext) else info.add_text
        add(INFOTEXT_KEY, infotext)
    folder = check_outdir(outdir)
    try:
        target, part = claim(folder, prefix, next_number(folder, prefix) if number is None else number)
        try:
            image.save(part, format="PNG", pnginfo=info)
            part.replace(target)
        except BaseException:
            part.unlink()
            raise
    except OSError as error:
        raise UserError(f"cannot save a picture in {outdir} ({error.strerror or error}).") from error
    return target


def write_png(image: Image.Image, path: Path) -> None:
    """As a file of this name, in place of an earlier one; a reader sees the old one or the new, never half of one.

    Raises UserError where it cannot be written.
    """
    with replacing(path) as part:
        image.save(part, format="PNG")


def next_number(folder: Path, prefix: str) -> int:
    """One more than the highest of the files `{prefix}00000.png`."""
    numbered = re.compile(re.escape(prefix) + r"(\d{5,})\.png")
    return 1 + max((int(match[1]) for match in map(numbered.fullmatch, os.listdir(folder)) if match), default=-1)


def claim(folder: Path, prefix: str, number: int) -> tuple[Path, Path]:
    """A free file name from `number` on, and beside it a hidden file whose exclusive creation keeps others off it."""
    while True:
        target = folder / f"{prefix}{number:05}.png"
        part = folder / f".{target.name}.part"
        try:
            part.open("xb").close()
        except FileExistsError:
            number += 1
            continue
        if not target.exists():
            return target, part
        part.unlink()  # another program finished this number between our look and our claim
        number += 1
