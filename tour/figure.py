"""What every figure of the tour is made with: the bundled model's networks, and `Figure`, an image with its numbers.

A figure is a function (Models) -> Figure. It uses the textbook's parts, without the pipeline and its optimizations, so
that the code shown in a chapter is the code that made its picture. All randomness comes from seeds.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from sd.checkpoints.checkpoint import load_models
from sd.checkpoints.discovery import BUNDLED
from sd.clip import CLIPTextModel
from sd.denoiser import Denoiser, Guidance
from sd.pipeline.stable_diffusion import StableDiffusion
from sd.samplers import SAMPLERS
from sd.schedule import sigma_list
from sd.tokenizer import Tokenizer
from sd.unet import UNetModel
from sd.utils.images import from_tensor
from sd.vae import LATENT_SCALE, AutoencoderKL

LATENT_SHAPE = (4, 16, 16)  # of the bundled model's images, 128 x 128 pixels
GUIDANCE = 3.0  # suits the bundled model better than 7.5, as its model card measures


@dataclass
class Figure:
    """A figure: its image, the numbers that its chapter may print, and the description for those who cannot see it."""

    image: Image.Image
    numbers: Mapping[str, Any]  # numbers, texts, and lists of them, as JSON has them
    alt: str


class Step(NamedTuple):
    """One step of a sampler: the level before it, x (B, 4, 16, 16) before it, and the estimate x0 that it used."""

    sigma: float
    x: Tensor
    x0: Tensor


class Models:
    """The bundled model's networks in float32 on the CPU, loaded on first use, and short ways to use them.

    Networks are shared by all figures of a process: a figure that changes one must work on a copy, or restore it.
    """

    @cached_property
    def networks(self) -> tuple[CLIPTextModel, AutoencoderKL, UNetModel]:
        clip, vae, unet, _ = load_models(BUNDLED, torch.float32)
        for network in (clip, vae, unet):
            network.requires_grad_(False)
        return clip, vae, unet

    @property
    def clip(self) -> CLIPTextModel:
        return self.networks[0]

    @property
    def vae(self) -> AutoencoderKL:
        return self.networks[1]

    @property
    def unet(self) -> UNetModel:
        return self.networks[2]

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer()

    @cached_property
    def pipe(self) -> StableDiffusion:
        """A whole pipeline with networks of its own, for adapters and for features that only the pipeline has."""
        return StableDiffusion.from_pretrained(BUNDLED, "cpu", torch.float32)

    def context(self, prompts: str | list[str]) -> Tensor:
        """Return the text states of one prompt or several, (B, 77, 192)."""
        return self.clip(self.tokenizer(prompts))

    def noise(self, seed: int, count: int = 1) -> Tensor:
        """Return standard normal noise, (count, 4, 16, 16)."""
        return torch.randn((count, *LATENT_SHAPE), generator=torch.Generator().manual_seed(seed))

    def denoiser(
        self, prompt: str | list[str], scale: float = GUIDANCE, negative_prompt: str = "", count: int = 1
    ) -> Callable[[Tensor, float], Tensor]:
        """Return the denoiser (x, sigma) -> x0 of one prompt for `count` latents, or of several prompts, one each."""
        cond = self.context(prompt)
        if isinstance(prompt, str):
            cond = cond.expand(count, -1, -1)
        if scale == 1:
            return Denoiser(self.unet, cond)
        uncond = self.context(negative_prompt).expand(len(cond), -1, -1)
        return Guidance(self.unet, cond, uncond, scale)

    def steps(
        self,
        denoise: Callable[[Tensor, float], Tensor],
        seed: int = 0,
        steps: int = 20,
        sampler: str = "dpmpp_2m",
        schedule: str = "",
        count: int = 1,
    ) -> tuple[Tensor, list[Step]]:
        """Sample `count` latents; return the finished ones, (count, 4, 16, 16), scaled, and every step.

        A sampler that draws noise does so from the same seed + 1,000,000.
        """
        chosen = SAMPLERS[sampler]
        sigmas = sigma_list(steps, schedule or chosen.schedule, chosen.to_zero)
        generator, taken = torch.Generator().manual_seed(seed + 1_000_000), []
        x = self.noise(seed, count) * math.sqrt(1 + sigmas[0] ** 2)
        run = chosen.run(denoise, x, sigmas, lambda: torch.randn((count, *LATENT_SHAPE), generator=generator))
        for sigma, (after, x0) in zip(sigmas, run):
            taken.append(Step(sigma, x, x0))
            x = after
        return x / math.sqrt(1 + sigmas[-1] ** 2), taken

    def generate(
        self,
        prompt: str | list[str],
        seed: int = 0,
        steps: int = 20,
        scale: float = GUIDANCE,
        sampler: str = "dpmpp_2m",
        negative_prompt: str = "",
        count: int = 1,
    ) -> Tensor:
        """Return scaled latents (B, 4, 16, 16) of `count` images of a prompt, or of one image for each of several."""
        count = count if isinstance(prompt, str) else len(prompt)
        denoise = self.denoiser(prompt, scale, negative_prompt, count)
        return self.steps(denoise, seed, steps, sampler, count=count)[0]

    def decode(self, latents: Tensor) -> list[Image.Image]:
        """Return the images, 128 x 128 pixels each, of scaled latents (B, 4, 16, 16)."""
        return from_tensor(self.vae.decode(latents / LATENT_SCALE))


FigureFunction = Callable[[Models], Figure]


@contextmanager
def reproducible() -> Iterator[None]:
    """Run without gradients and in one thread: sums over several threads differ in their last bits with their count."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            yield
    finally:
        torch.set_num_threads(threads)
