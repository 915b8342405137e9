"""Stable Diffusion 1.x by hand. Eight files are Stable Diffusion; read them in this order:

attention         softmax(q k^T / sqrt(d)) v
tokenizer         a prompt to 77 token ids
clip              77 token ids to 77 vectors
vae               an image to a latent and back
unet              a noisy latent, its time and the text to the noise in it

schedule          how much noise there is at each time
denoiser          the U-Net as a function (x, sigma) -> x0; guidance and masks around it
samplers          from noise to a latent, in steps down a list of noise levels

The packages serve them. A module imports only from its own package and from those above it here:

utils             errors, files, images, image grids, devices
(the eight files)
checkpoints       .ckpt, .safetensors and diffusers folders in and out; finding and downloading them
optimization      patches for speed and memory
adapters          LoRA and its variants, textual inversion
prompts           prompt weighting, wildcards, styles, LLM enhancement
pipeline          StableDiffusion: settings, the sampling loop, img2img and inpainting, infotext
evaluation        CLIP score, memorization, model comparison
cli               the flags of the scripts, and running them
training          fine-tuning, and training the bundled model from nothing
web               the job queue, the HTTP APIs and the page
"""

from typing import Any

__all__ = ["StableDiffusion"]


def __getattr__(name: str) -> Any:
    """Imports the pipeline at its first use, so that `import sd.unet` loads the U-Net and nothing else."""
    if name == "StableDiffusion":
        from sd.pipeline.stable_diffusion import StableDiffusion

        return StableDiffusion
    raise AttributeError(f"module 'sd' has no attribute {name!r}")
