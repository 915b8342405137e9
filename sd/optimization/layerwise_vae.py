"""The VAE with less memory: it runs layer by layer and overwrites what is no longer needed; the values are the same.

A call of a whole level holds the level's input until the level ends, and an activation that is not computed in place
holds its input beside its output: 134 MB each where a 512x512 image is widest.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from sd.optimization.patching import LayerPatch, apply_patch, remove_patches
from sd.vae import AutoencoderKL, Decoder, Encoder, ResnetBlock


class InPlaceResnetBlock(LayerPatch, ResnetBlock):
    """A residual block whose activations overwrite the output of the norm before them."""

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C_in, H, W). Returns (B, C_out, H, W)."""
        h = self.conv1(silu_in_place(self.norm1(x)))
        h = self.conv2(silu_in_place(self.norm2(h)))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class LayerwiseEncoder(LayerPatch, Encoder):
    """An encoder that frees the input of a level once the level's first layer is done."""

    def forward(self, image: Tensor) -> Tensor:
        """image: (B, 3, H, W). Returns (B, 2 * z_channels, H/8, W/8)."""
        h = self.conv_in(image)
        for level in self.down:
            for layer in level_layers(level):
                h = layer(h)
        h = self.mid(h)
        return self.conv_out(silu_in_place(self.norm_out(h)))


class LayerwiseDecoder(LayerPatch, Decoder):
    """A decoder that frees the input of a level once the level's first layer is done."""

    def forward(self, z: Tensor) -> Tensor:
        """z: (B, z_channels, h, w). Returns (B, 3, 8h, 8w)."""
        h = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            for layer in level_layers(level):
                h = layer(h)
        return self.conv_out(silu_in_place(self.norm_out(h)))


def level_layers(level: nn.Module) -> list[nn.Module]:
    """Returns the residual blocks of a level, then its change of size, where it has one."""
    return [*level.block, *(part for name, part in level.named_children() if name != "block")]


def silu_in_place(x: Tensor) -> Tensor:
    """Returns x * sigmoid(x), in place unless a gradient needs x."""
    return F.silu(x, inplace=not x.requires_grad)


PATCHES = {ResnetBlock: InPlaceResnetBlock, Encoder: LayerwiseEncoder, Decoder: LayerwiseDecoder}


def run_layerwise(vae: AutoencoderKL) -> None:
    """Patches the encoder, the decoder and their residual blocks."""
    for layer in vae.modules():
        for kind, patch in PATCHES.items():
            if isinstance(layer, kind):
                apply_patch(layer, patch)


def run_whole_levels(vae: AutoencoderKL) -> None:
    """Removes the patches."""
    remove_patches(vae, *PATCHES.values())
