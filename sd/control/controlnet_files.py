"""ControlNet files in each of their layouts.

control_model.input_hint_block.0...   as they were trained, also inside a whole checkpoint or without the prefix
controlnet_cond_embedding.conv_in...  diffusers', a file or a folder with its config.json
difference                            with that key, the encoder's weights are differences to the U-Net's
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sd.checkpoints.config import skip_init
from sd.checkpoints.diffusers_format import read_network
from sd.checkpoints.diffusers_keys import unet_names
from sd.checkpoints.families import describe_contents
from sd.checkpoints.foreign_files import read_json_file, reads_file
from sd.checkpoints.weight_files import read_weights, write_weights
from sd.control.controlnet import ControlNetModel
from sd.control.t2i_adapter import T2IAdapter
from sd.unet import UNetModel
from sd.utils.errors import UserError

PREFIX = "control_model."
DIFFERENCE = "difference"
USE_ANOTHER = "give a ControlNet for Stable Diffusion 1.x, such as control_v11p_sd15_canny"
OTHER_BASES = {1024: "Stable Diffusion 2", 2048: "Stable Diffusion XL"}  # by the width of their text
FOREIGN = re.compile(r"(label_emb|add_embedding|class_embedding)\.|controlnet_(x_embedder|blocks)\.|pos_embed\.")
MASKS = ("task_embedding", "control_type_proj", "control_add_embedding")  # parts of one ControlNet for many tasks


@dataclass
class ControlNetFile:
    """A ControlNet in a file: tensors by our names, still in the file.

    is_difference: whether the encoder's weights are differences to the U-Net's. global_pool: see `Control`.
    """

    path: Path
    tensors: dict[str, Tensor]
    is_difference: bool
    global_pool: bool


@reads_file
def read_controlnet(path: str | Path) -> ControlNetFile:
    """Reads a file or folder of any layout. Raises UserError for what holds no ControlNet of Stable Diffusion 1.x."""
    path = Path(path).expanduser()
    tensors, content, config = read_state(path)
    check_family(path, tensors, describe_contents(content))
    is_difference = DIFFERENCE in tensors
    if any(key.startswith(PREFIX) for key in tensors):
        tensors = {key.removeprefix(PREFIX): value for key, value in tensors.items() if key.startswith(PREFIX)}
    tensors.pop(DIFFERENCE, None)
    # The averaging is in no weight: diffusers' config names it, and other files are called "shuffle".
    global_pool = bool(config.get("global_pool_conditions", "shuffle" in path.stem.lower()))
    return ControlNetFile(path, tensors, is_difference, global_pool)


def read_state(path: Path) -> tuple[dict[str, Tensor], Any, dict]:
    """Returns the tensors of a file or of a network's folder, all that it holds, and the folder's config.json."""
    config: dict = {}
    if path.is_dir():
        config = read_json_file(path / "config.json")
        content: Any = read_network(path)[0]
    else:
        content = read_weights(path).content
    while isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    entries = content.items() if isinstance(content, dict) else ()
    return {str(key): value for key, value in entries if isinstance(value, Tensor)}, content, config


def check_family(path: Path, tensors: dict[str, Tensor], what: str | None) -> None:
    """Raises UserError, naming it, for what is no ControlNet, or one for another family of models."""
    bare = [key.removeprefix(PREFIX) for key in tensors]
    if not any(key.startswith(("input_hint_block.", "controlnet_")) for key in bare):
        raise UserError(f"{path} is {what or 'no ControlNet'}: {USE_ANOTHER}.")
    if union := next((key for key in bare if key.startswith(MASKS)), None):
        raise UserError(f"{path} is a ControlNet of several tasks in one ({union}), not supported: {USE_ANOTHER}.")
    widths = {tensor.shape[-1] for key, tensor in tensors.items() if key.endswith("attn2.to_k.weight")}
    for width, family in OTHER_BASES.items():
        if width in widths:
            raise UserError(f"{path} is a ControlNet for {family}: {USE_ANOTHER}.")
    if any(FOREIGN.match(key) for key in bare):
        raise UserError(f"{path} is a ControlNet for another family of models: {USE_ANOTHER}.")


@dataclass
class ControlNet:
    """A loaded ControlNet or T2I-Adapter. global_pool: see `Control`."""

    network: ControlNetModel | T2IAdapter
    global_pool: bool = False


@reads_file
def load_controlnet(path: str | Path, unet: UNetModel, config: dict) -> ControlNet:
    """Loads a ControlNet of any layout for a U-Net, on its device and in its dtype.

    config: the U-Net's, as in `sd.checkpoints.config`; its encoder is the ControlNet's.
    Raises UserError for a file that is no ControlNet, or one for another U-Net.
    """
    file = read_controlnet(path)
    arguments = {name: value for name, value in config.items() if name != "out_channels"} | {"in_channels": 4}
    hint_channels = infer_hint_channels(file)
    with torch.device("meta"), skip_init():
        network = ControlNetModel(**arguments, hint_channels=hint_channels)
    expected = network.state_dict()
    tensors = to_our_names(file.tensors, expected)
    check_fit(file.path, tensors, expected)
    if file.is_difference:
        tensors = add_unet(tensors, unet)
    weight = unet.out[2].weight
    state = {key: tensors[key].to(weight.device, weight.dtype) for key in expected}
    network.load_state_dict(state, strict=True, assign=True)
    return ControlNet(network.eval().requires_grad_(False), file.global_pool)


def infer_hint_channels(file: ControlNetFile) -> tuple[int, ...]:
    """Returns the `hint_channels` that a file's shapes show."""
    pattern = r"(?:input_hint_block|controlnet_cond_embedding\.blocks)\.(\d+)\.weight"
    found = {int(match[1]): tensor for key, tensor in file.tensors.items() if (match := re.fullmatch(pattern, key))}
    widths = [found[number].shape[0] for number in sorted(found)]
    first = file.tensors.get("controlnet_cond_embedding.conv_in.weight")
    widths = widths if first is None else [first.shape[0], *widths]
    channels = tuple(widths[::2])  # the others are of the layers between, which keep the width
    if not channels or max(channels) > 4096 or len(channels) > 8:
        raise UserError(f"{file.path} is not a whole ControlNet: {USE_ANOTHER}.")
    return channels


