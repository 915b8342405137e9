"""How large a model is: `{"unet": {...}, "vae": {...}, "clip": {...}, "image_size": 512}`, the networks' arguments.

v1-5 is the networks' defaults. Our files carry their sizes; those of others are read off the shapes of their tensors.
"""

import inspect
import json
import re

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sd.clip import CLIPTextModel
from sd.unet import UNetModel
from sd.utils.errors import UserError
from sd.vae import AutoencoderKL

NETWORKS = {"unet": UNetModel, "vae": AutoencoderKL, "clip": CLIPTextModel}
IMAGE_SIZE = 512  # pixels: what v1-5 was trained at
UNET_HEADS, CLIP_HEAD_WIDTH = 8, 64  # no shape tells them; these are v1-5's


def complete(sizes: dict | str, source: object) -> dict:
    """Sizes with all arguments in, from a dict or its JSON. `source`: the file, for the message.

    Raises UserError where they are no such dict, or name an argument that a network does not have.
    """
    try:
        sizes = json.loads(sizes) if isinstance(sizes, str) else sizes
        full = {"image_size": int(sizes.get("image_size", IMAGE_SIZE))}
        for part, network in NETWORKS.items():
            defaults = {name: p.default for name, p in inspect.signature(network).parameters.items()}
            full[part] = defaults | sizes.get(part, {})
            if unknown := full[part].keys() - defaults.keys():
                raise UserError(f"{source}: its sd_sizes give {part} an unknown {min(unknown)}; write the file anew.")
    except UserError:
        raise
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(f"{source}: its sd_sizes cannot be understood ({error}); write the file anew.") from error
    return json.loads(json.dumps(full))  # tuples to lists: equal to what a file gives back


def infer(unet: dict[str, Tensor], vae: dict[str, Tensor], clip: dict[str, Tensor], source: object) -> dict:
    """The sizes that the shapes of three state dicts tell. Raises UserError where they are not of these networks."""
    try:
        return {"unet": unet_sizes(unet), "vae": vae_sizes(vae), "clip": clip_sizes(clip), "image_size": IMAGE_SIZE}
    except KeyError as error:
        raise UserError(f"{source} is not a whole Stable Diffusion 1.x: it lacks {error.args[0]}.") from error
    except (IndexError, ValueError, ZeroDivisionError) as error:
        raise UserError(f"{source} is not a Stable Diffusion 1.x: its tensors have other shapes.") from error


def unet_sizes(state: dict[str, Tensor]) -> dict:
    width, in_channels = state["input_blocks.0.0.weight"].shape[:2]
    blocks = numbers(r"input_blocks\.(\d+)\.0\.in_layers\.", state)
    halvings = numbers(r"input_blocks\.(\d+)\.0\.op\.", state)
    per_level = min(halvings, default=max(blocks) + 1)  # num_res_blocks + 1: block 0 is the first convolution
    firsts = range(1, max(blocks) + 1, per_level)  # the first block of each level
    return {
        "in_channels": in_channels,
        "out_channels": state["out.2.weight"].shape[0],
        "model_channels": width,
        "channel_mult": [state[f"input_blocks.{i}.0.out_layers.3.weight"].shape[0] // width for i in firsts],
        "num_res_blocks": per_level - 1,
        "attention_levels": [k for k, i in enumerate(firsts) if f"input_blocks.{i}.1.norm.weight" in state],
        "num_heads": UNET_HEADS,
        "context_dim": state["middle_block.1.transformer_blocks.0.attn2.to_k.weight"].shape[1],
    }


def vae_sizes(state: dict[str, Tensor]) -> dict:
    width = state["encoder.conv_in.weight"].shape[0]
    levels = range(max(numbers(r"encoder\.down\.(\d+)\.", state)) + 1)
    return {
        "channels": width,
        "channel_mult": [state[f"encoder.down.{i}.block.0.conv2.weight"].shape[0] // width for i in levels],
        "num_res_blocks": max(numbers(r"encoder\.down\.0\.block\.(\d+)\.", state)) + 1,
        "z_channels": state["post_quant_conv.weight"].shape[0],
    }


def diffusers_vae_sizes(state: dict[str, Tensor]) -> dict:
    """As `vae_sizes`, of a VAE under diffusers' names."""
    width = state["encoder.conv_in.weight"].shape[0]
    levels = range(max(numbers(r"encoder\.down_blocks\.(\d+)\.", state)) + 1)
    return {
        "channels": width,
        "channel_mult": [state[f"encoder.down_blocks.{i}.resnets.0.conv2.weight"].shape[0] // width for i in levels],
        "num_res_blocks": max(numbers(r"encoder\.down_blocks\.0\.resnets\.(\d+)\.", state)) + 1,
        "z_channels": state["post_quant_conv.weight"].shape[0],
    }


def clip_sizes(state: dict[str, Tensor]) -> dict:
    vocab_size, width = state["embeddings.token_embedding.weight"].shape
    return {
        "width": width,
        "layers": max(numbers(r"encoder\.layers\.(\d+)\.", state)) + 1,
        "heads": max(1, width // CLIP_HEAD_WIDTH),
        "vocab_size": vocab_size,
        "max_length": state["embeddings.position_embedding.weight"].shape[0],
    }


def numbers(pattern: str, keys) -> set[int]:
    return {int(found[1]) for key in keys if (found := re.match(pattern, key))}


class Unfilled(TorchFunctionMode):
    """Leaves parameters undrawn. On meta drawing is quick, but it loads a part of torch that takes two seconds."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if getattr(function, "__module__", None) == "torch.nn.init":
            return None
        return function(*args, **(kwargs or {}))


def build(sizes: dict, source: object) -> dict[str, nn.Module]:
    """The three networks on the meta device: shapes without memory. Raises UserError where the sizes make none."""
    return {part: build_part(part, sizes[part], source) for part in NETWORKS}


def build_part(part: str, sizes: dict, source: object) -> nn.Module:
    """As `build`, one network. part: "unet", "vae" or "clip"."""
    try:
        with torch.device("meta"), Unfilled():
            return NETWORKS[part](**sizes)
    except (TypeError, ValueError, RuntimeError, ZeroDivisionError) as error:
        raise UserError(f"{source}: no network has such sizes ({error}).") from error
