"""Every network of Stable Diffusion from scratch, in order: CLIP, the VAE, then the U-Net, which needs both."""

from pathlib import Path
from typing import Any

from torch import nn

from sd.training.loop import TrainConfig, exists, load_model
from sd.training.pretrain.dataset import EmojiDataset
from sd.training.pretrain.train_clip import new_clip, train_clip
from sd.training.pretrain.train_unet import new_unet, train_unet
from sd.training.pretrain.train_vae import init_color_latents, new_vae, train_decoder, train_vae

SIZES: dict[str, Any] = {
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
    "clip": TrainConfig(steps=2200, batch=128, lr=1e-3, warmup=50, weight_decay=0.05, ema=0.99),
    "vae": TrainConfig(steps=4000, batch=8, lr=1e-3, warmup=50, ema=0.995),
    "decoder": TrainConfig(steps=5000, batch=8, lr=5e-4, warmup=50, betas=(0.5, 0.99), ema=0.998),
    "unet": TrainConfig(steps=7500, batch=48, lr=1e-3, warmup=200, ema=0.998),
}


def new_network(part: str) -> nn.Module:
    """Return "clip", "vae" or "unet" before its first step; "decoder" is a "vae"."""
    if part == "clip":
        return new_clip(SIZES["clip"], VISION, PROJECTION_DIM)
    return new_unet(SIZES["unet"]) if part == "unet" else new_vae(SIZES["vae"])


def train_part(part: str, runs: Path, dataset: EmojiDataset, settings: TrainConfig) -> None:
    """Train one of PARTS in `runs/<part>`, or resume it.

    The U-Net needs "clip" and "vae" there, the "decoder" needs the "vae", whose decoder it improves for the same
    latents. Weights without a state beside them, as `export.unpack` writes them, are the initial weights.
    """
    run, network = runs / part, new_network(part)
    if exists(run):
        load_model(network, run).requires_grad_(True)
    elif part == "decoder":
        load_model(network, runs / "vae").requires_grad_(True)
    elif part == "vae":
        init_color_latents(network, dataset)
    if part == "clip":
        train_clip(network, run, dataset, settings)
    elif part == "vae":
        train_vae(network, run, dataset, settings)
    elif part == "decoder":
        train_decoder(network, run, dataset, settings)
    else:
        clip, vae = (load_model(new_network(other), runs / other).to(settings.device) for other in ("clip", "vae"))
        train_unet(network, run, clip.text_model, vae, dataset, settings)
