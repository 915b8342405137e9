"""Pictures in and out: files, tensors in [-1, 1], masks, contact sheets.

A picture is a PIL image at the edges of the program and a tensor (B, 3, H, W) in [-1, 1] inside it. A mask is white
where the picture is to be painted anew and black where it stays.
"""

import math
import os
import re
import tempfile
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from sd.errors import UserError
from sd.weight_files import replacing

MAX_SIDE = 4096
MAX_PIXELS = 80_000_000  # of a picture to open: more is a decompression bomb or a mistake
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # none that starts another program, as EPS does
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
        with Image.open(source, formats=FORMATS) as image:  # reads the header only
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            image.load()
            return upright(image)
    except Image.DecompressionBombError as error:
        raise UserError(f"{name} has over {MAX_PIXELS // 10**6} million pixels: make it smaller first.") from error
    except Exception as error:  # Pillow raises nearly anything on a broken file
        raise UserError(f"{name} is not a picture, or broken, or of a rare kind: save it as PNG or JPEG.") from error


def upright(image: Image.Image) -> Image.Image:
    """A copy, turned as a camera's EXIF note says."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # a broken note says nothing; Pillow raises nearly anything on it
        return image.copy()


def to_rgb(image: Image.Image, background: str = "white") -> Image.Image:
    """Any PIL image as upright RGB; where it is transparent the background shows."""
    image = upright(image)
    if image.mode.startswith("I"):  # 16 bits a pixel, which Pillow would cut at 255 instead of scaling
        image = Image.fromarray((np.asarray(image).clip(0, 65535) / 257).round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, background), image)
    return image.convert("RGB")


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


def mask_to_tensor(mask: Image.Image, width: int, height: int, blur: float = 0) -> Tensor:
    """A mask to (1, 1, H, W), fp32 in [0, 1]: 1 where it is white. Fitted to the size as `fit` fits the picture.

    blur: the radius in pixels of a Gaussian that softens its edge, for laying the new picture over the old.
    """
    gray = ImageOps.fit(to_rgb(mask, background="black").convert("L"), (width, height), Image.Resampling.BILINEAR)
    if blur:
        gray = gray.filter(ImageFilter.GaussianBlur(blur))
    return torch.from_numpy(np.array(gray))[None, None].float() / 255


def latent_mask(mask: Tensor, factor: int = 8) -> Tensor:
    """(1, 1, H, W) in [0, 1] to (1, 1, H / factor, W / factor) of 0 and 1.

    A cell is 1 if any of its pixels is at least half white, so that no painted stroke is too thin to count.
    """
    return F.max_pool2d((mask >= 0.5).float(), factor)


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
        info.add_text(INFOTEXT_KEY, infotext)
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
