"""Where the second pass at a higher resolution starts: the first pass's latent or image, enlarged."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from sd.checkpoints.discovery import Models, locate
from sd.pipeline.latents import encode_image
from sd.pipeline.settings import GenerationSettings
from sd.upscalers.upscaler_files import resize_to, upscale_image
from sd.utils.images import from_tensor, to_tensor
from sd.vae import AutoencoderKL


def upscale_latent(
    vae: AutoencoderKL,
    decode: Callable[[Tensor], Tensor],
    latent: Tensor,
    settings: GenerationSettings,
    models: Models | None = None,
) -> Tensor:
    """Returns a latent of the second pass's size: interpolated, or decoded, enlarged and encoded.

    latent: scaled, (B, 4, h, w). decode: takes it to images in [-1, 1]. models: what a name may mean, see `locate`.
    The image is enlarged by Lanczos, or by an ESRGAN model and then resized. Raises UserError for an unknown one.
    """
    width, height = settings.hires_size
    if settings.hires_upscaler == "latent":
        size = (height // vae.downsample, width // vae.downsample)
        return F.interpolate(latent, size=size, mode="bilinear")
    images = from_tensor(decode(latent))
    if settings.hires_upscaler != "lanczos":
        path = locate("upscaler", settings.hires_upscaler, models)
        images = [from_tensor(upscale_image(path, to_tensor(one), latent.device))[0] for one in images]
    resized = [resize_to(one, width, height) for one in images]
    return torch.cat([encode_image(vae, to_tensor(one)) for one in resized])
