"""Every part of Stable Diffusion from nothing, in its order: a contrastive CLIP, a KL autoencoder, a latent diffusion.

Each part needs only what stands before it; `sizes` are those of the bundled model, and v1-5's own would do as well.
"""

import copy
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import LongTensor, Tensor, nn

from sd.clip import CLIP, CLIPTextModel, CLIPVisionModel, clip_pixels
from sd.denoiser import Guidance
from sd.errors import UserError
from sd.image import from_tensor, grid
from sd.samplers import ddim
from sd.schedule import TIMES, add_noise, alphas_cumprod, sigma_list
from sd.tokenizer import Tokenizer
from sd.training.data import EmojiPictures, random_crops
from sd.training.loop import Settings, train
from sd.unet import UNetModel
from sd.vae import LATENT_SCALE, AutoencoderKL, sample_latent

SIZES = {
    "unet": {
        "model_channels": 64,
        "channel_mult": [1, 3, 4],
        "num_res_blocks": 1,
        "attention_levels": [1, 2],
        "context_dim": 192,
    },
    "vae": {"channels": 32, "channel_mult": [1, 2, 2, 4], "num_res_blocks": 1},
    "clip": {"width": 192, "layers": 4, "heads": 3},
    "image_size": 128,
}
VISION = {"image_size": 128, "patch_size": 16, "width": 192, "layers": 4, "heads": 3}
PROJECTION_DIM = 192
EMPTY_CAPTIONS = 0.1  # the share of captions left out, so that the U-Net learns the unconditional picture too
STYLED_CAPTIONS = 0.8  # the share of captions that say the style
MIN_SNR_GAMMA = 5.0
PARTS = {
    "clip": Settings(steps=500, batch=128, lr=1e-3, warmup=50, weight_decay=0.05, ema=0.99),
    "vae": Settings(steps=2000, batch=16, lr=1.5e-3, warmup=50, ema=0.995),
    "unet": Settings(steps=5000, batch=64, lr=1e-3, warmup=200, ema=0.999),
}
SHEET = (
    "a red apple, fluent 3d emoji",
    "a cat face, noto emoji",
    "a dog, fluent flat emoji",
    "a rocket, fxemoji",
    "a tree, fluent 3d emoji",
    "a house, fluent flat emoji",
    "a car, noto emoji",
    "a pizza, fxemoji",
    "a red apple",
    "the sun",
    "a red heart",
    "a fish",
    "a snowman",
    "a puppy",
    "a banana",
    "a ghost",
)


def write(part: nn.Module, run: Path) -> None:
    """A network as it is used, in `run/model.safetensors`."""
    save_file({key: tensor.cpu().contiguous() for key, tensor in part.state_dict().items()}, run / "model.safetensors")


def read(part: nn.Module, run: Path) -> nn.Module:
    """What `write` wrote, ready for use.

    Raises:
        UserError: that part has not been trained.
    """
    if not (run / "model.safetensors").exists():
        raise UserError(f"{run} holds no trained part yet: run `python scripts/train_scratch.py {run.name}` first.")
    part.load_state_dict(load_file(run / "model.safetensors"))
    return part.requires_grad_(False).eval()


# --- CLIP -------------------------------------------------------------------------------------------------------------


def new_clip() -> CLIP:
    """Both towers at random, with small embeddings: a word that is never met then stays near nothing."""
    clip = CLIP(CLIPTextModel(**SIZES["clip"]), CLIPVisionModel(**VISION), PROJECTION_DIM)
    nn.init.normal_(clip.text_model.embeddings.token_embedding.weight, std=0.02)
    nn.init.normal_(clip.text_model.embeddings.position_embedding.weight, std=0.01)
    nn.init.normal_(clip.vision_model.embeddings.position_embedding.weight, std=0.02)
    nn.init.normal_(clip.vision_model.embeddings.class_embedding, std=0.02)
    return clip


def train_clip(run: Path, pictures: EmojiPictures, settings: Settings) -> CLIP:
    """Two towers that learn to find each other's partner in the batch (Radford et al. 2021, figure 3)."""
    tokenizer = Tokenizer()
    captions = [tokenizer(emoji.captions) for emoji in pictures.emoji]
    styled = [len(emoji.captions) - len(emoji.plain_captions) for emoji in pictures.emoji]
    names = numbered(emoji.name for emoji in pictures.emoji)
    styles = numbered(emoji.style for emoji in pictures.emoji)

    def loss(clip: CLIP, indices: Tensor, generator: torch.Generator) -> Tensor:
        chosen = [torch.randint(len(captions[i]), (1,), generator=generator).item() for i in indices.tolist()]
        tokens = torch.stack([captions[i][k] for i, k in zip(indices.tolist(), chosen)])
        tokens = tokens[:, : (tokens == tokens.max()).int().argmax(dim=1).max() + 1]  # causal: nothing after matters
        images = shaken(pictures.images(indices), generator)
        device = clip.logit_scale.device
        text = clip.encode_text(tokens.to(device))
        image = clip.encode_image(clip_pixels(images.to(device), VISION["image_size"]))
        logits = clip.logit_scale.clamp(max=4.6052).exp() * text.float() @ image.float().T  # at most 100, section 2.5
        # A caption without a style fits this name in every style; all pictures that fit share the target.
        fits = names[indices][:, None] == names[indices]
        has_style = torch.tensor([k < styled[i] for i, k in zip(indices.tolist(), chosen)])
        fits &= (styles[indices][:, None] == styles[indices]) | ~has_style[:, None]
        fits = fits.float().to(device)
        return (soft_cross_entropy(logits, fits) + soft_cross_entropy(logits.T, fits.T)) / 2

    return train(new_clip(), loss, len(pictures), run, settings, on_save=lambda clip, step: write(clip, run))


