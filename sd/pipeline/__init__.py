"""The pipeline: settings, the sampling loop, img2img and inpainting inputs, infotext, and StableDiffusion itself."""

from sd.pipeline.stable_diffusion import StableDiffusion

__all__ = ["StableDiffusion"]
