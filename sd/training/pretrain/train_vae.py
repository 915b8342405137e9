"""The autoencoder from nothing (Rombach et al. 2022, section 3.1): pictures to an eighth of their size and back."""

import copy
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sd.training.loop import Settings, keep, train
from sd.training.pretrain.dataset import EmojiPictures, random_crops
from sd.training.pretrain.discriminator import Rivals
from sd.vae import LATENT_SCALE, AttnBlock, AutoencoderKL, Downsample, ResnetBlock, Upsample, sample_latent

REAL, MATCHED = 0.07, 0.7  # weights of the two losses against the decoder's opponent
NOISE = 0.3  # at most, in the decoder's latents, where they are scaled to a spread of 1


def train_vae(
    vae: AutoencoderKL, run: Path, pictures: EmojiPictures, settings: Settings, kl_weight: float = 1e-4
) -> AutoencoderKL:
    """A KL autoencoder (Rombach et al. 2022, section 3.1), by plain errors; an opponent comes with `train_decoder`."""

    def loss(vae: AutoencoderKL, indices: Tensor, generator: torch.Generator) -> Tensor:
        images = crops(pictures, indices, generator).to(vae.quant_conv.weight.device)
        mean, logvar = vae.encode(images)
        noise = torch.randn(mean.shape, generator=generator).to(images)
        drawn = vae.decode(sample_latent(mean, logvar, noise)).float()
        return reconstruction(drawn, images) + kl_weight * kl(mean.float(), logvar.float())

    def on_save(vae: AutoencoderKL, step: int) -> None:
        vae = copy.deepcopy(vae)
        keep(standardise(vae, encode(vae, pictures, limit=128)), run)

    return train(vae, loss, len(pictures), run, settings, on_save)


def train_decoder(vae: AutoencoderKL, run: Path, pictures: EmojiPictures, settings: Settings) -> AutoencoderKL:
    """The decoder once more, alone and against an opponent, for sharp edges and each style's own texture.

    Latents stay what they are, and so what a U-Net has learnt of them stays right. They come with a little noise: a
    U-Net's are a little off too, and a decoder that knew exact ones alone would make blots of that.
    """
    for part in (vae.encoder, vae.quant_conv):
        part.requires_grad_(False)

    def loss(rivals: Rivals, indices: Tensor, generator: torch.Generator) -> Tensor:
        images = crops(pictures, indices, generator).to(vae.quant_conv.weight.device)
        latent = rivals.vae.encode(images)[0]
        noise = torch.randn(latent.shape, generator=generator) / LATENT_SCALE
        level = NOISE * torch.rand(len(latent), 1, 1, 1, generator=generator)
        latent = latent + (level * noise).to(latent)
        drawn = rivals.vae.decode(latent).float()
        real, matched, opponent = rivals.losses(drawn, images, latent)
        return reconstruction(drawn, images) + REAL * real + MATCHED * matched + opponent

    rivals = train(Rivals(vae), loss, len(pictures), run, settings, on_save=lambda rivals, _: keep(rivals.vae, run))
    return rivals.vae


