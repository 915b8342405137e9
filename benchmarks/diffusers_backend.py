"""diffusers' and transformers' networks with our weights in them, for comparison.

Both packages are development dependencies that only comparisons need; they are imported at the first use.
The networks share our tensors, so that two networks take the memory of one.
"""

import importlib.util
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sd.checkpoints.diffusers_format import clip_config, unet_config, vae_config, write_tokenizer
from sd.checkpoints.diffusers_keys import unet_to_diffusers, vae_to_diffusers

LIGHTNING = "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"
PACKAGES = ("diffusers", "transformers", "accelerate")  # without accelerate diffusers loads far slower


def have_diffusers() -> bool:
    return all(importlib.util.find_spec(package) for package in PACKAGES)


def have_compiler() -> bool:
    """Return whether torch.compile's inductor would find a C++ compiler."""
    return shutil.which(os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")) is not None


def silence_libraries() -> None:
    """Disable the progress bars and log messages of both packages."""
    for package in ("transformers", "diffusers"):
        logging = importlib.import_module(f"{package}.utils.logging")
        logging.set_verbosity_error()
        logging.disable_progress_bar()


def network_without_weights(part: str, sizes: dict) -> nn.Module:
    """Return diffusers' network with this config, on the meta device."""
    silence_libraries()
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        if part == "unet":
            return UNet2DConditionModel.from_config(unet_config(sizes))
        if part == "vae":
            return AutoencoderKL.from_config(vae_config(sizes))
        return CLIPTextModel(CLIPTextConfig.from_dict(clip_config(sizes)))


def load_shared_weights(peer: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    """Return the network with these tensors as its parameters, without a copy, in channels-last order."""
    peer.load_state_dict(state, strict=True, assign=True)
    return peer.eval().to(memory_format=torch.channels_last)


def diffusers_unet(unet: nn.Module, sizes: dict) -> nn.Module:
    return load_shared_weights(network_without_weights("unet", sizes), unet_to_diffusers(unet.state_dict()))


def diffusers_vae(vae: nn.Module, sizes: dict) -> nn.Module:
    return load_shared_weights(network_without_weights("vae", sizes), vae_to_diffusers(vae.state_dict()))


def diffusers_clip(clip: nn.Module, sizes: dict) -> nn.Module:
    peer, state = network_without_weights("clip", sizes), clip.state_dict()
    # position_ids is a constant that files do not store, so it is computed here in place of the one on `meta`.
    device = next(iter(state.values())).device
    peer.embeddings.position_ids = torch.arange(sizes["clip"]["max_length"], device=device)[None]
    return load_shared_weights(peer, state)


def network_with_methods(part: str, sizes: dict, dtype: torch.dtype, **methods: Callable) -> nn.Module:
    """Return diffusers' network with its config but without layers, and with these methods."""
    peer = network_without_weights(part, sizes)
    for name, _ in list(peer.named_children()):
        delattr(peer, name)
    peer.nothing = nn.Parameter(torch.zeros(1, dtype=dtype))  # pipelines ask for a parameter's dtype and device
    for name, method in methods.items():
        setattr(peer, name, method)
    return peer


def diffusers_pipeline(clip: nn.Module, vae: nn.Module, unet: nn.Module):
    """Return diffusers' StableDiffusionPipeline of these networks, with the DDIM scheduler that equals our "ddim"."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline
    from transformers import CLIPTokenizer

    with TemporaryDirectory() as folder:
        write_tokenizer(Path(folder) / "tokenizer")
        tokenizer = CLIPTokenizer.from_pretrained(Path(folder) / "tokenizer")
    betas = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    pipe = StableDiffusionPipeline(
        vae=vae,
        text_encoder=clip,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(**betas, steps_offset=1, clip_sample=False, set_alpha_to_one=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def load_single_file(path: Path, configs: Path, dtype: torch.dtype) -> list[nn.Module]:
    """Load the three networks of a checkpoint by diffusers' `from_single_file`. configs: folder of `write_configs`."""
    silence_libraries()
    from diffusers import StableDiffusionPipeline

    class ModelCheckpoint:
        """Replaces Lightning's class of this name, which v1-5's pickle contains and diffusers refuses to load."""

    scalar = np.float64(0).__reduce__()[0]
    names = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    allowed: list[Any] = [(ModelCheckpoint, LIGHTNING), *names, np.dtype, type(np.dtype(np.float64))]
    with torch.serialization.safe_globals(allowed):
        pipe = StableDiffusionPipeline.from_single_file(
            str(path), config=str(configs), torch_dtype=dtype, tokenizer=None, scheduler=None, local_files_only=True
        )
    return [pipe.text_encoder, pipe.vae, pipe.unet]
