"""The VAE's decoder trained on scenes: colored backgrounds and small objects, which the shipped one was not trained on.

The encoder stays as it is, because its latents are what the U-Net has learned. A new encoder would gain 1 dB on scenes.
"""

from pathlib import Path

import torch
from torch import Tensor

from sd.training.loop import TrainConfig, save_model, train
from sd.training.pretrain.dataset import random_crops
from sd.training.pretrain.discriminator import AdversarialPair
from sd.training.pretrain.scenes.stream import EXAMPLES, SceneStream, fixed_sample
from sd.training.pretrain.train_vae import decoder_loss, freeze_encoder, psnr
from sd.vae import AutoencoderKL

MEASURED = 48  # scenes, for the PSNR


def train_scene_decoder(vae: AutoencoderKL, run: Path, stream: SceneStream, settings: TrainConfig) -> AutoencoderKL:
    """Train like `sd.training.pretrain.train_vae.train_decoder`, on scenes rendered on demand.

    `run/psnr.tsv` has the PSNR in dB after each checkpoint.
    """
    sample = stream.images(fixed_sample(MEASURED))[0]
    latents = encode_images(vae, sample)

    def loss(pair: AdversarialPair, indices: Tensor, generator: torch.Generator) -> Tensor:
        return decoder_loss(pair, scene_crops(stream, indices, generator), generator)

    def on_save(pair: AdversarialPair, step: int) -> None:
        save_model(pair.vae, run)
        quality = psnr(decode_latents(pair.vae, latents), sample)
        print(f"step {step}: PSNR {quality:.2f} dB on {MEASURED} scenes", flush=True)
        with open(run / "psnr.tsv", "a", encoding="utf-8") as file:
            file.write(f"{step}\t{quality:.3f}\n")

    return train(AdversarialPair(freeze_encoder(vae)), loss, EXAMPLES, run, settings, on_save).vae


def scene_crops(stream: SceneStream, indices: Tensor, generator: torch.Generator) -> Tensor:
    """Return (B, 3, S, S) in [-1, 1]: crops of half the size or, every eighth time, a quarter as many whole scenes."""
    if torch.rand((), generator=generator) < 1 / 8:
        return stream.images(indices[: max(1, len(indices) // 4)])[0]
    images = stream.images(indices)[0]
    return random_crops(images, images.shape[-1] // 2, generator)


@torch.no_grad()
def encode_images(vae: AutoencoderKL, images: Tensor, batch: int = 8) -> Tensor:
    """Return the unscaled mean latents (N, 4, h, w) of images (N, 3, H, W) in [-1, 1], on the CPU."""
    device = vae.quant_conv.weight.device
    return torch.cat([vae.encode(part.to(device))[0].cpu() for part in images.split(batch)])


@torch.no_grad()
def decode_latents(vae: AutoencoderKL, latents: Tensor, batch: int = 8) -> Tensor:
    """Return the images (N, 3, H, W) in [-1, 1] of unscaled latents (N, 4, h, w), on the CPU."""
    device = vae.quant_conv.weight.device
    return torch.cat([vae.decode(part.to(device)).cpu() for part in latents.split(batch)]).clamp(-1, 1)
