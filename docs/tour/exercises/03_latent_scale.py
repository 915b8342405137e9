"""Exercise 3: where 0.18215 comes from."""

from torch import Tensor


def latent_scale(latents: Tensor) -> float:
    """Return the factor that gives these latents a standard deviation of 1.

    latents: (N, 4, h, w), as the VAE's encoder returns them, of N pictures. The deviation is taken over all numbers at
    once, of all four channels (Rombach et al. 2022, appendix G). Over many photographs the VAE of Stable Diffusion 1
    gives 0.18215; the test uses some images and the VAE of the bundled model.

    The project's own: `latent_scale` in tour/measures.py.
    """
    raise NotImplementedError("write this function")
