"""ControlNets in the pipeline: loaded by name, given their images, and made ready for an image size."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from sd.checkpoints.discovery import Models, locate
from sd.checkpoints.families import T2I_ADAPTER
from sd.checkpoints.model_files import content_of
from sd.control.controlled_unet import AdapterControl, Control
from sd.control.controlnet_files import ControlNet, load_controlnet
from sd.control.preprocessors import PREPROCESSORS, preprocess
from sd.control.t2i_adapter import T2IAdapter
from sd.control.t2i_adapter_files import load_t2i_adapter
from sd.control.units import ControlUnit, check_image_count, parse_units
from sd.pipeline.mask import HALF, stretch_mask
from sd.pipeline.settings import GenerationSettings
from sd.unet import UNetModel
from sd.utils.errors import UserError
from sd.utils.images import apply_orientation, in_8_bits, resize_and_crop, to_rgb


class ControlNets:
    """The ControlNets that are loaded for a U-Net: those of the last call.

    unet: the U-Net. config: its configuration, as in `sd.checkpoints.config`. downsample: pixels for each position of
    the latent, in height and in width.
    """

    def __init__(self, unet: UNetModel, config: dict, downsample: int):
        self.unet, self.config, self.downsample = unet, config, downsample
        self.loaded: dict[tuple, ControlNet] = {}

    def load(self, units: Sequence[ControlUnit], models: Models) -> list[ControlNet]:
        """Returns the ControlNet of each unit, by its name or path. Others are released first."""
        weight = self.unet.out[2].weight
        keys = [(locate("ControlNet", unit.model, models), weight.device, weight.dtype) for unit in units]
        self.loaded = {key: self.loaded[key] for key in keys if key in self.loaded}
        for key in keys:
            if key not in self.loaded:
                self.loaded[key] = self.load_one(key[0])
        return [self.loaded[key] for key in keys]

    def load_one(self, path: Path) -> ControlNet:
        load = load_t2i_adapter if content_of(path).what == T2I_ADAPTER else load_controlnet
        found = load(path, self.unet, self.config)
        if found.network.hint_downsample != self.downsample:
            raise UserError(
                f"{path} is for latents of 1/{found.network.hint_downsample} of the image's size, and this "
                f"checkpoint's have 1/{self.downsample}: use a ControlNet that was trained with it."
            )
        return found


@dataclass
class ControlInput:
    """A ControlNet with its unit and its image. mask: white where to regenerate, for the inpainting ControlNet.

    is_blank: whether the preprocessor has last made a black image, as Canny does where it finds no edge.
    """

    unit: ControlUnit
    loaded: ControlNet
    image: Image.Image
    mask: Image.Image | None = None
    is_blank: bool = False

    def control_for(self, width: int, height: int) -> Control:
        """Returns it at work on an image of this size."""
        network, unit = self.loaded.network, self.unit
        weight = next(network.parameters())
        hint = hint_of(self.image, self.mask, unit, width, height)
        self.is_blank = unit.preprocessor != "none" and not hint.any()
        hint = hint.to(weight.device, weight.dtype)
        kind = AdapterControl if isinstance(network, T2IAdapter) else Control
        return kind(
            network,
            network.embed_hint(hint),
            unit.weight,
            unit.start,
            unit.end,
            unit.mode,
            self.loaded.global_pool,
        )


def control_inputs(
    nets: ControlNets,
    text: str,
    models: Models,
    control_images: Sequence[Image.Image],
    image: Image.Image | None,
    mask: Image.Image | None,
) -> list[ControlInput]:
    """Returns the units of a text with their ControlNets and images; none for an empty text.

    control_images: one for each unit, or one for all; without any, `image`, the init image, is used.
    Raises UserError where the images are not as many, and for a ControlNet that cannot be loaded.
    """
    units = parse_units(text)
    images = images_for(units, control_images, image)
    masks = [mask_of(unit, one, mask) for unit, one in zip(units, images)]
    loaded = nets.load(units, models)
    for unit, one in zip(units, loaded):
        if PREPROCESSORS[unit.preprocessor].for_masks and isinstance(one.network, T2IAdapter):
            raise UserError(
                f"{unit.model} is a T2I-Adapter, and the preprocessor {unit.preprocessor} is for a ControlNet: choose "
                "another preprocessor."
            )
    return [ControlInput(*one) for one in zip(units, loaded, images, masks)]


def images_for(
    units: Sequence[ControlUnit], control_images: Sequence[Image.Image], image: Image.Image | None
) -> list[Image.Image]:
    """Returns an image for each unit. Raises UserError where there is none, or where there are too many or too few."""
    check_image_count(list(units), len(control_images), image is not None)
    given = list(control_images) or ([] if image is None else [image])
    return given * len(units) if len(given) == 1 else given


def mask_of(unit: ControlUnit, image: Image.Image, mask: Image.Image | None) -> Image.Image | None:
    """Returns the mask for a unit's preprocessor: the transparent part of the image, or the mask of inpainting.

    Raises UserError where it needs one and there is none.
    """
    if not PREPROCESSORS[unit.preprocessor].for_masks:
        return None
    upright = in_8_bits(apply_orientation(image))
    alpha = upright.convert("RGBA").getchannel("A")
    if np.asarray(alpha).min() < 255:
        return ImageOps.invert(alpha)
    if mask is not None:
        return stretch_mask(mask, *upright.size)
    raise UserError(
        f"the preprocessor {unit.preprocessor} needs a mask: inpaint, or let the control image be transparent where to "
        "regenerate."
    )


def hint_of(image: Image.Image, mask: Image.Image | None, unit: ControlUnit, width: int, height: int) -> Tensor:
    """Returns what a ControlNet reads, (1, 3, H, W) in [0, 1], and -1 where a mask is white."""
    pixels = preprocess(fit_control_image(image, unit.resize, width, height), unit.preprocessor, unit.a, unit.b)
    hint = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
    if mask is None:
        return hint
    masked = np.array(fit_control_image(mask, unit.resize, width, height).convert("L")) >= HALF
    return hint.masked_fill(torch.from_numpy(masked)[None, None], -1.0)


def fit_control_image(image: Image.Image, resize: str, width: int, height: int) -> Image.Image:
    """Returns an image in RGB of this size. resize: of `units.RESIZES`; "fill" pads with the border's median color."""
    rgb = to_rgb(image)
    if resize == "crop":
        return resize_and_crop(rgb, width, height)
    if resize == "stretch":
        return rgb.resize((width, height), Image.Resampling.LANCZOS)
    pixels = np.array(rgb)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    color = tuple(int(value) for value in np.median(border, axis=0))
    scale = min(width / rgb.width, height / rgb.height)
    if min(rgb.size) * scale < 1:  # a strip that would have no width: one pixel remains
        sides = (max(1, round(side * scale)) for side in rgb.size)
        rgb = rgb.resize((next(sides), next(sides)), Image.Resampling.LANCZOS)
    return ImageOps.pad(rgb, (width, height), Image.Resampling.LANCZOS, color=color)


def blank_notes(controls: Sequence[ControlInput]) -> list[str]:
    """Returns a sentence for each ControlNet whose preprocessor has made a black image."""
    return [
        f"The preprocessor {one.unit.preprocessor} found nothing in the image for {one.unit.model}, which saw a black "
        "image: use other thresholds or another image."
        for one in controls
        if one.is_blank
    ]


def control_notes(settings: GenerationSettings) -> list[str]:
    """Returns notes on what does not work with ControlNets or with tiled diffusion."""
    if settings.step_cache != 1 and (settings.control or settings.tile_size):
        what = "a ControlNet" if settings.control else "tiled diffusion"
        return [f"The step cache does not work with {what}: every step is computed completely."]
    return []
