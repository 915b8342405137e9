"""Optimizations as patches on a loaded pipeline: each can be listed, enabled by its name and removed again.

The default ones are enabled whenever the pipeline generates images and the machine supports them. They are exact: the
same sums, if not always in the same order. They change no weight, or restore it bit for bit. Off by default is
whatever changes the image, or saves in one place what it costs in another.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from torch import nn

from sd.clip import CLIPTextModel
from sd.optimization import (
    compile,
    cpu_offload,
    fused_geglu,
    int8,
    layerwise_vae,
    prepacked_conv,
    shared_cfg_prefix,
    tiled_attention,
)
from sd.optimization.kernels import cpu_obstacle
from sd.optimization.small_maps import cached_text, pointwise_conv
from sd.optimization.winograd import layer as winograd
from sd.unet import UNetModel
from sd.utils.errors import UserError
from sd.vae import AutoencoderKL

NO_OPTIMIZATIONS = "none"
EXACT = "exact"  # in a list of names: the default ones
ALIASES = {  # older names, still accepted in flags and in infotext
    "packed-convolutions": "prepacked-conv",
    "shared-start": "shared-cfg-prefix",
    "parts-in-turn": "model-cpu-offload",
    "graphs": "compile",
}


@dataclass(frozen=True)
class Networks:
    """The networks of a pipeline that can be patched."""

    unet: UNetModel
    vae: AutoencoderKL
    clip: CLIPTextModel | None = None


def no_obstacle(device: torch.device, dtype: torch.dtype) -> str:
    return ""


@dataclass(frozen=True)
class Optimization:
    """A patch with its name's line in the list.

    obstacle: a sentence why this device and dtype do not support it; empty where they do. exact: it does not change
    the image. default: it is enabled unless other optimizations are requested.
    enable, disable: may be called repeatedly; what is enabled already stays as it is.
    """

    description: str
    enable: Callable[[Networks], object]
    disable: Callable[[Networks], object]
    obstacle: Callable[[torch.device, torch.dtype], str] = no_obstacle
    exact: bool = True
    default: bool = True

    def is_supported(self, device: torch.device, dtype: torch.dtype) -> bool:
        """Return whether this device and dtype support it."""
        return not self.obstacle(device, dtype)


def needs_cuda(device: torch.device, dtype: torch.dtype) -> str:
    return "" if device.type == "cuda" else "it is for CUDA GPUs."


def set_memory_format(networks: Networks, order: torch.memory_format) -> None:
    """Changes the memory layout of the U-Net's and the VAE's weights where it is another one."""
    for network, last in ((networks.unet, networks.unet.out[2]), (networks.vae, networks.vae.decoder.conv_out)):
        if not last.weight.is_contiguous(memory_format=order):
            network.to(memory_format=order)


def apply_to_all(change: Callable[[nn.Module], None], networks: Networks) -> None:
    """Patches the U-Net and the VAE."""
    change(networks.unet)
    change(networks.vae)


def compile_networks(networks: Networks) -> None:
    for network in (networks.unet, networks.vae.decoder):
        compile.compile_forward(network)


def run_networks_eagerly(networks: Networks) -> None:
    for network in (networks.unet, networks.vae.decoder):
        compile.run_eagerly(network)


OPTIMIZATIONS = {
    "channels-last": Optimization(
        "stores the channels of a position next to each other in memory, as convolutions read them",
        lambda networks: set_memory_format(networks, torch.channels_last),
        lambda networks: set_memory_format(networks, torch.contiguous_format),
    ),
    "prepacked-conv": Optimization(
        "stores convolution weights in the blocks that the CPU's kernels read",
        lambda networks: prepacked_conv.pack_convolutions(networks.unet),
        lambda networks: prepacked_conv.unpack_convolutions(networks.unet),
        prepacked_conv.obstacle,
    ),
    "pointwise-conv": Optimization(
        "computes 1x1 convolutions as matrix products over the positions",
        lambda networks: apply_to_all(pointwise_conv.use_products, networks),
        lambda networks: apply_to_all(pointwise_conv.use_convolutions, networks),
        pointwise_conv.obstacle,
        default=False,  # it rounds otherwise, and its gain on a whole step is near the noise
    ),
    "winograd": Optimization(
        "computes wide 3x3 convolutions with 16 products in place of 36; v1-5 takes 1 GB more",
        lambda networks: apply_to_all(winograd.use_winograd, networks),
        lambda networks: apply_to_all(winograd.use_direct, networks),
        winograd.obstacle,
    ),
    "fused-geglu": Optimization(
        "applies the gate of a feed-forward layer while its sums are in registers",
        lambda networks: fused_geglu.fuse_geglu(networks.unet),
        lambda networks: fused_geglu.unfuse_geglu(networks.unet),
        fused_geglu.obstacle,
    ),
    "cached-text": Optimization(
        "computes the keys and values of the text once for all steps",
        lambda networks: cached_text.cache_text(networks.unet),
        lambda networks: cached_text.compute_text_anew(networks.unet),
        cpu_obstacle,  # on a GPU they are a hundredth of a step, and CUDA graphs do not see that they change
    ),
    "tiled-attention": Optimization(
        "computes long self-attentions in tiles, so that their scores stay in the CPU's cache",
        lambda networks: tiled_attention.tile_attention(networks.unet),
        lambda networks: tiled_attention.untile_attention(networks.unet),
        tiled_attention.obstacle,
    ),
    "shared-cfg-prefix": Optimization(
        "computes the layers before the first cross-attention once for cond and uncond",
        lambda networks: shared_cfg_prefix.share_prefix(networks.unet),
        lambda networks: shared_cfg_prefix.unshare_prefix(networks.unet),
        cpu_obstacle,  # on a GPU the test for equal rows would wait for the GPU in every step
    ),
    "layerwise-vae": Optimization(
        "runs the VAE layer by layer and frees each input early: less memory",
        lambda networks: layerwise_vae.run_layerwise(networks.vae),
        lambda networks: layerwise_vae.run_whole_levels(networks.vae),
    ),
    "int8": Optimization(
        "computes products in 8 bits: faster, and the image changes a little",
        lambda networks: int8.quantize_unet(networks.unet),
        lambda networks: int8.dequantize_unet(networks.unet),
        int8.obstacle,
        exact=False,
        default=False,
    ),
    "model-cpu-offload": Optimization(
        "keeps only the active network on the GPU: for GPUs of 4 GB, and slower",
        lambda networks: cpu_offload.enable(networks.unet, networks.vae, networks.clip),
        lambda networks: cpu_offload.disable(networks.unet),
        needs_cuda,
        default=False,
    ),
    "compile": Optimization(
        "compiles kernels for this GPU and image size: faster, after some minutes before the first image",
        compile_networks,
        run_networks_eagerly,
        needs_cuda,
        default=False,
    ),
}
INCOMPATIBLE = {"compile", "model-cpu-offload"}  # one moves the weights, the other fixes their addresses
TRAINABLE = ("channels-last", "layerwise-vae")  # the others compute no gradients
TRAINABLE_FROZEN = (*TRAINABLE, "winograd")  # the gradient with respect to the input alone, of weights that are frozen


def optimize(
    unet: UNetModel, vae: AutoencoderKL, names: Collection[str] | None = None, clip: CLIPTextModel | None = None
) -> list[str]:
    """Enables these optimizations and disables all others.

    names: of OPTIMIZATIONS, or EXACT; None: the default ones. Returns those that are enabled now.
    Raises UserError, with nothing changed, for an unknown name, for one that this machine does not support, and for
    two that do not work together.
    """
    networks, weight = Networks(unet, vae, clip), unet.out[2].weight
    names = resolve_names(names, weight.device, weight.dtype)
    for name in reversed(OPTIMIZATIONS):
        if name not in names:
            OPTIMIZATIONS[name].disable(networks)
    for name, one in OPTIMIZATIONS.items():
        if name in names:
            one.enable(networks)
    return [name for name in OPTIMIZATIONS if name in names]


def resolve_names(names: Collection[str] | None, device: torch.device, dtype: torch.dtype) -> list[str]:
    """Returns the names of OPTIMIZATIONS that these names expand to. Raises UserError as `optimize` does."""
    if names is None:
        names = [EXACT]
    names = [current_name(name) for name in names]
    names = [one for name in names for one in (default_names(device, dtype) if name == EXACT else [name])]
    for name in names:
        if name not in OPTIMIZATIONS:
            choices = ", ".join([EXACT, *OPTIMIZATIONS, NO_OPTIMIZATIONS])
            raise UserError(f"unknown optimization {name!r}; choose from {choices}.")
        if reason := OPTIMIZATIONS[name].obstacle(device, dtype):
            raise UserError(
                f"{name} is not supported on this device and dtype ({reason.rstrip('.')}); remove it from --optimize."
            )
    if set(names) >= INCOMPATIBLE:
        raise UserError(f"{' and '.join(sorted(INCOMPATIBLE))} do not work together; remove one of them.")
    return names


def current_name(name: str) -> str:
    """Returns the current name of an optimization, which may be given by an older name."""
    return ALIASES.get(name, name)


def default_names(device: torch.device, dtype: torch.dtype) -> list[str]:
    """Returns the optimizations that are enabled by default on a device."""
    return [name for name, one in OPTIMIZATIONS.items() if one.default and one.is_supported(device, dtype)]


def frozen_names(device: torch.device, dtype: torch.dtype) -> list[str]:
    """Returns those of TRAINABLE_FROZEN that a device supports."""
    return [name for name in TRAINABLE_FROZEN if OPTIMIZATIONS[name].is_supported(device, dtype)]


def approximate_names(names: Collection[str] | None) -> list[str]:
    """Returns those of the names given to `optimize` that change the image."""
    names = [current_name(name) for name in names or ()]
    return [name for name in names if name in OPTIMIZATIONS and not OPTIMIZATIONS[name].exact]


def list_optimizations(device: torch.device, dtype: torch.dtype) -> str:
    """Returns a line for each: its name, whether it is a default, what it does, and why it is not supported."""
    lines = []
    for name, one in OPTIMIZATIONS.items():
        reason = one.obstacle(device, dtype)
        state = "not here" if reason else "on" if one.default else "off"
        lines.append(f"{name:18} {state:9} {one.description}" + (f". Not here: {reason}" if reason else ""))
    return "\n".join(lines)


def parse_names(names: str | None) -> list[str] | None:
    """Splits names with commas between them. None means the default ones."""
    if names is None:
        return None
    return [] if names == NO_OPTIMIZATIONS else [name.strip() for name in names.split(",")]
