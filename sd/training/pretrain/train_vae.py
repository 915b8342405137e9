"""The VAE from scratch (Rombach et al. 2022, section 3.1): images to an eighth of their size and back."""

import copy
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sd.training.loop import TrainConfig, save_model, train
from sd.training.pretrain.dataset import EmojiDataset, random_crops
from sd.training.pretrain.discriminator import AdversarialPair
from sd.vae import LATENT_SCALE, AttnBlock, AutoencoderKL, Downsample, ResnetBlock, Upsample, sample_latent

ADVERSARIAL, FEATURE_MATCHING = 0.07, 0.7  # weights of the two losses from the discriminator
NOISE = 0.3  # the largest standard deviation of noise in the decoder's latents, after scaling


def vae_loss(vae: AutoencoderKL, images: Tensor, generator: torch.Generator, kl_weight: float) -> Tensor:
    """Return the loss of encoder and decoder, a scalar: reconstruction, and KL divergence from a standard normal.

    images: (B, 3, H, W) in [-1, 1], on any device.
    """
    images = images.to(vae.quant_conv.weight.device)
    mean, logvar = vae.encode(images)
    noise = torch.randn(mean.shape, generator=generator).to(images)
    decoded = vae.decode(sample_latent(mean, logvar, noise)).float()
    return reconstruction(decoded, images) + kl_weight * kl(mean.float(), logvar.float())


def train_vae(
    vae: AutoencoderKL, run: Path, dataset: EmojiDataset, settings: TrainConfig, kl_weight: float = 1e-4
) -> AutoencoderKL:
    """Train a KL autoencoder (Rombach et al. 2022, section 3.1) without a discriminator, see `train_decoder`."""

    def loss(vae: AutoencoderKL, indices: Tensor, generator: torch.Generator) -> Tensor:
        return vae_loss(vae, crops(dataset, indices, generator), generator, kl_weight)

    def on_save(vae: AutoencoderKL, step: int) -> None:
        vae = copy.deepcopy(vae)
        save_model(standardize(vae, encode(vae, dataset, limit=128)), run)

    return train(vae, loss, len(dataset), run, settings, on_save)


def train_decoder(vae: AutoencoderKL, run: Path, dataset: EmojiDataset, settings: TrainConfig) -> AutoencoderKL:
    """Train the decoder alone, see `decoder_loss`."""

    def loss(pair: AdversarialPair, indices: Tensor, generator: torch.Generator) -> Tensor:
        return decoder_loss(pair, crops(dataset, indices, generator), generator)

    pair = AdversarialPair(freeze_encoder(vae))
    return train(pair, loss, len(dataset), run, settings, on_save=lambda pair, _: save_model(pair.vae, run)).vae


def freeze_encoder(vae: AutoencoderKL) -> AutoencoderKL:
    """Exclude from training what makes the latents: they stay, and with them what a U-Net has learned of them."""
    for part in (vae.encoder, vae.quant_conv):
        part.requires_grad_(False)
    return vae


def decoder_loss(pair: AdversarialPair, images: Tensor, generator: torch.Generator) -> Tensor:
    """Return the loss of the decoder and of a discriminator against it, for sharp edges and the texture of each style.

    The latents get a little noise, because those of a U-Net are slightly off too; a decoder trained on exact latents
    turns the deviations into blotches. images: (B, 3, H, W) in [-1, 1], on any device.
    """
    images = images.to(pair.vae.quant_conv.weight.device)
    latent = pair.vae.encode(images)[0]
    noise = torch.randn(latent.shape, generator=generator) / LATENT_SCALE
    level = NOISE * torch.rand(len(latent), 1, 1, 1, generator=generator)
    latent = latent + (level * noise).to(latent)
    decoded = pair.vae.decode(latent).float()
    adversarial, matching, discriminator = pair.losses(decoded, images, latent)
    return reconstruction(decoded, images) + ADVERSARIAL * adversarial + FEATURE_MATCHING * matching + discriminator


