"""Where the second pass at a higher resolution starts: the first pass's latent or image, enlarged."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from sd.checkpoints.discovery import Models
from sd.pipeline.latents import encode_image
from sd.pipeline.settings import HIRES_UPSCALERS, GenerationSettings
from sd.upscalers.upscale import Upscaler, find_upscaler, upscale
from sd.utils.images import from_tensor, to_tensor
from sd.vae import AutoencoderKL

LATENT = "latent"


def hires_upscaler(settings: GenerationSettings, models: Models, by_path: bool = True) -> Upscaler | None:
    """Returns what enlarges the image for the second pass; None where there is none, or it interpolates the latent.

    models: what a name may mean. by_path: whether it may be the path of a file. Raises UserError for an unknown name.
    """
    if settings.hires_scale == 1 or settings.hires_upscaler == LATENT:
        return None
    return find_upscaler(settings.hires_upscaler, models, [HIRES_UPSCALERS[LATENT]], by_path)


def upscale_latent(
    vae: AutoencoderKL,
    decode: Callable[[Tensor], Tensor],
    latent: Tensor,
    settings: GenerationSettings,
    models: Models,
) -> Tensor:
    """Returns a latent of the second pass's size: interpolated, or decoded, enlarged and encoded.

    latent: scaled, (B, 4, h, w). decode: takes it to images in [-1, 1]. The image is enlarged as `hires_upscaler` says.
    """
    width, height = settings.hires_size
    upscaler = hires_upscaler(settings, models)
    if upscaler is None:
        size = (height // vae.downsample, width // vae.downsample)
        return F.interpolate(latent, size=size, mode="bilinear")
    images = [upscale(one, upscaler, width, height, latent.device) for one in from_tensor(decode(latent))]
    return torch.cat([encode_image(vae, to_tensor(one)) for one in images])
