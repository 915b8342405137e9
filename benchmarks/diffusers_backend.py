"""diffusers' and transformers' own networks with our weights in them, to be measured against.

They are development packages: nothing but a comparison needs them, and nothing is imported before one is asked for.
A peer shares our tensors, so that two networks take the memory of one.
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


def have_peers() -> bool:
    return all(importlib.util.find_spec(package) for package in PACKAGES)


def have_compiler() -> bool:
    """Whether torch.compile's inductor finds a C++ compiler, as it looks for one."""
    return shutil.which(os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")) is not None


def quiet() -> None:
    """Stops both packages from drawing progress bars and giving advice."""
    for package in ("transformers", "diffusers"):
        logging = importlib.import_module(f"{package}.utils.logging")
        logging.set_verbosity_error()
        logging.disable_progress_bar()


def meta_network(part: str, sizes: dict) -> nn.Module:
    """Their network of this size, without weights."""
    quiet()
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        if part == "unet":
            return UNet2DConditionModel.from_config(unet_config(sizes))
        if part == "vae":
            return AutoencoderKL.from_config(vae_config(sizes))
        return CLIPTextModel(CLIPTextConfig.from_dict(clip_config(sizes)))


def with_weights(peer: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    """The peer with these very tensors, in channels-last order."""
    peer.load_state_dict(state, strict=True, assign=True)
    return peer.eval().to(memory_format=torch.channels_last)


def peer_unet(unet: nn.Module, sizes: dict) -> nn.Module:
    return with_weights(meta_network("unet", sizes), unet_to_diffusers(unet.state_dict()))


def peer_vae(vae: nn.Module, sizes: dict) -> nn.Module:
    return with_weights(meta_network("vae", sizes), vae_to_diffusers(vae.state_dict()))


def peer_clip(clip: nn.Module, sizes: dict) -> nn.Module:
    peer, state = meta_network("clip", sizes), clip.state_dict()
    # Made by counting and not kept in files, so there is nothing on `meta` to replace it but another count.
    device = next(iter(state.values())).device
    peer.embeddings.position_ids = torch.arange(sizes["clip"]["max_length"], device=device)[None]
    return with_weights(peer, state)


def shell(part: str, sizes: dict, dtype: torch.dtype, **methods: Callable) -> nn.Module:
    """A peer with its config and nothing else, whose methods are these."""
    peer = meta_network(part, sizes)
    for name, _ in list(peer.named_children()):
        delattr(peer, name)
    peer.nothing = nn.Parameter(torch.zeros(1, dtype=dtype))  # pipelines ask for a parameter's dtype and device
    for name, method in methods.items():
        setattr(peer, name, method)
    return peer


def peer_pipeline(clip: nn.Module, vae: nn.Module, unet: nn.Module):
    """diffusers' StableDiffusionPipeline of their own networks, with the DDIM that our "ddim" is."""
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
    """The three networks of a checkpoint, by diffusers' own `from_single_file`; `configs` as `write_configs` wrote."""
    quiet()
    from diffusers import StableDiffusionPipeline

    class ModelCheckpoint:
        """Stands for Lightning's, which v1-5's pickle names and diffusers then refuses to read."""

    scalar = np.float64(0).__reduce__()[0]
    names = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    allowed: list[Any] = [(ModelCheckpoint, LIGHTNING), *names, np.dtype, type(np.dtype(np.float64))]
    with torch.serialization.safe_globals(allowed):
        pipe = StableDiffusionPipeline.from_single_file(
            str(path), config=str(configs), torch_dtype=dtype, tokenizer=None, scheduler=None, local_files_only=True
        )
    return [pipe.text_encoder, pipe.vae, pipe.unet]
