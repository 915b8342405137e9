"""One network at a time on the GPU, the others in the computer's own memory: v1-5 then draws on a GPU of 4 GB.

Its U-Net takes 1.7 GB in fp16, CLIP and the VAE 0.4; what a network gives while it works has the place of the others.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sd.clip import CLIPTextModel
from sd.unet import UNetModel
from sd.vae import AutoencoderKL

WAITING = torch.device("cpu")


class Turns:
    """Brings in the layers whose turn it is, before they work, and sends away all others.

    groups: what works first when it is a group's turn -> all layers of that group. The few layers that no group has,
    the U-Net's last convolution for one, stay on `device`, where others look to find out which one it is.
    """

    def __init__(self, device: torch.device, groups: dict[nn.Module, Iterable[nn.Module]]):
        self.device, self.groups = device, {first: list(layers) for first, layers in groups.items()}
        self.at_work: nn.Module | None = None
        self.hooks: list[RemovableHandle] = []
        for first in self.groups:
            self.hooks.append(first.register_forward_pre_hook(self.bring))
            self.move(first, WAITING)

    def bring(self, first: nn.Module, _: tuple[Tensor, ...]) -> None:
        if first is not self.at_work:
            if self.at_work is not None:
                self.move(self.at_work, WAITING)
            self.move(first, self.device)
            self.at_work = first

    def move(self, first: nn.Module, device: torch.device) -> None:
        for layers in self.groups[first]:
            layers.to(device)

    def end(self) -> None:
        """All are back on the device, and stay."""
        for first in self.groups:
            self.move(first, self.device)
        for hook in self.hooks:
            hook.remove()


def take_turns(unet: UNetModel, vae: AutoencoderKL, clip: CLIPTextModel | None = None) -> None:
    if not hasattr(unet, "turns"):
        groups = {} if clip is None else {clip: [clip.embeddings, clip.encoder]}
        groups |= {
            vae.encoder: [vae.encoder],
            vae.decoder: [vae.decoder],
            # The time's embedding is computed first, whether or not a step cache leaves out what comes after it.
            unet.time_embed: [unet.input_blocks, unet.middle_block, unet.output_blocks],
        }
        unet.turns = Turns(unet.out[2].weight.device, groups)


def stay(unet: UNetModel) -> None:
    if hasattr(unet, "turns"):
        unet.turns.end()
        del unet.turns
