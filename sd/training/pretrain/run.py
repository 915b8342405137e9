"""Every part of Stable Diffusion from nothing, in its order: CLIP, the autoencoder, then the U-Net that needs both."""

from pathlib import Path

from torch import nn

from sd.training.loop import Settings, is_kept, kept
from sd.training.pretrain.dataset import EmojiPictures
from sd.training.pretrain.train_clip import new_clip, train_clip
from sd.training.pretrain.train_unet import new_unet, train_unet
from sd.training.pretrain.train_vae import new_vae, start_with_colours, train_decoder, train_vae

SIZES = {
    "unet": {
        "model_channels": 64,
        "channel_mult": [1, 2, 3],
        "num_res_blocks": 1,
        "attention_levels": [1, 2],
        "context_dim": 192,
    },
    "vae": {"channels": 64, "channel_mult": [1, 1, 2, 2], "num_res_blocks": 1},
    "clip": {"width": 192, "layers": 4, "heads": 3},
    "image_size": 128,
}
VISION = {"image_size": 128, "patch_size": 16, "width": 192, "layers": 4, "heads": 3}
PROJECTION_DIM = 192
PARTS = {
    "clip": Settings(steps=2200, batch=128, lr=1e-3, warmup=50, weight_decay=0.05, ema=0.99),
    "vae": Settings(steps=4000, batch=8, lr=1e-3, warmup=50, ema=0.995),
    "decoder": Settings(steps=5000, batch=8, lr=5e-4, warmup=50, betas=(0.5, 0.99), ema=0.998),
    "unet": Settings(steps=7500, batch=48, lr=1e-3, warmup=200, ema=0.998),
}


def new(part: str) -> nn.Module:
    """ "clip", "vae" or "unet" before its first step; "decoder" is a "vae"."""
    if part == "clip":
        return new_clip(SIZES["clip"], VISION, PROJECTION_DIM)
    return new_unet(SIZES["unet"]) if part == "unet" else new_vae(SIZES["vae"])


def train_part(part: str, runs: Path, pictures: EmojiPictures, settings: Settings) -> None:
    """Train one of PARTS in `runs/<part>`, or go on with it.

    The U-Net needs "clip" and "vae" there, "decoder" the "vae", of which it makes a better one for the same latents.
    Weights without a checkpoint beside them, as `bundle.unpack` writes them, are what a run begins from.
    """
    run, network = runs / part, new(part)
    if is_kept(run):
        kept(network, run).requires_grad_(True)
    elif part == "decoder":
        kept(network, runs / "vae").requires_grad_(True)
    elif part == "vae":
        start_with_colours(network, pictures)
    if part == "clip":
        train_clip(network, run, pictures, settings)
    elif part == "vae":
        train_vae(network, run, pictures, settings)
    elif part == "decoder":
        train_decoder(network, run, pictures, settings)
    else:
        clip, vae = (kept(new(other), runs / other).to(settings.device) for other in ("clip", "vae"))
        train_unet(network, run, clip.text_model, vae, pictures, settings)
