"""Model CPU offload: only the active network is on the GPU, the others wait in main memory.

v1-5 then runs on a GPU of 4 GB. In fp16 its U-Net takes 1.7 GB, CLIP and the VAE 0.4 GB; the activations of the active
network take the place of the other networks.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sd.clip import CLIPTextModel
from sd.unet import UNetModel
from sd.vae import AutoencoderKL

CPU = torch.device("cpu")


class ModelOffloader:
    """Loads a group of layers onto the device before the group runs, and offloads the group before it.

    groups: the layer that runs first in a group -> all layers of the group. The few layers of no group, such as the
    U-Net's last convolution, stay on `device`: others read from them which device it is.
    """

    def __init__(self, device: torch.device, groups: dict[nn.Module, Iterable[nn.Module]]):
        self.device, self.groups = device, {first: list(layers) for first, layers in groups.items()}
        self.active: nn.Module | None = None
        self.hooks: list[RemovableHandle] = []
        for first in self.groups:
            self.hooks.append(first.register_forward_pre_hook(self.load))
            self.move(first, CPU)

    def load(self, first: nn.Module, _: tuple[Tensor, ...]) -> None:
        """Makes a group the active one; a hook of the layer that runs first in it."""
        if first is not self.active:
            if self.active is not None:
                self.move(self.active, CPU)
            self.move(first, self.device)
            self.active = first

    def move(self, first: nn.Module, device: torch.device) -> None:
        for layers in self.groups[first]:
            layers.to(device)

    def close(self) -> None:
        """Loads all groups onto the device for good."""
        for first in self.groups:
            self.move(first, self.device)
        for hook in self.hooks:
            hook.remove()


def is_enabled(unet: UNetModel) -> bool:
    """Return whether the networks of a U-Net's pipeline are offloaded."""
    return hasattr(unet, "offloader")


def enable(unet: UNetModel, vae: AutoencoderKL, clip: CLIPTextModel | None = None) -> None:
    """Offloads all networks but the active one from now on."""
    if not is_enabled(unet):
        groups: dict[nn.Module, Iterable[nn.Module]] = {} if clip is None else {clip: [clip.embeddings, clip.encoder]}
        groups |= {
            vae.encoder: [vae.encoder],
            vae.decoder: [vae.decoder],
            # The time embedding is computed first, whether or not DeepCache leaves out some of the blocks.
            unet.time_embed: [unet.input_blocks, unet.middle_block, unet.output_blocks],
        }
        unet.offloader = ModelOffloader(unet.out[2].weight.device, groups)


def disable(unet: UNetModel) -> None:
    """Moves all networks back to the device, where they stay."""
    if is_enabled(unet):
        unet.offloader.close()
        del unet.offloader
