"""The VAE for images too large for memory, in overlapping tiles that are blended.

A tile's group norms and attention see that tile only, so the result is close to that of the whole image, not equal.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from sd.vae import AutoencoderKL

TILE, OVERLAP = 64, 16  # in latent places: 512 and 128 pixels of v1-5


def encode_tiled(vae: AutoencoderKL, image: Tensor) -> tuple[Tensor, Tensor]:
    """Encodes tile by tile, otherwise like `vae.encode`. image: (B, 3, H, W)."""
    moments = apply_in_tiles(lambda tile: torch.cat(vae.encode(tile), dim=1), image, vae.downsample, 1)
    mean, log_variance = moments.chunk(2, dim=1)
    return mean, log_variance


def decode_tiled(vae: AutoencoderKL, latent: Tensor) -> Tensor:
    """Decodes tile by tile, otherwise like `vae.decode`. latent: (B, 4, h, w), unscaled."""
    return apply_in_tiles(vae.decode, latent, 1, vae.downsample)


def apply_in_tiles(network: Callable[[Tensor], Tensor], x: Tensor, unit_in: int, unit_out: int) -> Tensor:
    """Applies `network` to overlapping tiles of x (B, C, H, W) and blends the results along linear ramps.

    unit_in, unit_out: pixels that a latent place takes, each way, in what goes in and in what comes out.
    """
    rows, columns = (side // unit_in for side in x.shape[-2:])
    blended, weight = None, torch.zeros(rows * unit_out, columns * unit_out)
    for top in tile_starts(rows):
        for left in tile_starts(columns):
            tile = network(crop_tile(x, top, left, unit_in)).float()
            if blended is None:
                blended = torch.zeros(*tile.shape[:2], *weight.shape, device=x.device)
            ramp = torch.outer(*(edge_ramp(side, OVERLAP * unit_out) for side in tile.shape[-2:]))
            crop_tile(blended, top, left, unit_out).add_(tile * ramp.to(x.device))
            crop_tile(weight, top, left, unit_out).add_(ramp)
    return blended.div_(weight.to(x.device)).to(x.dtype)


def tile_starts(length: int) -> list[int]:
    """Returns the first positions of the tiles of a side: evenly spaced, the last one ending with the side."""
    if length <= TILE:
        return [0]
    steps = math.ceil((length - TILE) / (TILE - OVERLAP))
    return [i * (length - TILE) // steps for i in range(steps + 1)]


def crop_tile(x: Tensor, top: int, left: int, unit: int) -> Tensor:
    return x[..., top * unit : (top + TILE) * unit, left * unit : (left + TILE) * unit]


def edge_ramp(length: int, overlap: int) -> Tensor:
    """Returns (length,) weights: it rises from almost 0 to 1 over `overlap` places, and falls again at the end."""
    place = torch.arange(length) + 0.5
    return torch.minimum(place, length - place).clamp(max=overlap) / overlap
