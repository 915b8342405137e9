"""A decoder that costs nothing: an affine map from 3 x 3 positions of the latent to a block of pixels.

It is fitted to one latent and its image, so that it knows that image's colors and little else. Its previews are
blurred, and take a thousandth of the VAE's time, in a browser too.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from sd.utils.images import from_tensor, to_tensor

DAMPING = 10.0  # of the weights, in positions: fewer of them would fit the noise of one image
REACH = 3  # positions each way that a block of pixels depends on


@dataclass(frozen=True)
class LinearDecoder:
    """weights: (37, 3 * p * p), the last row the offset, of blocks of p x p pixels. spread: see `tame`.

    error: the root mean square of its difference to the image that it was fitted to, in [-1, 1].
    """

    weights: Tensor
    block: int
    spread: float
    error: float

    def decode(self, latent: Tensor) -> list[Image.Image]:
        """Return previews, p * w by p * h pixels, of scaled latents (B, 4, h, w)."""
        return from_tensor(self.run(latent.float()))

    def run(self, latent: Tensor) -> Tensor:
        """Return images (B, 3, p * h, p * w), in [-1, 1] except for overshoot."""
        height, width = latent.shape[-2:]
        blocks = (neighborhoods(self.tame(latent)) @ self.weights).mT  # (B, 3 * p * p, h * w)
        return F.fold(blocks, (height * self.block, width * self.block), self.block, stride=self.block)

    def tame(self, latent: Tensor) -> Tensor:
        """Scale latents of a larger standard deviation than the fitted one's down to it, as the VAE's norms do."""
        spread = latent.std(dim=(1, 2, 3), keepdim=True)
        return latent * (self.spread / spread).clamp(max=1)


def fit_decoder(latent: Tensor, image: Image.Image) -> LinearDecoder:
    """Fit a decoder by ridge regression. latent: (1, 4, h, w), scaled, that was decoded to `image`."""
    return fit_pixels(latent.float().cpu(), to_tensor(image))


def fit_pixels(latents: Tensor, images: Tensor) -> LinearDecoder:
    """Fit a decoder by ridge regression to scaled latents (B, 4, h, w) and what they were decoded to, (B, 3, H, W)."""
    height, width = latents.shape[-2:]
    block = max(1, min(4, 128 // max(height, width)))
    pixels = F.adaptive_avg_pool2d(images, (height * block, width * block))
    target = F.unfold(pixels, block, stride=block).mT.flatten(0, 1).double()  # (B * h * w, 3 * p * p)
    given = neighborhoods(latents).flatten(0, 1).double()  # (B * h * w, 37)
    damping = torch.full((given.shape[1],), DAMPING, dtype=torch.float64)
    damping[-1] = 1e-6  # the offset is free
    weights = torch.linalg.solve(given.T @ given + damping.diag(), given.T @ target)
    error = (given @ weights - target).pow(2).mean().sqrt().item()
    return LinearDecoder(weights.float(), block, latents.std().item(), error)


def neighborhoods(latent: Tensor) -> Tensor:
    """Return (B, h * w, 37): the 3 x 3 positions around each, channel by channel, and a 1. Edges repeat outward."""
    around = F.unfold(F.pad(latent, (REACH // 2,) * 4, mode="replicate"), REACH).mT  # (B, h * w, 36)
    return torch.cat([around, torch.ones_like(around[..., :1])], dim=-1)