def crops(pictures: EmojiPictures, indices: Tensor, generator: torch.Generator) -> Tensor:
    """(B, 3, S, S) in [-1, 1]: each picture cut to half its size or, every eighth time, a quarter of them whole."""
    size = pictures.pixels.shape[-1]
    if torch.rand((), generator=generator) < 1 / 8:
        return random_crops(pictures.images(indices[: max(1, len(indices) // 4)]), size, generator)  # as many pixels
    return random_crops(pictures.images(indices), size // 2, generator)


def new_vae(sizes: dict) -> AutoencoderKL:
    """At random, but so that it shrinks and grows pictures at once and has only the details left to learn.

    Residual branches begin at zero, downsampling averages, upsampling copies: colours pass from end to end.
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
def start_with_colours(vae: AutoencoderKL, pictures: EmojiPictures) -> None:
    """Two least-squares fits on a few pictures, after which each cell has its mean colour before the first step.

    The encoder's last convolution makes the first three latents the cell's colour, its three axes of equal spread; the
    decoder's last one makes pixels of them. Without this the axis from green to magenta, which varies little, is found
    only after thousands of steps, and two pairs of latents say the same until then.
    """
    images = pictures.images(torch.linspace(0, len(pictures) - 1, 32).long())
    for conv in (vae.quant_conv, vae.post_quant_conv):
        nn.init.dirac_(conv.weight)
        nn.init.zeros_(conv.bias)
    # Little noise in the latents: at the usual start, logvar 0, it drowns what they first say.
    nn.init.constant_(vae.quant_conv.bias[vae.z_channels :], -6.0)
    nn.init.zeros_(vae.quant_conv.weight[vae.z_channels :])
    colours = F.avg_pool2d(images, vae.downsample).movedim(1, -1)  # (B, h, w, 3)
    centred = colours - colours.mean(dim=(0, 1, 2))
    variances, axes = torch.linalg.eigh(torch.cov(centred.reshape(-1, 3).T))
    fit_middle(vae.encoder.conv_out, lambda: vae.encode(images), centred @ axes / variances.sqrt())
    latent = vae.encode(images)[0]
    fit_middle(vae.decoder.conv_out, lambda: vae.decode(latent), images.movedim(1, -1))


def fit_middle(conv: nn.Conv2d, forward: Callable[[], object], wanted: Tensor) -> None:
    """Set the middle tap of a convolution's first outputs so that, in `forward`, they come nearest to `wanted`.

    wanted: (B, h, w, outputs).
    """
    seen = []
    hook = conv.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    forward()
    hook.remove()
    x = seen[0].movedim(1, -1).flatten(0, -2).double()
    x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)  # (places, channels + 1)
    ridge = 1e-4 * len(x) * torch.eye(x.shape[1])
    solution = torch.linalg.solve(x.T @ x + ridge, x.T @ wanted.flatten(0, -2).double()).float()
    outputs = wanted.shape[-1]
    nn.init.zeros_(conv.weight[:outputs])
    conv.weight[:outputs, :, 1, 1] = solution[:-1].T
    conv.bias[:outputs] = solution[-1]


def reconstruction(drawn: Tensor, images: Tensor) -> Tensor:
    """Squared and absolute error of the pixels, absolute error of the edges, squared error of each 8 x 8 cell's colour.

    On absolute errors alone everything stays one middling brown for hundreds of steps; the cells' colours cure it. Hue
    varies far less than brightness, so without a weight of its own green stays blue.
    """
    error = drawn - images
    pixels = error.abs().mean() + 4 * error.square().mean()
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    cells = F.avg_pool2d(error, 8)
    hue = cells - cells.mean(dim=1, keepdim=True)
    return pixels + edges / 2 + 4 * cells.square().mean() + 20 * hue.square().mean()


def kl(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL divergence from N(0, 1) (Kingma & Welling 2013, appendix B), the mean over the latent's elements."""
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()


@torch.no_grad()
def encode(vae: AutoencoderKL, pictures: EmojiPictures, limit: int | None = None, batch: int = 32) -> Tensor:
    """(N, 4, h, w): the mean latent of every picture (or of `limit` of them, evenly picked), unscaled, on the CPU."""
    device, count = vae.quant_conv.weight.device, len(pictures)
    parts = torch.linspace(0, count - 1, min(count, limit or count)).long().split(batch)
    return torch.cat([vae.encode(pictures.images(part).to(device))[0].cpu() for part in parts])


@torch.no_grad()
def standardise(vae: AutoencoderKL, latents: Tensor) -> AutoencoderKL:
    """Fold each channel's mean and spread into the two 1x1 convolutions, so that LATENT_SCALE * latent has 0 and 1.

    The pictures stay the same. latents: (N, 4, h, w), what `vae` makes of its data now.
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
def reconstructed(vae: AutoencoderKL, pictures: EmojiPictures, batch: int = 16) -> Tensor:
    """(N, 3, H, W) in [-1, 1], on the CPU: every picture through the mean latent and back."""
    device = vae.quant_conv.weight.device
    parts = torch.arange(len(pictures)).split(batch)
    drawn = [vae.decode(vae.encode(pictures.images(part).to(device))[0]).cpu() for part in parts]
    return torch.cat(drawn).clamp(-1, 1)


def psnr(drawn: Tensor, images: Tensor) -> float:
    """Mean over pictures of the PSNR in dB. drawn, images: (N, 3, H, W) in [-1, 1]."""
    error = (drawn - images).square().mean(dim=(1, 2, 3))
    return 10 * torch.log10(4 / error).mean().item()  # the range is 2, its square 4
