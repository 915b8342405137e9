"""Maps our module names to those of diffusers, with a few string rules over the model's own paths.

Our names are the checkpoint's. diffusers renamed the modules of the U-Net and the VAE and kept CLIP's, below
`text_model.`. Nothing here is specific to v1-5: the number of blocks in a level is inferred from the paths.
"""

import re
from collections.abc import Iterable

from torch import Tensor

UNET_KEY_MAP = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
UNET_RESIZE_KEY_MAP = {"op": "downsamplers.0.conv", "conv": "upsamplers.0.conv"}
UNET_RESNET_KEY_MAP = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
VAE_RULES = [
    (r"\bdown\.(\d+)\.block\.", r"down_blocks.\1.resnets."),
    (r"\bdown\.(\d+)\.downsample\.", r"down_blocks.\1.downsamplers.0."),
    (r"\bup\.(\d+)\.block\.", r"up_blocks.\1.resnets."),
    (r"\bup\.(\d+)\.upsample\.", r"up_blocks.\1.upsamplers.0."),
    (r"\bmid\.block_1\.", "mid_block.resnets.0."),
    (r"\bmid\.block_2\.", "mid_block.resnets.1."),
    (r"\bmid\.attn_1\.", "mid_block.attentions.0."),
    (r"\bnin_shortcut\b", "conv_shortcut"),
    (r"\bnorm_out\b", "conv_norm_out"),
]
VAE_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
LEGACY_VAE_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def unet_names(paths: Iterable[str]) -> dict[str, str]:
    """Maps the paths of our U-Net to diffusers' paths. paths: all its parameters or all its modules, by our names.

    A container that diffusers does not have (`input_blocks.1`, or "" itself) is left out.
    """
    paths = list(paths)
    numbers = [int(found[1]) for path in paths if (found := re.match(r"input_blocks\.(\d+)\b", path))]
    halvings = [int(found[1]) for path in paths if (found := re.match(r"input_blocks\.(\d+)\.0\.op\b", path))]
    per_level = min(halvings, default=max(numbers) + 1)  # num_res_blocks + 1: block 0 is the first convolution
    names = {path: unet_name(path, per_level) for path in paths}
    return {ours: theirs for ours, theirs in names.items() if theirs}


def unet_name(path: str, per_level: int) -> str | None:
    if name := replace_prefix(path, UNET_KEY_MAP):
        return name
    if found := re.match(r"middle_block\.(\d)\.(.+)", path):
        block, index, is_resnet, rest = "mid_block", int(found[1]) // 2, found[1] != "1", found[2]
    elif found := re.match(r"(input|output)_blocks\.(\d+)\.(\d)\.(.+)", path):
        down = found[1] == "input"
        level, index = divmod(int(found[2]) - down, per_level)
        block, is_resnet, rest = f"{'down' if down else 'up'}_blocks.{level}", found[3] == "0", found[4]
    else:
        return None
    if name := replace_prefix(rest, UNET_RESIZE_KEY_MAP):
        return f"{block}.{name}"
    if not is_resnet:
        return f"{block}.attentions.{index}.{rest}"
    name = replace_prefix(rest, UNET_RESNET_KEY_MAP)
    return name and f"{block}.resnets.{index}.{name}"


def replace_prefix(path: str, table: dict[str, str]) -> str | None:
    """Returns the path with its prefix replaced as in the table, or None where the table has no prefix of it."""
    for ours, theirs in table.items():
        if path == ours or path.startswith(ours + "."):
            return theirs + path.removeprefix(ours)
    return None


def vae_names(paths: Iterable[str]) -> dict[str, str]:
    """Maps the paths of our VAE to diffusers' paths. paths: all its parameters or modules; containers may be omitted.

    The decoder's levels are numbered by size here and by order there.
    """
    paths = list(paths)
    last = max(int(found[1]) for path in paths if (found := re.match(r"decoder\.up\.(\d+)\b", path)))
    names = {}
    for path in paths:
        name = re.sub(r"\bup\.(\d+)\b", lambda found: f"up.{last - int(found[1])}", path)
        for pattern, theirs in VAE_RULES:
            name = re.sub(pattern, theirs, name)
        name = re.sub(r"(?<=attentions\.0\.)(\w+)", lambda found: VAE_ATTENTION[found[1]], name, count=1)
        if not re.search(r"\b(down|up|mid)\b", name):
            names[path] = name
    return names


def unet_to_diffusers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns the U-Net's whole state dict under diffusers' names."""
    names = unet_names(state)
    return {names[key]: tensor for key, tensor in state.items()}


def vae_to_diffusers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns the VAE's whole state dict under diffusers' names; its attention is (C, C, 1, 1) here, (C, C) there."""
    names, renamed = vae_names(state), {}
    for key, tensor in state.items():
        is_projection = "attentions" in names[key] and tensor.dim() == 4
        renamed[names[key]] = tensor.flatten(1) if is_projection else tensor
    return renamed


def clip_to_diffusers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"text_model.{key}": tensor for key, tensor in state.items()}


def unet_from_diffusers(state: dict[str, Tensor], ours: Iterable[str]) -> dict[str, Tensor]:
    """Returns diffusers' U-Net under our names. ours: the keys of our model with the same configuration.

    A key that has no name here is kept, so that strict loading reports it as unexpected.
    """
    names = {theirs: key for key, theirs in unet_names(ours).items()}
    return {names.get(key, key): tensor for key, tensor in state.items()}


def vae_from_diffusers(state: dict[str, Tensor], ours: Iterable[str]) -> dict[str, Tensor]:
    """Returns diffusers' VAE under our names; its attention has keys like `to_q` or, before 2023, `query`."""
    names = {theirs: key for key, theirs in vae_names(ours).items()}
    renamed = {}
    for key, tensor in state.items():
        key = re.sub(r"(?<=attentions\.0\.)(\w+)", lambda word: LEGACY_VAE_ATTENTION.get(word[1], word[1]), key)
        is_projection = "attentions" in key and tensor.dim() == 2
        renamed[names.get(key, key)] = tensor[:, :, None, None] if is_projection else tensor
    return renamed


def clip_from_diffusers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns transformers' text encoder under our names; older versions prefix every key with `text_model.`."""
    return {key.removeprefix("text_model."): tensor for key, tensor in state.items()}