def numbered(words) -> Tensor:
    """Each word as the number of its first appearance."""
    numbers: dict[str, int] = {}
    return torch.tensor([numbers.setdefault(word, len(numbers)) for word in words])


def soft_cross_entropy(logits: Tensor, fits: Tensor) -> Tensor:
    """Cross-entropy against all that fits, in equal shares. logits, fits: (B, B)."""
    return -(F.log_softmax(logits, dim=1) * fits / fits.sum(dim=1, keepdim=True)).sum(dim=1).mean()


def shaken(images: Tensor, generator: torch.Generator) -> Tensor:
    """(B, 3, H, W): each picture moved, zoomed by 0.8 to 1.2 and, in half the cases, mirrored, on white."""
    size = len(images)
    zoom = 0.8 + 0.4 * torch.rand(size, generator=generator)
    shift = 0.2 * torch.rand(size, 2, generator=generator) - 0.1
    mirror = torch.where(torch.rand(size, generator=generator) < 0.5, -1.0, 1.0)
    zero = torch.zeros(size)
    rows = torch.stack(
        [torch.stack([mirror / zoom, zero, shift[:, 0]], 1), torch.stack([zero, 1 / zoom, shift[:, 1]], 1)], 1
    )
    grid = F.affine_grid(rows, list(images.shape), align_corners=False)
    return F.grid_sample(images - 1, grid, align_corners=False) + 1  # white is 0 for grid_sample's padding


# --- VAE --------------------------------------------------------------------------------------------------------------


