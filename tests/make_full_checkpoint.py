"""A .ckpt laid out as v1-5-pruned-emaonly.ckpt is, with random weights: 4.27 GB at full size.

    python tests/make_full_checkpoint.py full.ckpt

The pickle mentions what the published file's mentions: Lightning's ModelCheckpoint as a key of `callbacks`, a numpy
scalar, an int32 counter, the noise schedule's buffers and int64 `position_ids`.
"""

import sys
import types
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sd.clip import CLIPTextModel
from sd.unet import UNetModel
from sd.vae import AutoencoderKL

SMALL = {
    "unet": {
        "model_channels": 32,
        "channel_mult": [1, 2],
        "num_res_blocks": 1,
        "attention_levels": [1],
        "context_dim": 64,
    },
    "vae": {"channels": 32, "channel_mult": [1, 2], "num_res_blocks": 1},
    "clip": {"width": 64, "layers": 2, "heads": 1, "vocab_size": 500},
}
PREFIXES = {
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "clip": "cond_stage_model.transformer.text_model.",
}
SCHEDULE = [
    "betas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
]


def random_weights(sizes: dict, dtype=torch.float32, seed: int = 0) -> dict[str, torch.Tensor]:
    """The model's tensors under the checkpoint's names: matrices that keep a signal's size, norms near 1."""
    with torch.device("meta"):
        networks = {
            "unet": UNetModel(**sizes.get("unet", {})),
            "vae": AutoencoderKL(**sizes.get("vae", {})),
            "clip": CLIPTextModel(**sizes.get("clip", {})),
        }
    generator, state = torch.Generator().manual_seed(seed), {}
    for part, network in networks.items():
        for key, place in network.state_dict().items():
            weight = torch.randn(place.shape, generator=generator)
            if place.dim() > 1:
                weight *= place[0].numel() ** -0.5
            else:
                weight = 0.1 * weight + ("norm" in key or key.endswith(("layers.0.weight", "out.0.weight")))
            state[PREFIXES[part] + key] = weight.to(dtype)
    return state


def lightning_checkpoint(state: dict[str, torch.Tensor]) -> dict:
    """`state` as Lightning 1.4 would have saved it."""
    callback = types.ModuleType("pytorch_lightning.callbacks.model_checkpoint")
    callback.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": callback.__name__})
    for name in ("pytorch_lightning", "pytorch_lightning.callbacks"):
        sys.modules.setdefault(name, types.ModuleType(name))
    sys.modules[callback.__name__] = callback  # pickle looks a class up before it writes its name
    extras = {name: torch.linspace(0.1, 0.9, 1000) for name in SCHEDULE}
    extras |= {
        "model_ema.decay": torch.tensor(0.9999),
        "model_ema.num_updates": torch.tensor(470000, dtype=torch.int32),
    }
    ids = {PREFIXES["clip"] + "embeddings.position_ids": torch.arange(77)[None]}
    return {
        "epoch": 6,
        "global_step": 470000,
        "pytorch-lightning_version": "1.4.2",
        "state_dict": OrderedDict(extras | state | ids),
        "callbacks": {callback.ModelCheckpoint: {"best_model_score": np.float64(0.5), "best_model_path": ""}},
    }


if __name__ == "__main__":
    torch.save(lightning_checkpoint(random_weights({})), sys.argv[1])
