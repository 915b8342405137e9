"""Pictures to scaled latents and back, whatever their size and the VAE's precision."""

import sys
from collections.abc import Callable

import torch
from torch import Tensor

from sd.optimization.malloc_trim import given_back_before
from sd.optimization.tiled_vae import decode_tiled, encode_tiled
from sd.utils.errors import UserError
from sd.vae import LATENT_SCALE, AutoencoderKL

TILED_FROM = 1024 * 1024  # pixels; above, the VAE works in tiles
Run = Callable[[torch.dtype], Tensor]  # the VAE, in this precision


def encode_image(vae: AutoencoderKL, image: Tensor) -> Tensor:
    """(B, 3, H, W) in [-1, 1] to the mean of its latent, (B, 4, H/8, W/8), scaled, fp32."""
    image = image.to(vae.post_quant_conv.weight.device)
    pixels = image.shape[-1] * image.shape[-2]
    return LATENT_SCALE * with_tiling_fallback(
        vae, pixels, lambda dtype: vae.encode(image.to(dtype))[0], lambda dtype: encode_tiled(vae, image.to(dtype))[0]
    )


def decode_latent(vae: AutoencoderKL, latent: Tensor) -> Tensor:
    """Scaled latents (B, 4, h, w) to pictures (B, 3, 8h, 8w), in [-1, 1] but for overshoot, fp32."""
    pixels = latent.shape[-1] * latent.shape[-2] * vae.downsample**2
    latent = latent / LATENT_SCALE
    # The steps leave 200 MB between v1-5's weights, each level 50 more; the next level, being larger, can use little.
    on_cpu = vae.post_quant_conv.weight.device.type == "cpu"
    with given_back_before([level.block[0] for level in vae.decoder.up] if on_cpu else []):
        return with_tiling_fallback(
            vae, pixels, lambda dtype: vae.decode(latent.to(dtype)), lambda dtype: decode_tiled(vae, latent.to(dtype))
        )


def with_tiling_fallback(vae: AutoencoderKL, pixels: int, whole: Run, tiled: Run) -> Tensor:
    """In tiles where the picture is large, or where a GPU has not the memory for all of it at once."""
    if pixels <= TILED_FROM:
        try:
            return with_fp32_fallback(vae, whole)
        except torch.OutOfMemoryError:
            print("the GPU has too little memory for the whole picture: the VAE works in tiles.", file=sys.stderr)
    return with_fp32_fallback(vae, tiled)


def with_fp32_fallback(vae: AutoencoderKL, run: Run) -> Tensor:
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
