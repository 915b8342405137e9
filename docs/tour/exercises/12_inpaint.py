"""Exercise 12: a feature is a wrapper around the denoiser."""

from collections.abc import Callable

from torch import Tensor


class Inpaint:
    """Where the mask is 0, the estimate of the clean latent is the latent of the given image.

    denoise: callable (x, sigma) -> x0. init_latent: (B, 4, h, w). mask: (B, 1, h, w), 1 where to generate, 0 where to
    keep, between them at soft edges. The project's own: `Inpaint` in sd/denoiser.py.
    """

    def __init__(self, denoise: Callable[[Tensor, float], Tensor], init_latent: Tensor, mask: Tensor):
        self.denoise, self.init_latent, self.mask = denoise, init_latent, mask

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        """Return the estimate of the clean latent, (B, 4, h, w): the denoiser's, with the kept part of the image."""
        raise NotImplementedError("write this method")

    def keep(self, latent: Tensor) -> Tensor:
        """Return latent where the mask is 1, init_latent where it is 0, and a mixture between.

        `torch.lerp(a, b, weight)` returns a + weight * (b - a), and exactly a or b at weight 0 or 1.
        """
        raise NotImplementedError("write this method")
