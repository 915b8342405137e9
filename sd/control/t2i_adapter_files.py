"""T2I-Adapter files: the original layout, and diffusers' file or folder.

conv_in.weight, body.3.block1.weight                    original: all blocks in one row
body.1.in_conv.weight, body.1.body.0.block1.weight      original, the light variant
adapter.conv_in.weight, adapter.body.1.resnets.1...     diffusers: blocks by resolution
"""

import re
from pathlib import Path

import torch
from torch import Tensor

from sd.checkpoints.config import skip_init
from sd.checkpoints.foreign_files import reads_file
from sd.control.controlnet_files import ControlNet, check_fit, read_state
from sd.control.t2i_adapter import DOWNSAMPLE, T2IAdapter
from sd.unet import UNetModel
from sd.utils.errors import UserError

USE_ANOTHER = "give a T2I-Adapter for Stable Diffusion 1.x, such as t2iadapter_canny_sd15v2"
BLOCK = re.compile(r"(?:adapter\.)?body\.(\d+)\.(?:(resnets|body)\.(\d+)\.)?block1\.weight")
OF_XL = (256, 768)  # channels of the first convolution: cells of 16 x 16 pixels


@reads_file
def read_t2i_adapter(path: str | Path) -> dict[str, Tensor]:
    """Reads a file or folder of any layout. Raises UserError for what holds no T2I-Adapter for this family."""
    path = Path(path).expanduser()
    tensors = read_state(path)[0]
    if not any(BLOCK.fullmatch(key) for key in tensors):
        raise UserError(f"{path} is no T2I-Adapter: {USE_ANOTHER}.")
    first = first_convolution(tensors)
    if first is not None and first.shape[1] in OF_XL:
        raise UserError(f"{path} is a T2I-Adapter for Stable Diffusion XL: {USE_ANOTHER}.")
    return tensors


def load_t2i_adapter(path: str | Path, unet: UNetModel, config: dict) -> ControlNet:
    """Loads a T2I-Adapter of any layout for a U-Net, on its device and in its dtype.

    config: the U-Net's, as in `sd.checkpoints.config`. Raises UserError for another file, or one for another U-Net.
    """
    path = Path(path)
    tensors = read_t2i_adapter(path)
    widths = tuple(config["model_channels"] * factor for factor in config["channel_mult"])
    light, blocks = count_blocks(tensors, len(widths))
    first = first_convolution(tensors)
    channels = 3 if first is None or first.dim() != 4 else first.shape[1] // DOWNSAMPLE**2
    with torch.device("meta"), skip_init():
        network = T2IAdapter(1 if channels == 1 else 3, widths, blocks, light)
    named = {our_name(key, light, blocks): tensor for key, tensor in tensors.items()}
    check_fit(path, named, network.state_dict())
    weight = unet.out[2].weight
    state = {key: named[key].to(weight.device, weight.dtype) for key in network.state_dict()}
    network.load_state_dict(state, strict=True, assign=True)
    return ControlNet(network.eval().requires_grad_(False))


def first_convolution(tensors: dict[str, Tensor]) -> Tensor | None:
    """Returns the weight that reads the image, of any layout."""
    names = ("conv_in.weight", "body.0.in_conv.weight")
    found = (tensors.get(prefix + name) for name in names for prefix in ("", "adapter."))
    return next((tensor for tensor in found if tensor is not None), None)


def count_blocks(tensors: dict[str, Tensor], levels: int) -> tuple[bool, int]:
    """Returns whether it is the light variant, and the residual blocks for each resolution."""
    found = [match for key in tensors if (match := BLOCK.fullmatch(key))]
    light = not any(key.removeprefix("adapter.") == "conv_in.weight" for key in tensors)
    inner = [int(match[3]) for match in found if match[3]]
    blocks = max(inner) + 1 if inner else len(found) // levels
    return light, min(max(blocks, 1), 64)


def our_name(key: str, light: bool, blocks: int) -> str:
    """Returns the original name of a parameter that may have diffusers' name."""
    bare = key.removeprefix("adapter.")
    if match := re.fullmatch(r"body\.(\d+)\.resnets\.(\d+)\.(.+)", bare):
        level, number, rest = int(match[1]), int(match[2]), match[3]
        return f"body.{level}.body.{number}.{rest}" if light else f"body.{level * blocks + number}.{rest}"
    match = re.fullmatch(r"body\.(\d+)\.in_conv\.(\w+)", bare)
    if match and not light and key.startswith("adapter."):
        return f"body.{int(match[1]) * blocks}.in_conv.{match[2]}"
    return bare
