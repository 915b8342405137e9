"""The U-Net's cross-attention with an image as a prompt beside the text.

Ye et al. 2023, section 3.2.2, "Decoupled Cross-Attention", equation 5: out = Attention(q, k, v) + weight *
Attention(q, k', v'), with k' and v' from the image's tokens.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from sd.attention import attention
from sd.control.interval import Interval
from sd.control.ip_adapter.network import cross_attentions
from sd.optimization.patching import LayerPatch, apply_patch, remove_patch
from sd.unet import CrossAttention, UNetModel

KeysValues = tuple[Tensor, Tensor]


@dataclass
class ImagePrompt(Interval):
    """An image as a prompt.

    layers: keys and values, (2, N, dim) each, of each of `cross_attentions`; the first row is for no image, which the
    rows without a prompt get. weight: factor of the image's part; see `Interval` for start and end.
    """

    layers: list[KeysValues]
    weight: float = 1.0
    start: float = 0.0
    end: float = 1.0

    def part(self, rows: slice, columns: slice) -> "ImagePrompt":
        """Return it as it is: a prompt is for every part of the image."""
        return self


class ImagePromptAttention(LayerPatch, CrossAttention):
    """A cross-attention that reads images beside the text.

    prompts: (weight, keys and values (B, N, dim)) of each image.
    """

    STATE = ("prompts",)
    prompts: list[tuple[float, KeysValues]]

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Returns the same as `CrossAttention.attend`, and the images' parts added."""
        out = super().attend(q, k, v)
        for weight, (image_k, image_v) in self.prompts:
            out = out + weight * attention(q, image_k, image_v, self.heads)
        return out


@contextmanager
def prompted_by_images(unet: UNetModel, prompts: Sequence[ImagePrompt], rows: int, uncond_rows: int) -> Iterator[None]:
    """Lets the U-Net read images within the context; without any, nothing is patched.

    rows: of the batch, of which the first `uncond_rows` have no prompt.
    """
    layers = cross_attentions(unet) if prompts else []
    try:
        for i, layer in enumerate(layers):
            found = [(one.weight, spread(one.layers[i], rows, uncond_rows)) for one in prompts]
            apply_patch(layer, ImagePromptAttention, prompts=found)
        yield
    finally:
        for layer in layers:
            remove_patch(layer, ImagePromptAttention)


def spread(pair: KeysValues, rows: int, uncond_rows: int) -> KeysValues:
    """Return keys and values, (2, N, dim) each, for a batch: the first row where there is no prompt."""
    k, v = (
        torch.cat([one[:1].expand(uncond_rows, -1, -1), one[1:].expand(rows - uncond_rows, -1, -1)]) for one in pair
    )
    return k, v