def crops(dataset: EmojiDataset, indices: Tensor, generator: torch.Generator) -> Tensor:
    """Return (B, 3, S, S) in [-1, 1]: crops of half the size or, every eighth time, a quarter as many whole images."""
    size = dataset.pixels.shape[-1]
    if torch.rand((), generator=generator) < 1 / 8:
        some = indices[: max(1, len(indices) // 4)]  # the same number of pixels
        return random_crops(dataset.images(some), size, generator)
    return random_crops(dataset.images(indices), size // 2, generator)


def new_vae(sizes: dict) -> AutoencoderKL:
    """Return a random VAE that scales images down and up from the start and has only the details left to learn.

    Residual branches start at zero, downsampling averages, upsampling copies: colors pass from end to end.
    """
    vae = AutoencoderKL(**sizes)
    for module in vae.modules():
        if isinstance(module, ResnetBlock):
            nn.init.zeros_(module.conv2.weight)
        elif isinstance(module, AttnBlock):
            nn.init.zeros_(module.proj_out.weight)
        elif isinstance(module, Downsample):
            width = module.conv.weight.shape[0]
            nn.init.constant_(module.conv.bias, 0.0)
            module.conv.weight.data = torch.eye(width)[:, :, None, None].expand(-1, -1, 3, 3).contiguous() / 9
        elif isinstance(module, Upsample):
            nn.init.dirac_(module.conv.weight)
    return vae


@torch.no_grad()
def init_color_latents(vae: AutoencoderKL, dataset: EmojiDataset) -> None:
    """Fit two layers by least squares on a few images, so that each cell has its mean color before the first step.

    The encoder's last convolution makes the first three latent channels the cell's color, with three axes of equal
    variance; the decoder's last one turns them into pixels. Without this, training finds the axis from green to
    magenta, which varies little, only after thousands of steps, and until then two pairs of channels are redundant.
    """
    images = dataset.images(torch.linspace(0, len(dataset) - 1, 32).long())
    for conv in (vae.quant_conv, vae.post_quant_conv):
        nn.init.dirac_(conv.weight)
        nn.init.zeros_(conv.bias)
    # Little noise in the latents: with the usual initial logvar of 0 it dominates the signal.
    nn.init.constant_(vae.quant_conv.bias[vae.z_channels :], -6.0)
    nn.init.zeros_(vae.quant_conv.weight[vae.z_channels :])
    colors = F.avg_pool2d(images, vae.downsample).movedim(1, -1)  # (B, h, w, 3)
    centered = colors - colors.mean(dim=(0, 1, 2))
    variances, axes = torch.linalg.eigh(torch.cov(centered.reshape(-1, 3).T))
    fit_center_tap(vae.encoder.conv_out, lambda: vae.encode(images), centered @ axes / variances.sqrt())
    latent = vae.encode(images)[0]
    fit_center_tap(vae.decoder.conv_out, lambda: vae.decode(latent), images.movedim(1, -1))


def fit_center_tap(conv: nn.Conv2d, forward: Callable[[], object], target: Tensor) -> None:
    """Set the center tap of a convolution's first outputs so that, in `forward`, they approximate `target` best.

    target: (B, h, w, outputs).
    """
    seen = []
    hook = conv.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    forward()
    hook.remove()
    x = seen[0].movedim(1, -1).flatten(0, -2).double()
    x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)  # (places, channels + 1)
    ridge = 1e-4 * len(x) * torch.eye(x.shape[1])
    solution = torch.linalg.solve(x.T @ x + ridge, x.T @ target.flatten(0, -2).double()).float()
    outputs = target.shape[-1]
    nn.init.zeros_(conv.weight[:outputs])
    conv.weight[:outputs, :, 1, 1] = solution[:-1].T
    conv.bias[:outputs] = solution[-1]


def reconstruction(decoded: Tensor, images: Tensor) -> Tensor:
    """Return the squared and absolute error of the pixels, plus the absolute error of edges and the squared error of
    the color of 8 x 8 cells.

    With absolute errors alone, images stay a medium brown for hundreds of steps; the color of cells prevents it. Hue
    varies far less than brightness, so without its own weight green stays blue.
    """
    error = decoded - images
    pixels = error.abs().mean() + 4 * error.square().mean()
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    cells = F.avg_pool2d(error, 8)
    hue = cells - cells.mean(dim=1, keepdim=True)
    return pixels + edges / 2 + 4 * cells.square().mean() + 20 * hue.square().mean()


def kl(mean: Tensor, logvar: Tensor) -> Tensor:
    """Return the KL divergence from N(0, 1) (Kingma & Welling 2013, appendix B), the mean over latent elements."""
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()


@torch.no_grad()
def encode(vae: AutoencoderKL, dataset: EmojiDataset, limit: int | None = None, batch: int = 32) -> Tensor:
    """Return (N, 4, h, w): the mean latents of all images (or `limit` evenly spaced ones), unscaled, on the CPU."""
    device, count = vae.quant_conv.weight.device, len(dataset)
    parts = torch.linspace(0, count - 1, min(count, limit or count)).long().split(batch)
    return torch.cat([vae.encode(dataset.images(part).to(device))[0].cpu() for part in parts])


@torch.no_grad()
def standardize(vae: AutoencoderKL, latents: Tensor) -> AutoencoderKL:
    """Fold each channel's mean and deviation into the two 1x1 convolutions, so that LATENT_SCALE * latent has 0 and 1.

    Reconstructions stay the same. latents: (N, 4, h, w), the current latents of the data.
    """
    mean = latents.mean(dim=(0, 2, 3)).to(vae.quant_conv.weight)
    scale = latents.std(dim=(0, 2, 3)).to(mean) * LATENT_SCALE
    channels = vae.z_channels
    vae.post_quant_conv.bias += vae.post_quant_conv.weight[:, :, 0, 0] @ mean
    vae.post_quant_conv.weight *= scale[:, None, None]
    vae.quant_conv.weight[:channels] /= scale[:, None, None, None]
    vae.quant_conv.bias[:channels] = (vae.quant_conv.bias[:channels] - mean) / scale
    vae.quant_conv.bias[channels:] -= 2 * scale.log()
    return vae


@torch.no_grad()
def reconstructed(vae: AutoencoderKL, dataset: EmojiDataset, batch: int = 16) -> Tensor:
    """Return (N, 3, H, W) in [-1, 1], on the CPU: every image encoded to its mean latent and decoded."""
    device = vae.quant_conv.weight.device
    parts = torch.arange(len(dataset)).split(batch)
    decoded = [vae.decode(vae.encode(dataset.images(part).to(device))[0]).cpu() for part in parts]
    return torch.cat(decoded).clamp(-1, 1)


def psnr(decoded: Tensor, images: Tensor) -> float:
    """Return the mean PSNR over images in dB. decoded, images: (N, 3, H, W) in [-1, 1]."""
    error = (decoded - images).square().mean(dim=(1, 2, 3))
    return 10 * torch.log10(4 / error).mean().item()  # the range is 2, its square 4
