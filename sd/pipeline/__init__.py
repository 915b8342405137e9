"""Text to image: settings, the sampling loop, and StableDiffusion, which joins all parts."""

from sd.pipeline.stable_diffusion import StableDiffusion

__all__ = ["StableDiffusion"]
