"""Preprocessors: from an image to the image that a ControlNet reads.

Their names are those of the webui's ControlNet extension. They work at the size of the generated image.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from sd.control.edges import canny
from sd.utils.errors import UserError

Run = Callable[[Image.Image, float, float], np.ndarray]


@dataclass(frozen=True)
class Threshold:
    """A number that a preprocessor takes, with its bounds."""

    label: str
    low: float
    high: float
    default: float


@dataclass(frozen=True)
class Preprocessor:
    """label: for people. run: (image in RGB, a, b) to (H, W) or (H, W, 3), uint8. a, b: its numbers, if it has any.

    for_masks: whether the masked part is marked for the ControlNet; see `hint_of`. model_free: it works without a
    ControlNet; see `sd.control.reference`. for_ip_adapter: it is for IP-Adapters alone, which need none.
    """

    label: str
    run: Run
    a: Threshold | None = None
    b: Threshold | None = None
    for_masks: bool = False
    model_free: bool = False
    for_ip_adapter: bool = False


def pixels_of(image: Image.Image, a: float = 0, b: float = 0) -> np.ndarray:
    """Returns the image as it is."""
    return np.array(image)


def invert(image: Image.Image, a: float, b: float) -> np.ndarray:
    """Returns the negative: dark lines on white become the white lines on black that ControlNets were trained with."""
    return 255 - pixels_of(image)


def threshold(image: Image.Image, a: float, b: float) -> np.ndarray:
    """Returns white where the mean of the channels is over `a`, black elsewhere."""
    return np.where(pixels_of(image).mean(axis=2) > a, 255, 0).astype(np.uint8)


def scribble(image: Image.Image, a: float, b: float) -> np.ndarray:
    """Returns lines that are darker than what surrounds them, as white strokes (a difference of Gaussians).

    Winnemöller et al. 2012, "XDoG", section 2. a: how much darker, of 255; a smaller one gives more strokes.
    """
    fine, coarse = (np.array(image.filter(ImageFilter.GaussianBlur(radius))).astype(float) for radius in (0.5, 5.0))
    darker = np.clip((coarse - fine).max(axis=2), 0, 255)
    return np.where(2 * darker > a, 255, 0).astype(np.uint8)


def tile(image: Image.Image, a: float, b: float) -> np.ndarray:
    """Returns the image without its finest details: as if it were `a` times smaller."""
    small = (max(1, round(image.width / a)), max(1, round(image.height / a)))
    if small == image.size:
        return pixels_of(image)
    shrunk = image.resize(small, Image.Resampling.BOX)
    return pixels_of(shrunk.resize(image.size, Image.Resampling.BICUBIC))


def blur(image: Image.Image, a: float, b: float) -> np.ndarray:
    """Returns the image blurred by a Gaussian with a standard deviation of `a` pixels."""
    return pixels_of(image.filter(ImageFilter.GaussianBlur(a)))


FIDELITY = Threshold("Style fidelity", 0, 1, 0.5)
PREPROCESSORS = {
    "none": Preprocessor("None", pixels_of),
    "canny": Preprocessor(
        "Canny edges",
        lambda image, a, b: canny(np.array(image), a, b),
        Threshold("Low threshold", 1, 255, 100),
        Threshold("High threshold", 1, 255, 200),
    ),
    "scribble_xdog": Preprocessor("Scribble from dark lines", scribble, Threshold("XDoG threshold", 1, 64, 32)),
    "threshold": Preprocessor("Black and white", threshold, Threshold("Binarization threshold", 0, 255, 127)),
    "invert": Preprocessor("Invert black lines on white", invert),
    "tile_resample": Preprocessor("Tile", tile, Threshold("Down-sampling rate", 1, 8, 1)),
    "blur_gaussian": Preprocessor("Blur", blur, Threshold("Sigma", 0.01, 64, 9)),
    "inpaint_only": Preprocessor("Inpaint", pixels_of, for_masks=True),
    "ip-adapter_clip_sd15": Preprocessor("IP-Adapter", pixels_of, for_ip_adapter=True),
    "reference_only": Preprocessor("Reference", pixels_of, FIDELITY, model_free=True),
    "reference_adain": Preprocessor("Reference by AdaIN", pixels_of, FIDELITY, model_free=True),
    "reference_adain+attn": Preprocessor("Reference with AdaIN", pixels_of, FIDELITY, model_free=True),
}
ALIASES = {  # other names of the same, in the webui and elsewhere
    "": "none",
    "invert (from white bg & black line)": "invert",
    "scribble": "scribble_xdog",
    "binary": "threshold",
    "tile": "tile_resample",
    "blur": "blur_gaussian",
    "inpaint": "inpaint_only",
    "ip-adapter-auto": "ip-adapter_clip_sd15",
    "ip-adapter_clip_h": "ip-adapter_clip_sd15",
    "inpaint_global_harmonious": "inpaint_only",
}


def find_preprocessor(name: str) -> str:
    """Returns a preprocessor's own name, from any of its names, in any case. Raises UserError for an unknown one."""
    text = name.strip().lower()
    labels = {one.label.lower(): key for key, one in PREPROCESSORS.items()}
    found = ALIASES.get(text) or labels.get(text, text)
    if found not in PREPROCESSORS:
        raise UserError(f"unknown preprocessor {name[:50]!r}; choose from {', '.join(PREPROCESSORS)}.")
    return found


def preprocess(image: Image.Image, name: str, a: float | None = None, b: float | None = None) -> np.ndarray:
    """Returns what a ControlNet reads, (H, W, 3), uint8. image: RGB. a, b: see `PREPROCESSORS`; None: its default.

    Raises UserError for an unknown name, and for a number out of bounds.
    """
    one = PREPROCESSORS[find_preprocessor(name)]
    pixels = one.run(image, checked(one.a, a), checked(one.b, b))
    return np.repeat(pixels[..., None], 3, axis=2) if pixels.ndim == 2 else pixels


def checked(bounds: Threshold | None, value: float | None) -> float:
    """Returns a number, or its default for None. Raises UserError where it is out of bounds."""
    if bounds is None:
        return 0.0
    if value is None:
        return bounds.default
    if not bounds.low <= value <= bounds.high:
        raise UserError(
            f"the {bounds.label.lower()} is {value:g}: use a number from {bounds.low:g} to {bounds.high:g}."
        )
    return value
