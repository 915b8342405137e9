"""Speed as patches on a loaded pipeline: each can be listed, named and taken off, and the networks stay a textbook.

The usual ones are on in every drawing where the machine has them. They are exact: the same sums, if not always in the
same order. They touch no weight, or give it back bit for bit. Off until asked for is whatever changes the picture, or
saves in one place what it takes in another.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch

from sd.clip import CLIPTextModel
from sd.optimization.compile import compile_forward, run_eagerly
from sd.optimization.cpu_offload import stay, take_turns
from sd.optimization.fused_geglu import fuse, separate
from sd.optimization.int8 import fits as fits_int8
from sd.optimization.int8 import from_int8, to_int8
from sd.optimization.prepacked_conv import has_kernels, pack, unpack
from sd.optimization.shared_cfg_prefix import share_start, start_twice
from sd.optimization.tiled_attention import fits as fits_tiles
from sd.optimization.tiled_attention import tile, untile
from sd.unet import UNetModel
from sd.utils.errors import UserError
from sd.vae import AutoencoderKL

NO_OPTIMIZATIONS = "none"
EXACT = "exact"  # in a list of names: the usual ones


@dataclass(frozen=True)
class Networks:
    """Those of a pipeline that can be patched."""

    unet: UNetModel
    vae: AutoencoderKL
    clip: CLIPTextModel | None = None


@dataclass(frozen=True)
class Optimization:
    """what: a line for the list. fits: whether this device has it, in this dtype. exact: it does not change the
    picture. usual: on by default.

    put_on, take_off: both may be called again and again; what is on already stays as it is.
    """

    what: str
    put_on: Callable[[Networks], object]
    take_off: Callable[[Networks], object]
    fits: Callable[[torch.device, torch.dtype], bool] = lambda device, dtype: True
    exact: bool = True
    usual: bool = True


def on_cuda(device: torch.device, dtype: torch.dtype) -> bool:
    return device.type == "cuda"


def lay_out(networks: Networks, order: torch.memory_format) -> None:
    for network, last in ((networks.unet, networks.unet.out[2]), (networks.vae, networks.vae.decoder.conv_out)):
        if not last.weight.is_contiguous(memory_format=order):
            network.to(memory_format=order)


OPTIMIZATIONS = {
    "channels-last": Optimization(
        "the channels of a place lie together in memory, as convolutions read them",
        lambda networks: lay_out(networks, torch.channels_last),
        lambda networks: lay_out(networks, torch.contiguous_format),
    ),
    "packed-convolutions": Optimization(
        "weights lie in the blocks that the processor's kernels read",
        lambda networks: pack(networks.unet),
        lambda networks: unpack(networks.unet),
        has_kernels,
    ),
    "fused-geglu": Optimization(
        "the gate of a feed-forward layer is applied while its sums are in registers",
        lambda networks: fuse(networks.unet),
        lambda networks: separate(networks.unet),
        has_kernels,
    ),
    "tiled-attention": Optimization(
        "long self-attentions go a tile at a time, so that their scores stay in the processor's cache",
        lambda networks: tile(networks.unet),
        lambda networks: untile(networks.unet),
        fits_tiles,
    ),
    "shared-start": Optimization(
        "what comes before the first look at the text is computed once for cond and uncond",
        lambda networks: share_start(networks.unet),
        lambda networks: start_twice(networks.unet),
        lambda device, dtype: device.type == "cpu",  # on a GPU the check for equal rows would wait for it in every step
    ),
    "int8": Optimization(
        "products in 8 bits, which is quicker, and changes the picture a little",
        lambda networks: to_int8(networks.unet),
        lambda networks: from_int8(networks.unet),
        fits_int8,
        exact=False,
        usual=False,
    ),
    "parts-in-turn": Optimization(
        "one network at a time on the GPU: for those of 4 GB, and slower",
        lambda networks: take_turns(networks.unet, networks.vae, networks.clip),
        lambda networks: stay(networks.unet),
        on_cuda,
        usual=False,
    ),
    "graphs": Optimization(
        "kernels compiled for this GPU and size, replayed as one: quicker, after minutes before the first picture",
        lambda networks: [compile_forward(network) for network in (networks.unet, networks.vae.decoder)],
        lambda networks: [run_eagerly(network) for network in (networks.unet, networks.vae.decoder)],
        on_cuda,
        usual=False,
    ),
}
APART = {"parts-in-turn", "graphs"}  # the one moves the weights, of which the other fixes the places
TRAINABLE = ("channels-last",)  # the others have no gradients


def optimize(
    unet: UNetModel, vae: AutoencoderKL, names: Collection[str] | None = None, clip: CLIPTextModel | None = None
) -> list[str]:
    """Puts these on and takes all others off. names: of OPTIMIZATIONS, or EXACT; None: the usual ones.

    Returns those that are on now. Raises UserError, with nothing changed, for an unknown name, for one that is asked
    for and does not fit this machine or these networks, and for two that do not go together.
    """
    networks, weight = Networks(unet, vae, clip), unet.out[2].weight
    names = checked(names, weight.device, weight.dtype)
    for name in reversed(OPTIMIZATIONS):
        if name not in names:
            OPTIMIZATIONS[name].take_off(networks)
    for name, one in OPTIMIZATIONS.items():
        if name in names:
            one.put_on(networks)
    return [name for name in OPTIMIZATIONS if name in names]


def checked(names: Collection[str] | None, device: torch.device, dtype: torch.dtype) -> list[str]:
    """The names of OPTIMIZATIONS that these stand for. Raises UserError as `optimize` does."""
    usual = usual_ones(device, dtype)
    names = usual if names is None else [one for name in names for one in (usual if name == EXACT else [name])]
    for name in names:
        if name not in OPTIMIZATIONS:
            raise UserError(
                f"there is no optimization {name!r}: use {EXACT}, {', '.join(OPTIMIZATIONS)}, or {NO_OPTIMIZATIONS}."
            )
        if not OPTIMIZATIONS[name].fits(device, dtype):
            raise UserError(f"{name} does not fit this device and precision: leave it out.")
    if set(names) >= APART:
        raise UserError(f"{' and '.join(sorted(APART))} do not go together: leave one of them out.")
    return names


def usual_ones(device: torch.device, dtype: torch.dtype) -> list[str]:
    return [name for name, one in OPTIMIZATIONS.items() if one.usual and one.fits(device, dtype)]


def approximate_ones(names: Collection[str] | None) -> list[str]:
    """Those of the names given to `optimize` that change the picture."""
    return [name for name in names or () if name in OPTIMIZATIONS and not OPTIMIZATIONS[name].exact]


def list_optimizations(device: torch.device, dtype: torch.dtype) -> str:
    """A line each: its name, whether it is on by default there, and what it does."""
    lines = []
    for name, one in OPTIMIZATIONS.items():
        state = "not here" if not one.fits(device, dtype) else "on" if one.usual else "off"
        lines.append(f"{name:20} {state:9} {one.what}")
    return "\n".join(lines)


def optimizations_of(names: str | None) -> list[str] | None:
    """Names with commas between; None, the exact ones, where there are none."""
    if names is None:
        return None
    return [] if names == NO_OPTIMIZATIONS else [name.strip() for name in names.split(",")]
