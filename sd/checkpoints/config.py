"""The configuration of a model: `{"unet": {...}, "vae": {...}, "clip": {...}, "image_size": 512}`.

The first three are the arguments of the networks' constructors, whose defaults are v1-5's. A fifth entry,
`"prediction"`, stands where the U-Net does not predict the noise (see `predictions`). Our files carry their
configuration as `sd_sizes` in their metadata; that of other files is inferred from the shapes of their tensors.
"""

import inspect
import json
import re
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sd.checkpoints.predictions import PREDICTIONS, with_prediction
from sd.clip import CLIPTextModel
from sd.unet import UNetModel
from sd.utils.errors import UserError
from sd.vae import AutoencoderKL

NETWORKS = {"unet": UNetModel, "vae": AutoencoderKL, "clip": CLIPTextModel}
IMAGE_SIZE = 512  # pixels: the resolution that v1-5 was trained at
UNET_HEADS, CLIP_HEAD_WIDTH = 8, 64  # v1-5's; no shape shows them
MOST_LEVELS = 8
LARGEST = {  # of each argument: far above any Stable Diffusion 1.x, and small enough to be built
    "in_channels": 64,
    "out_channels": 64,
    "model_channels": 2048,
    "channel_mult": 64,
    "num_res_blocks": 8,
    "attention_levels": MOST_LEVELS,
    "num_heads": 256,
    "context_dim": 8192,
    "channels": 2048,
    "z_channels": 64,
    "width": 8192,
    "layers": 64,
    "heads": 256,
    "vocab_size": 1 << 20,
    "max_length": 1 << 14,
    "image_size": 1 << 14,
}


def fill_defaults(config: dict | str, source: object) -> dict:
    """Returns a configuration, given as a dict or as its JSON, with every argument that it leaves out.

    source: the file, for the message. Raises UserError where it is no such dict, names an argument that a network does
    not have, or gives a number that no model of this family can have.
    """
    try:
        config = json.loads(config) if isinstance(config, str) else config
        full: dict[str, Any] = {"image_size": int(config.get("image_size", IMAGE_SIZE))}
        if (prediction := config.get("prediction", "eps")) not in PREDICTIONS:
            raise UserError(f"{source}: its sd_sizes give an unknown prediction; save the file again.")
        full = with_prediction(full, PREDICTIONS[prediction])
        for part, network in NETWORKS.items():
            defaults = {name: p.default for name, p in inspect.signature(network).parameters.items()}
            full[part] = defaults | config.get(part, {})
            if unknown := full[part].keys() - defaults.keys():
                raise UserError(f"{source}: its sd_sizes give {part} an unknown {min(unknown)}; save the file again.")
    except UserError:
        raise
    except (AttributeError, OverflowError, RecursionError, TypeError, ValueError) as error:
        raise UserError(f"{source}: its sd_sizes are malformed ({error}); save the file again.") from error
    return check_bounds(json.loads(json.dumps(full)), source)  # tuples become lists, as in a loaded file


def check_bounds(config: dict, source: object) -> dict:
    """Returns the configuration. Raises UserError where an argument is no integer, or larger than any model needs."""
    named = [("image_size", config["image_size"])] + [pair for part in NETWORKS for pair in config[part].items()]
    for name, value in named:
        values = value if isinstance(value, list) else [value]
        least = 0 if name == "attention_levels" else 1
        whole = all(type(number) is int and least <= number <= LARGEST.get(name, 1 << 14) for number in values)
        if not whole or len(values) > MOST_LEVELS:
            raise UserError(f"{source}: no Stable Diffusion 1.x has {name} {str(value)[:50]}; download the file again.")
    return config


def infer_config(unet: dict[str, Tensor], vae: dict[str, Tensor], clip: dict[str, Tensor], source: object) -> dict:
    """Returns the configuration that the shapes of three state dicts show.

    Raises UserError where they are not of these networks.
    """
    try:
        parts = {"unet": infer_unet_config(unet), "vae": infer_vae_config(vae), "clip": infer_clip_config(clip)}
    except KeyError as error:
        raise UserError(f"{source} is not a whole Stable Diffusion 1.x: it lacks {error.args[0]}.") from error
    except (IndexError, ValueError, ZeroDivisionError) as error:
        raise UserError(f"{source} is not a Stable Diffusion 1.x: its tensors have other shapes.") from error
    return check_bounds({**parts, "image_size": IMAGE_SIZE}, source)


def infer_unet_config(state: dict[str, Tensor]) -> dict:
    width, in_channels = state["input_blocks.0.0.weight"].shape[:2]
    blocks = block_numbers(r"input_blocks\.(\d+)\.0\.in_layers\.", state)
    halvings = block_numbers(r"input_blocks\.(\d+)\.0\.op\.", state)
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


def infer_vae_config(state: dict[str, Tensor], down: str = "down", block: str = "block") -> dict:
    """Returns the config of a VAE. down, block: what its keys call the encoder's levels, and the ResBlocks in them."""
    width = state["encoder.conv_in.weight"].shape[0]
    levels = range(max(block_numbers(rf"encoder\.{down}\.(\d+)\.", state)) + 1)
    return {
        "channels": width,
        "channel_mult": [state[f"encoder.{down}.{i}.{block}.0.conv2.weight"].shape[0] // width for i in levels],
        "num_res_blocks": max(block_numbers(rf"encoder\.{down}\.0\.{block}\.(\d+)\.", state)) + 1,
        "z_channels": state["post_quant_conv.weight"].shape[0],
    }


def infer_diffusers_vae_config(state: dict[str, Tensor]) -> dict:
    """Returns the result of `infer_vae_config` for a VAE under diffusers' names."""
    return infer_vae_config(state, down="down_blocks", block="resnets")


def infer_clip_config(state: dict[str, Tensor]) -> dict:
    vocab_size, width = state["embeddings.token_embedding.weight"].shape
    return {
        "width": width,
        "layers": max(block_numbers(r"encoder\.layers\.(\d+)\.", state)) + 1,
        "heads": max(1, width // CLIP_HEAD_WIDTH),
        "vocab_size": vocab_size,
        "max_length": state["embeddings.position_embedding.weight"].shape[0],
    }


def block_numbers(pattern: str, keys) -> set[int]:
    """Returns the numbers that the pattern's first group matches in the keys."""
    return {int(found[1]) for key in keys if (found := re.match(pattern, key))}


class skip_init(TorchFunctionMode):
    """Leaves parameters uninitialized within a `with` block.

    On the meta device initialization is quick, but it imports a part of torch that takes two seconds.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if getattr(function, "__module__", None) == "torch.nn.init":
            return None
        return function(*args, **(kwargs or {}))


def build_networks(config: dict, source: object) -> dict[str, nn.Module]:
    """Builds the three networks on the meta device: shapes without memory.

    Raises UserError where no network can have that configuration.
    """
    return {part: build_network(part, config[part], source) for part in NETWORKS}


def build_network(part: str, config: dict, source: object) -> nn.Module:
    """Builds one network as `build_networks` does. part: "unet", "vae" or "clip"."""
    try:
        with torch.device("meta"), skip_init():
            return NETWORKS[part](**config)
    except (IndexError, TypeError, ValueError, RuntimeError, ZeroDivisionError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(f"{source}: no network has such a configuration ({reason}).") from error
