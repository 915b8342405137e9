"""Pictures to scaled latents and back, whatever their size and the VAE's precision."""

import sys
from collections.abc import Callable

import torch
from torch import Tensor

from sd.errors import UserError
from sd.memory import give_back_freed
from sd.tiled_vae import decode_tiled, encode_tiled
from sd.vae import LATENT_SCALE, AutoencoderKL

TILED_FROM = 1024 * 1024  # pixels; above, the VAE works in tiles


def encode_image(vae: AutoencoderKL, image: Tensor) -> Tensor:
    """(B, 3, H, W) in [-1, 1] to the mean of its latent, (B, 4, H/8, W/8), scaled, fp32."""
    encode = encode_tiled if image.shape[-1] * image.shape[-2] > TILED_FROM else AutoencoderKL.encode
    image = image.to(vae.post_quant_conv.weight.device)
    return in_enough_precision(vae, lambda dtype: encode(vae, image.to(dtype))[0]) * LATENT_SCALE


def decode_latent(vae: AutoencoderKL, latent: Tensor) -> Tensor:
    """Scaled latents (B, 4, h, w) to pictures (B, 3, 8h, 8w), in [-1, 1] but for overshoot, fp32."""
    pixels = latent.shape[-1] * latent.shape[-2] * vae.downsample**2
    decode = decode_tiled if pixels > TILED_FROM else AutoencoderKL.decode
    give_back_freed()  # what the steps left between the weights, 200 MB for v1-5, of which a picture can use little
    return in_enough_precision(vae, lambda dtype: decode(vae, (latent / LATENT_SCALE).to(dtype)))


def in_enough_precision(vae: AutoencoderKL, run: Callable[[torch.dtype], Tensor]) -> Tensor:
    """What the VAE gives, in fp32. Where fp16 overflows in it, as v1's can, it is made fp32 and stays so."""
    dtype = vae.post_quant_conv.weight.dtype
    result = run(dtype)
    if dtype == torch.float16 and not result.isfinite().all():
        print("the VAE overflowed in fp16: running it again in fp32, and from now on.", file=sys.stderr)
        vae.float()
        result = run(torch.float32)
    if not result.isfinite().all():
        raise UserError("the picture came out as not-a-number: try a lower guidance scale, or --precision fp32.")
    return result.float()