def controlnet_names(ours: Iterable[str]) -> dict[str, str]:
    """Maps the parameters' names of our ControlNet to diffusers' names. ours: all of them."""
    ours = list(ours)
    names = unet_names([key for key in ours if key.startswith(("time_embed", "input_blocks", "middle_block."))])
    last = max(int(key.split(".")[1]) for key in ours if key.startswith("input_hint_block."))
    for key in ours:
        first, number, *rest = key.split(".")
        if first == "input_hint_block":
            place = {0: "conv_in", last: "conv_out"}.get(int(number), f"blocks.{int(number) // 2 - 1}")
            names[key] = f"controlnet_cond_embedding.{place}.{rest[-1]}"
        elif first == "zero_convs":
            names[key] = f"controlnet_down_blocks.{number}.{rest[-1]}"
        elif first == "middle_block_out":
            names[key] = f"controlnet_mid_block.{rest[-1]}"
    return names


def to_our_names(tensors: dict[str, Tensor], ours: Iterable[str]) -> dict[str, Tensor]:
    """Returns a file's tensors by our names; a name without a counterpart is kept."""
    names = {theirs: key for key, theirs in controlnet_names(ours).items()}
    return {names.get(key, key): tensor for key, tensor in tensors.items()}


def check_fit(path: Path, tensors: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Raises UserError unless a file has exactly the parameters that fit the checkpoint's U-Net."""
    wrong = sorted(tensors.keys() ^ expected.keys())
    wrong += [key for key, place in expected.items() if key in tensors and tensors[key].shape != place.shape]
    wrong += [key for key, tensor in tensors.items() if not tensor.is_floating_point()]
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise UserError(
            f"{path} does not fit this checkpoint's U-Net ({wrong[0]}{more} differ): use a file that was trained with "
            "a U-Net of the same size."
        )


def add_unet(tensors: dict[str, Tensor], unet: UNetModel) -> dict[str, Tensor]:
    """Returns a difference file's tensors with the U-Net's weights added where the U-Net has them."""
    base = unet.state_dict()
    whole = {}
    for key, tensor in tensors.items():
        if key in base:
            weight = (
                base[key][:, : tensor.shape[1]] if tensor.dim() == 4 else base[key]
            )  # without inpainting's channels
            tensor = tensor.to(weight.device).float() + weight.float()
        whole[key] = tensor
    return whole


def save_controlnet(path: str | Path, network: ControlNetModel, metadata: dict[str, str]) -> None:
    """Writes a ControlNet as a .safetensors file under the original names."""
    tensors = {PREFIX + key: tensor.detach().cpu().contiguous() for key, tensor in network.state_dict().items()}
    write_weights(path, "safetensors", tensors, metadata)
