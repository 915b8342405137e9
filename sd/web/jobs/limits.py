"""The limits of a request: bytes, pixels, images, characters."""

import base64
import binascii
import io

from PIL import Image

from sd.pipeline.infotext import read_infotext
from sd.pipeline.settings import GenerationSettings
from sd.utils.errors import UserError
from sd.utils.images import open_header, open_image
from sd.web.jobs.uploads import decodes_uploads

MAX_BODY = 48 << 20  # bytes of a request
MAX_FILE = 16 << 20  # bytes of one image
MAX_PIXELS = 4096 * 4096  # of an input image
MAX_GENERATED_PIXELS = 2048 * 2048  # of a generated image
DEFAULT_SIDE = 512  # pixels: the largest default side of any model
MAX_IMAGES = 64  # of one job
MAX_PROMPT = 8000  # characters


class TooLarge(UserError):
    """More bytes or pixels than a request may have."""


def check_settings(settings: GenerationSettings) -> None:
    """Raises UserError where settings exceed what this server allows."""
    for name, text in (("prompt", settings.prompt), ("negative prompt", settings.negative_prompt)):
        if len(text) > MAX_PROMPT:
            raise UserError(f"the {name} has {len(text)} characters: {MAX_PROMPT} are allowed.")
    if settings.num_images > MAX_IMAGES:
        raise UserError(f"{settings.num_images} images are too many for one job: {MAX_IMAGES} are allowed.")
    left, right, up, down = settings.margins
    width, height = (settings.width or DEFAULT_SIDE) + left + right, (settings.height or DEFAULT_SIDE) + up + down
    if width * height * settings.hires_scale**2 > MAX_GENERATED_PIXELS:
        raise UserError(
            f"{width}x{height}{' with its second pass' * (settings.hires_scale > 1)} is too large: "
            f"{MAX_GENERATED_PIXELS >> 20} million pixels are allowed."
        )


def decode_image(text: str) -> bytes:
    """Return the file in a base64 text or a data: URL, checked by `image_size`. Raises UserError and TooLarge."""
    if text[:5].lower() == "data:":
        text = text.partition(",")[2]
    if len(text) > MAX_FILE * 4 // 3 + 4:
        raise TooLarge(f"an image has over {MAX_FILE >> 20} MB: make it smaller first.")
    try:
        data = base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise UserError("an image is not valid base64: send the image file encoded as base64.") from error
    if len(data) > MAX_FILE:
        raise TooLarge(f"an image has over {MAX_FILE >> 20} MB: make it smaller first.")
    image_size(data)
    return data


@decodes_uploads
def image_size(data: bytes) -> tuple[int, int]:
    """Return width and height of an image that `check_image` accepts. Raises UserError and TooLarge."""
    return check_image(data).size


@decodes_uploads
def uploaded_infotext(data: bytes, name: str = "the image") -> str:
    """Return the settings in an image's file, as `read_infotext` does. name: for the message. Raises UserError."""
    return read_infotext(NamedBytes(data, name))


class NamedBytes(io.BytesIO):
    """A file in memory with a name for error messages."""

    def __init__(self, data: bytes, name: str):
        super().__init__(data)
        self.name = str(name)[:100]

    def __str__(self) -> str:
        return self.name


def check_image(data: bytes) -> Image.Image:
    """Open the image in a file's bytes; its size is checked before it is decoded. Raises UserError and TooLarge.

    Call it only inside functions decorated with `decodes_uploads`.
    """
    try:
        with open_header(io.BytesIO(data)) as header:
            pixels = header.width * header.height
    except Image.DecompressionBombError:
        pixels = MAX_PIXELS + 1
    except Exception:  # Pillow raises nearly anything on a broken file; `open_image` has the sentence for it
        pixels = 0
    if pixels > MAX_PIXELS:
        raise TooLarge(f"an image has over {MAX_PIXELS >> 20} million pixels: make it smaller first.")
    return open_image(io.BytesIO(data))
