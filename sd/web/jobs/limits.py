"""How much a request may ask for: bytes, pixels, pictures, letters."""

import base64
import binascii
import io

from PIL import Image

from sd.pipeline.settings import GenerationSettings
from sd.utils.errors import UserError
from sd.utils.images import open_header, open_image

MAX_BODY = 48 << 20  # bytes of a request
MAX_FILE = 16 << 20  # bytes of one picture
MAX_PIXELS = 4096 * 4096  # of a picture given
MAX_DRAWN_PIXELS = 2048 * 2048  # of a picture drawn
USUAL_SIDE = 512  # pixels: what a model draws at where no size is given, at most
MAX_PICTURES = 64  # in one job
MAX_PROMPT = 8000  # letters


class TooLarge(UserError):
    """More bytes or pixels than a request may have."""


def check_settings(settings: GenerationSettings) -> None:
    """What `GenerationSettings` allows is what can be drawn; a server allows less."""
    for name, text in (("prompt", settings.prompt), ("negative prompt", settings.negative_prompt)):
        if len(text) > MAX_PROMPT:
            raise UserError(f"the {name} has {len(text)} letters: {MAX_PROMPT} are allowed.")
        if "\0" in text:
            raise UserError(f"the {name} holds a NUL character: leave it out.")
    if settings.num_images > MAX_PICTURES:
        raise UserError(f"{settings.num_images} pictures are too many for one job: {MAX_PICTURES} are allowed.")
    width, height = settings.width or USUAL_SIDE, settings.height or USUAL_SIDE
    if width * height * settings.hires_scale**2 > MAX_DRAWN_PIXELS:
        raise UserError(
            f"{width}x{height}{' with its second pass' * (settings.hires_scale > 1)} is too large here: "
            f"{MAX_DRAWN_PIXELS >> 20} million pixels are allowed."
        )


def decode_picture(text: str) -> bytes:
    """The file inside a base64 text or a data: URL, checked by `check_picture`."""
    if text[:5].lower() == "data:":
        text = text.partition(",")[2]
    if len(text) > MAX_FILE * 4 // 3 + 4:
        raise TooLarge(f"a picture has over {MAX_FILE >> 20} MB: make it smaller first.")
    try:
        data = base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise UserError("a picture is not in base64: send the picture's file itself so encoded.") from error
    check_picture(data)
    return data


def check_picture(data: bytes) -> Image.Image:
    """The picture in a file's bytes. Its size is read first, so that nothing huge is ever unpacked."""
    if len(data) > MAX_FILE:
        raise TooLarge(f"a picture has over {MAX_FILE >> 20} MB: make it smaller first.")
    try:
        with open_header(io.BytesIO(data)) as header:
            pixels = header.width * header.height
    except Image.DecompressionBombError:
        pixels = MAX_PIXELS + 1
    except Exception:  # Pillow raises nearly anything on a broken file; `open_image` has the sentence for it
        pixels = 0
    if pixels > MAX_PIXELS:
        raise TooLarge(f"a picture has over {MAX_PIXELS >> 20} million pixels: make it smaller first.")
    return open_image(io.BytesIO(data))
