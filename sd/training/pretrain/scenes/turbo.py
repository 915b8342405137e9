"""A turbo LoRA: with it the U-Net jumps to the clean latent, so that 4 steps without guidance generate an image.

Luo et al. 2023, "LCM-LoRA: A Universal Stable-Diffusion Acceleration Module": the latent consistency distillation of
Luo et al. 2023, "Latent Consistency Models", with a LoRA as the only trained weights.
"""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from sd.adapters.injection import deltas_of, inject, patchable_layers
from sd.adapters.lora_export import save_lora
from sd.adapters.variants import LoRA
from sd.clip import CLIPTextModel
from sd.samplers import consistency_scales
from sd.schedule import SD1_SCHEDULE, TIMES
from sd.training.logger import read_log
from sd.training.loop import TrainConfig, train
from sd.training.pretrain.export import machine, revision
from sd.training.pretrain.scene_latents import WORDINGS, SceneLatents
from sd.training.pretrain.scene_unet import SHEET, TextStates, sample_images
from sd.training.pretrain.scenes.sheets import captioned_sheet
from sd.unet import UNetModel
from sd.utils.images import from_tensor
from sd.vae import AutoencoderKL

NAME = "emoji-turbo"
RANK = 16  # of each linear layer and convolution: 2.9 MB in fp16
STRIDE = 20  # timesteps between the two ends of a step of the teacher: the 50 times of the sampler schedule "lcm"
GUIDANCE = 4.0  # of the teacher; it becomes part of the weights
ABOUT = {
    "modelspec.title": "Turbo LoRA of the bundled model",
    "modelspec.usage_hint": "4 steps of the sampler lcm, at guidance scale 1",
    "sd_distilled_guidance": str(GUIDANCE),
}
HUBER = 0.001  # squared errors below it, absolute ones above


def train_turbo(
    unet: UNetModel, teacher: UNetModel, text: CLIPTextModel, vae: AutoencoderKL, run: Path, data: SceneLatents,
    settings: TrainConfig,
) -> Path:  # fmt: skip
    """Train a LoRA of `unet`, a frozen copy of `teacher`, and return its file, `run/emoji-turbo.safetensors`."""
    states = TextStates(text)
    module = add_lora(unet, settings.seed)
    file = run / f"{NAME}.safetensors"

    def loss(module: nn.Module, indices: Tensor, generator: torch.Generator) -> Tensor:
        x0 = data.latents[indices].float().to(settings.device)
        noise = torch.randn(x0.shape, generator=generator).to(settings.device)
        t = TIMES - 1 - STRIDE * torch.randint(TIMES // STRIDE, (len(x0),), generator=generator)
        wordings = torch.randint(WORDINGS, (len(x0),), generator=generator).tolist()
        captions = [data.captions[index][k] for index, k in zip(indices.tolist(), wordings)]
        context, empty = states(captions), states([""] * len(captions))
        return distillation_loss(unet, teacher, x0, noise, t, context, empty)

    def on_save(module: nn.Module, step: int) -> None:
        save_lora(file, unet, text, NAME, metadata=describe(run, settings, step), dtype=torch.float16)
        side, seeds = data.latents.shape[-1], list(range(len(SHEET)))
        images = sample_images(text, vae, unet, list(SHEET), seeds, side, steps=4, guidance=1.0, sampler="lcm")
        captioned_sheet(from_tensor(images), list(SHEET)).save(run / f"sheet-{step:06d}.png")

    train(module, loss, len(data), run, settings, on_save)
    return file


def describe(run: Path, settings: TrainConfig, step: int) -> dict[str, str]:
    """Return the metadata of a LoRA after `step` steps: its use, the settings, the machine and the code revision."""
    made = {"settings": asdict(settings), "machine": machine(), "revision": revision()}
    for line in read_log(run / "log.jsonl")[-1:]:
        made |= line  # steps, seconds and the loss
    return ABOUT | {"ss_steps": str(step), "training": json.dumps(made)}


def add_lora(unet: UNetModel, seed: int) -> nn.ModuleList:
    """Add a new LoRA, which changes nothing yet, to each linear layer and convolution; return its trainable layers."""
    generator = torch.Generator().manual_seed(seed)
    layers = {k: layer for k, layer in patchable_layers(unet).items() if isinstance(layer, nn.Linear | nn.Conv2d)}
    inject(unet, NAME, {path: LoRA.initialize(layer, RANK, RANK, generator) for path, layer in layers.items()})
    return nn.ModuleList(deltas_of(unet, NAME).values())


def distillation_loss(
    unet: UNetModel, teacher: UNetModel, x0: Tensor, noise: Tensor, t: Tensor, context: Tensor, empty: Tensor
) -> Tensor:
    """Return how far the U-Net's jumps from the two ends of one step of the teacher are apart (Luo et al. 2023,
    algorithm 1), by the pseudo-Huber metric.

    x0, noise: (B, 4, h, w). t: (B,) long, of the step's beginning. context, empty: (B, 77, D), of the captions and of
    the empty one.
    """
    before = (t - STRIDE).clamp(min=0)
    sigma, sigma_before = sigmas_at(t).to(x0.device), sigmas_at(before).to(x0.device)
    x = x0 + sigma * noise
    with torch.no_grad():
        doubled = torch.cat([x, x]) / torch.cat([sigma, sigma]).square().add(1).sqrt()
        uncond, cond = teacher(doubled, torch.cat([t, t]).to(x.device), torch.cat([empty, context])).chunk(2)
        eps = uncond + GUIDANCE * (cond - uncond)
        # One step of DDIM along the guided trajectory, in sigma space.
        target = jump(unet, x + (sigma_before - sigma) * eps, before, context)
    difference = jump(unet, x, t, context) - target
    return ((difference.square() + HUBER**2).sqrt() - HUBER).mean()


def jump(unet: Callable, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
    """Return the consistency function: the clean latent (B, 4, h, w) at the end of the trajectory through x, or x
    itself at t = 0 (Luo et al. 2023, eq. 9).

    x: (B, 4, h, w) in sigma space. t: (B,) long.
    """
    sigma = sigmas_at(t).to(x.device)
    scaled = x / sigma.square().add(1).sqrt()
    skip, out = (scale.view(-1, 1, 1, 1).to(x.device) for scale in consistency_scales(t))
    return skip * scaled + out * (x - sigma * unet(scaled, t.to(x.device), context))


def sigmas_at(t: Tensor) -> Tensor:
    """Return the noise levels at times t (B,), as (B, 1, 1, 1) in fp32."""
    return SD1_SCHEDULE.sigmas[t].float().view(-1, 1, 1, 1)
