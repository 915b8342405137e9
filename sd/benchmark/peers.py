"""diffusers' and transformers' own networks with our weights in them, to be measured against.

They are development packages: nothing but a comparison needs them, and nothing is imported before one is asked for.
A peer shares our tensors, so that two networks take the memory of one.
"""

import importlib.util
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor, nn

from sd.diffusers_folder import (
    clip_config,
    unet_config,
    vae_config,
    write_tokenizer,
)
from sd.names import unet_to_diffusers, vae_to_diffusers

LIGHTNING = "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"
PACKAGES = ("diffusers", "transformers", "accelerate")  # without accelerate diffusers loads far slower


def have_peers() -> bool:
    return all(importlib.util.find_spec(package) for package in PACKAGES)


def quiet() -> None:
    """Stops both packages from drawing progress bars and giving advice."""
    for package in ("transformers", "diffusers"):
        logging = importlib.import_module(f"{package}.utils.logging")
        logging.set_verbosity_error()
        logging.disable_progress_bar()


def with_weights(peer: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    """The peer with these very tensors, in channels-last order."""
    peer.load_state_dict(state, strict=True, assign=True)
    return peer.eval().to(memory_format=torch.channels_last)


def peer_unet(unet: nn.Module, sizes: dict) -> nn.Module:
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        peer = UNet2DConditionModel.from_config(unet_config(sizes))
    return with_weights(peer, unet_to_diffusers(unet.state_dict()))


def peer_vae(vae: nn.Module, sizes: dict) -> nn.Module:
    from diffusers import AutoencoderKL

    with torch.device("meta"):
        peer = AutoencoderKL.from_config(vae_config(sizes))
    return with_weights(peer, vae_to_diffusers(vae.state_dict()))


def peer_clip(clip: nn.Module, sizes: dict) -> nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        peer = CLIPTextModel(CLIPTextConfig.from_dict(clip_config(sizes)))
    # Made by counting and not kept in files, so there is nothing on `meta` to replace it but another count.
    peer.embeddings.position_ids = torch.arange(sizes["clip"]["max_length"])[None]
    return with_weights(peer, clip.state_dict())


def peer_pipeline(clip: nn.Module, vae: nn.Module, unet: nn.Module, sizes: dict):
    """diffusers' StableDiffusionPipeline, with the DDIM that our "ddim" is."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline
    from transformers import CLIPTokenizer

    with TemporaryDirectory() as folder:
        write_tokenizer(Path(folder) / "tokenizer")
        tokenizer = CLIPTokenizer.from_pretrained(Path(folder) / "tokenizer")
    betas = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    pipe = StableDiffusionPipeline(
        vae=peer_vae(vae, sizes),
        text_encoder=peer_clip(clip, sizes),
        tokenizer=tokenizer,
        unet=peer_unet(unet, sizes),
        scheduler=DDIMScheduler(**betas, steps_offset=1, clip_sample=False, set_alpha_to_one=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def load_single_file(path: Path, configs: Path, dtype: torch.dtype) -> list[nn.Module]:
    """The three networks of a checkpoint, by diffusers' own `from_single_file`; `configs` as `write_configs` wrote."""
    from diffusers import StableDiffusionPipeline

    class ModelCheckpoint:
        """Stands for Lightning's, which v1-5's pickle names and diffusers then refuses to read."""

    scalar = np.float64(0).__reduce__()[0]
    names = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    allowed = [(ModelCheckpoint, LIGHTNING), *names, np.dtype, type(np.dtype(np.float64))]
    with torch.serialization.safe_globals(allowed):
        pipe = StableDiffusionPipeline.from_single_file(
            str(path), config=str(configs), torch_dtype=dtype, tokenizer=None, scheduler=None, local_files_only=True
        )
    return [pipe.text_encoder, pipe.vae, pipe.unet]
