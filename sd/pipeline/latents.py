"""Images to scaled latents and back, with fallbacks for large images and for overflow in fp16."""

import sys
from collections.abc import Callable

import torch
from torch import Tensor

from sd.optimization.malloc_trim import trim_before
from sd.optimization.tiled_vae import decode_tiled, encode_tiled
from sd.utils.errors import UserError
from sd.utils.images import STRIP
from sd.vae import LATENT_SCALE, AutoencoderKL

TILED_FROM = 1024 * 1024  # pixels; the VAE works in tiles on larger images
Run = Callable[[torch.dtype], Tensor]  # runs the VAE in this precision


def encode_image(vae: AutoencoderKL, image: Tensor) -> Tensor:
    """Encodes images (B, 3, H, W) in [-1, 1] to the mean of their latents (B, 4, H/8, W/8), scaled, fp32."""
    image = image.to(vae.post_quant_conv.weight.device)
    pixels = image.shape[-1] * image.shape[-2]
    return LATENT_SCALE * with_tiling_fallback(
        vae, pixels, lambda dtype: vae.encode(image.to(dtype))[0], lambda dtype: encode_tiled(vae, image.to(dtype))[0]
    )


def decode_latent(vae: AutoencoderKL, latent: Tensor) -> Tensor:
    """Decodes scaled latents (B, 4, h, w) to images (B, 3, 8h, 8w), fp32, in [-1, 1] except for overshoot."""
    pixels = latent.shape[-1] * latent.shape[-2] * vae.downsample**2
    latent = latent / LATENT_SCALE
    # With v1-5 the sampler leaves 200 MB of freed blocks, and each level 50 MB more, that later levels cannot use.
    on_cpu = vae.post_quant_conv.weight.device.type == "cpu"
    with trim_before([level.block[0] for level in vae.decoder.up] if on_cpu else []):
        return with_tiling_fallback(
            vae, pixels, lambda dtype: vae.decode(latent.to(dtype)), lambda dtype: decode_tiled(vae, latent.to(dtype))
        )


def with_tiling_fallback(vae: AutoencoderKL, pixels: int, whole: Run, tiled: Run) -> Tensor:
    """Runs the VAE in tiles on a large image, or where the whole image does not fit the GPU's memory."""
    if pixels <= TILED_FROM:
        try:
            return with_fp32_fallback(vae, whole)
        except torch.OutOfMemoryError:
            print("the GPU has too little memory for the whole image: the VAE works in tiles.", file=sys.stderr)
    return with_fp32_fallback(vae, tiled)


def is_finite(result: Tensor) -> bool:
    """Returns whether all values are finite; strip by strip, without a copy of a large image."""
    return all(bool(strip.isfinite().all()) for strip in result.split(STRIP, dim=-2))


def with_fp32_fallback(vae: AutoencoderKL, run: Run) -> Tensor:
    """Returns the VAE's result in fp32. Where fp16 overflows, as v1's VAE can, the VAE stays in fp32."""
    dtype = vae.post_quant_conv.weight.dtype
    result = run(dtype)
    if dtype == torch.float16 and not is_finite(result):
        print("the VAE overflowed in fp16: it runs again in fp32, and from now on.", file=sys.stderr)
        vae.float()
        result = run(torch.float32)
    if not is_finite(result):
        raise UserError("the VAE produced NaN values: use a lower guidance scale, or --precision fp32.")
    return result.float()
