"""CFG++ (Chung et al. 2024, "CFG++: Manifold-constrained Classifier Free Guidance for Diffusion Models").

Guidance moves the estimate of x0, and the unconditional prediction brings the noise back (their algorithm 2). So these
samplers need both, which `UncondGuidance` and `UncondInpaint` give through `with_uncond`.
"""

from itertools import pairwise

import torch
from torch import Tensor

from sd.denoiser import Guidance, Inpaint, rescale_noise
from sd.pipeline.sampling.extra_samplers import Denoise, NoiseSource, Steps

FULL_SCALE = 12.5  # the guidance scale that corresponds to CFG++'s lambda = 1, as in the webui; 7.5 is lambda = 0.6


class UncondGuidance(Guidance):
    """Classifier-free guidance that also returns the unconditional estimate; its scale is divided by `FULL_SCALE`.

    Outside of `interval` the estimate is the conditional one, as in `Guidance`.
    """

    def with_uncond(self, x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        """Estimate x0 with guidance and without the prompt: (x0, uncond), each (B, 4, h, w)."""
        uncond, cond = self.both(torch.cat([x, x]), sigma).chunk(2)
        lowest, highest = self.interval
        if not lowest <= sigma <= highest:
            return cond, cond
        x0 = uncond + self.scale / FULL_SCALE * (cond - uncond)
        return rescale_noise(x, x0, cond, self.rescale) if self.rescale else x0, uncond

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        return self.with_uncond(x, sigma)[0]


class UncondInpaint(Inpaint):
    """Inpainting around an `UncondGuidance`: where the mask is 0, both estimates are the known latent."""

    denoise: UncondGuidance

    def with_uncond(self, x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        """Estimate x0 with guidance and without the prompt: (x0, uncond), each (B, 4, h, w)."""
        x0, uncond = self.denoise.with_uncond(x, sigma)
        return self.keep(x0), self.keep(uncond)


def euler_cfgpp(denoise: Denoise, x: Tensor, sigmas: list[float], noise: NoiseSource) -> Steps:
    """Sample with DDIM in CFG++ form (Chung et al. 2024, algorithm 2), which in sigma space is Euler's method.

    A denoiser without `with_uncond` has no guidance: its estimate is both.
    """
    for sigma, to in pairwise(sigmas):
        if hasattr(denoise, "with_uncond"):
            x0, uncond = denoise.with_uncond(x, sigma)
        else:
            x0 = uncond = denoise(x, sigma)
        x = x0 + (to / sigma) * (x - uncond)
        yield x, x0


def ddim_cfgpp(denoise: Denoise, x: Tensor, sigmas: list[float], noise: NoiseSource) -> Steps:
    """Sample as `euler_cfgpp` does; the name is for LDM's list of levels, which ends above 0."""
    yield from euler_cfgpp(denoise, x, sigmas, noise)