def train_vae(run: Path, pictures: EmojiPictures, settings: Settings, kl_weight: float = 1e-4) -> AutoencoderKL:
    """A KL autoencoder (Rombach et al. 2022, section 3.1), on crops of half the size; each eighth batch is whole.

    No discriminator and no perceptual loss: flat drawings do without.
    """

    def loss(vae: AutoencoderKL, indices: Tensor, generator: torch.Generator) -> Tensor:
        whole = torch.rand((), generator=generator) < 1 / 8
        size = pictures.pixels.shape[-1]
        images = pictures.images(indices[: max(1, len(indices) // 4)] if whole else indices)  # as many pixels
        images = random_crops(images, size if whole else size // 2, generator)
        device = vae.quant_conv.weight.device
        mean, logvar = vae.encode(images.to(device))
        noise = torch.randn(mean.shape, generator=generator).to(device)
        drawn = vae.decode(sample_latent(mean, logvar, noise)).float()
        return reconstruction(drawn, images.to(device)) + kl_weight * kl(mean.float(), logvar.float())

    def on_save(vae: AutoencoderKL, step: int) -> None:
        vae = copy.deepcopy(vae)
        write(standardise(vae, encode(vae, pictures, limit=128)), run)

    return train(AutoencoderKL(**SIZES["vae"]), loss, len(pictures), run, settings, on_save)


def reconstruction(drawn: Tensor, images: Tensor) -> Tensor:
    """Squared and absolute error of the pixels, absolute error of the edges, squared error of each 8 x 8 cell's colour.

    On absolute errors alone everything stays one middling brown for hundreds of steps; the cells' colours cure that.
    """
    error = drawn - images
    pixels = error.abs().mean() + 4 * error.square().mean()
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    return pixels + edges / 2 + 4 * F.avg_pool2d(error, 8).square().mean()


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
def psnr(vae: AutoencoderKL, pictures: EmojiPictures, batch: int = 16) -> float:
    """Mean over pictures of the reconstruction's PSNR in dB, through the mean latent."""
    device, values = vae.quant_conv.weight.device, []
    for part in torch.arange(len(pictures)).split(batch):
        images = pictures.images(part).to(device)
        error = (vae.decode(vae.encode(images)[0]).clamp(-1, 1) - images).square().mean(dim=(1, 2, 3))
        values.append(10 * torch.log10(4 / error))  # the range is 2, its square 4
    return torch.cat(values).mean().item()


# --- U-Net ------------------------------------------------------------------------------------------------------------


def train_unet(
    run: Path, text: CLIPTextModel, vae: AutoencoderKL, pictures: EmojiPictures, settings: Settings
) -> UNetModel:
    """Latent diffusion: predict the noise in a noisy latent, given a caption (Rombach et al. 2022, eq. 3).

    The frozen text tower and autoencoder are run once over everything, before the first step.
    """
    latents = encode(vae, pictures) * LATENT_SCALE  # (N, 4, h, w)
    captions = CaptionStates(text, pictures)
    snr = alphas_cumprod() / (1 - alphas_cumprod())
    weights = snr.clamp(max=MIN_SNR_GAMMA) / snr  # Hang et al. 2023, "Min-SNR Weighting", for a model that predicts eps

    def loss(unet: UNetModel, indices: Tensor, generator: torch.Generator) -> Tensor:
        x0 = latents[indices]
        noise = torch.randn(x0.shape, generator=generator)
        # One time from each of B equal parts of 0..999: as random as before, with less variance in the sum.
        t = ((torch.arange(len(x0)) + torch.rand(len(x0), generator=generator)) * TIMES / len(x0)).long()
        context = captions.draw(indices, generator)
        device = unet.out[2].weight.device
        eps = unet(add_noise(x0, noise, t).to(device), t.to(device), context.to(device)).float()
        return (weights[t].to(device) * (eps - noise.to(device)).square().mean(dim=(1, 2, 3))).mean()

    def on_save(unet: UNetModel, step: int) -> None:
        write(unet, run)
        sheet(text, vae, unet).save(run / f"sheet-{step:06d}.png")

    return train(UNetModel(**SIZES["unet"]), loss, len(pictures), run, settings, on_save)


class CaptionStates:
    """The text tower's states of every wording of every picture, made once: each wording is kept a single time."""

    def __init__(self, text: CLIPTextModel, pictures: EmojiPictures):
        wordings: dict[str, int] = {"": 0}
        self.styled, self.plain = (
            [[wordings.setdefault(caption, len(wordings)) for caption in captions] for captions in group]
            for group in (
                [emoji.captions[: -len(emoji.plain_captions)] for emoji in pictures.emoji],
                [emoji.plain_captions for emoji in pictures.emoji],
            )
        )
        tokens = Tokenizer()(list(wordings))
        self.states = torch.cat([text_states(text, part) for part in tokens.split(256)])  # (wordings, 77, D)

    def draw(self, indices: Tensor, generator: torch.Generator) -> Tensor:
        """(B, 77, D): a wording for each picture: none, one without the style, or one with it."""
        rows = []
        for i in indices.tolist():
            empty, styled = torch.rand(2, generator=generator).tolist()
            wordings = self.styled[i] if styled < STYLED_CAPTIONS else self.plain[i]
            k = torch.randint(len(wordings), (), generator=generator).item()
            rows.append(0 if empty < EMPTY_CAPTIONS else wordings[k])
        return self.states[rows].float()


@torch.no_grad()
def text_states(text: CLIPTextModel, tokens: LongTensor) -> Tensor:
    """(B, 77) -> (B, 77, D) on the CPU, bfloat16 to halve the room they take."""
    return text(tokens.to(text.final_layer_norm.weight.device)).bfloat16().cpu()


@torch.no_grad()
def sheet(
    text: CLIPTextModel, vae: AutoencoderKL, unet: UNetModel, prompts=SHEET, steps: int = 20, guidance: float = 4.0
) -> Image.Image:
    """A contact sheet of `prompts`, always from the same noise."""
    tokenizer, device = Tokenizer(), unet.out[2].weight.device
    cond = text(tokenizer(list(prompts)).to(device))
    uncond = text(tokenizer("").to(device)).expand_as(cond)
    sigmas = sigma_list(steps)
    side = SIZES["image_size"] // vae.downsample
    noise = torch.randn(len(prompts), 4, side, side, generator=torch.Generator().manual_seed(0)).to(device)
    x = noise * (1 + sigmas[0] ** 2) ** 0.5
    *_, (latent, _) = ddim(Guidance(unet, cond, uncond, guidance), x, sigmas, None)
    return grid(from_tensor(vae.decode(latent / LATENT_SCALE)))


NEW = {
    "clip": new_clip,
    "vae": lambda: AutoencoderKL(**SIZES["vae"]),
    "unet": lambda: UNetModel(**SIZES["unet"]),
}


def train_part(part: str, runs: Path, pictures: EmojiPictures, settings: Settings) -> None:
    """Train "clip", "vae" or "unet" in `runs/<part>`, or go on with it; the U-Net needs the two others there."""
    run = runs / part
    if part == "clip":
        train_clip(run, pictures, settings)
    elif part == "vae":
        train_vae(run, pictures, settings)
    else:
        clip, vae = (read(NEW[other](), runs / other).to(settings.device) for other in ("clip", "vae"))
        train_unet(run, clip.text_model, vae, pictures, settings)
