"""ControlNet: a copy of the U-Net's encoder that reads an image and adds to the U-Net's skip connections.

Zhang et al. 2023, "Adding Conditional Control to Text-to-Image Diffusion Models", section 3. Every output passes a
"zero convolution", 1 x 1 with weights that training starts at 0, so that an untrained ControlNet changes nothing.
Attribute names are the checkpoint's, below `control_model.`; those of the encoder are the U-Net's own.
"""

from itertools import pairwise, product
from typing import Any

import torch
from torch import Tensor, nn

from sd.unet import TimestepEmbedSequential, UNetModel, timestep_embedding

HINT_CHANNELS = (16, 32, 96, 256)  # of the layers that bring the image to the latent's size, a stride of 2 between
WHOLE_UP_TO = 1024 * 1024  # pixels; a larger image is embedded in tiles
HINT_TILE = 64  # positions of the latent
HINT_MARGIN = 3  # positions around a tile; a position is made of the pixels of fewer


class ControlNetModel(UNetModel):
    """The control network. Defaults are those for v1-5: 361,279,120 parameters.

    hint_channels: widths of the image's layers; each after the first halves height and width. sizes: the
    U-Net's arguments.
    """

    def __init__(self, hint_channels: tuple[int, ...] = HINT_CHANNELS, **sizes: Any):
        super().__init__(**sizes)
        del self.output_blocks, self.out
        self.input_hint_block = hint_block(hint_channels, self.model_channels)
        self.hint_downsample = 2 ** (len(hint_channels) - 1)  # pixels for each position of the latent, each way
        widths = [width_of(block) for block in self.input_blocks]
        self.zero_convs = nn.ModuleList(TimestepEmbedSequential(zero_convolution(width)) for width in widths)
        self.middle_block_out = TimestepEmbedSequential(zero_convolution(widths[-1]))

    def embed_hint(self, hint: Tensor) -> Tensor:
        """hint: (B, 3, 8h, 8w) in [0, 1]. Returns (B, model_channels, h, w), for `forward`.

        A large image is embedded in tiles, since the first layers hold 16 channels for each of its pixels.
        """
        if hint.shape[-1] * hint.shape[-2] <= WHOLE_UP_TO:
            return self.embed_tile(hint)
        side, rows, columns = self.hint_downsample, *(length // self.hint_downsample for length in hint.shape[-2:])
        result = hint.new_empty(len(hint), self.model_channels, rows, columns)
        for top, left in product(range(0, rows, HINT_TILE), range(0, columns, HINT_TILE)):
            y, x = max(top - HINT_MARGIN, 0), max(left - HINT_MARGIN, 0)
            bottom, right = top + HINT_TILE + HINT_MARGIN, left + HINT_TILE + HINT_MARGIN
            tile = self.embed_tile(hint[..., y * side : bottom * side, x * side : right * side])
            place = result[..., top : top + HINT_TILE, left : left + HINT_TILE]
            place.copy_(tile[..., top - y :, left - x :][..., : place.shape[-2], : place.shape[-1]])
        return result

    def embed_tile(self, hint: Tensor) -> Tensor:
        for layer in self.input_hint_block:
            hint = layer(hint)
        return hint

    def forward(self, x: Tensor, t: Tensor, context: Tensor, hint: Tensor) -> list[Tensor]:  # type: ignore[override]
        """x: (B, 4, h, w), as the U-Net's. t: (B,), 0..999. context: (B, M, context_dim). hint: from `embed_hint`.

        Returns what is added to the U-Net: for each of its skip connections, in the order of the input blocks, then
        for the output of its middle block.
        """
        emb = self.time_embed(timestep_embedding(t, self.model_channels).to(x.dtype))  # (B, time_dim)
        outputs = []
        for i, (block, zero_conv) in enumerate(zip(self.input_blocks, self.zero_convs)):
            x = block(x, emb, context)
            if i == 0:
                x = x + hint
            outputs.append(zero_conv(x, emb, context))
        return [*outputs, self.middle_block_out(self.middle_block(x, emb, context), emb, context)]


def hint_block(channels: tuple[int, ...], out_channels: int) -> TimestepEmbedSequential:
    """Returns the convolutions that bring the image to the latent's size, with SiLU between them."""
    layers: list[nn.Module] = [nn.Conv2d(3, channels[0], 3, padding=1), nn.SiLU()]
    for before, after in pairwise(channels):
        layers += [nn.Conv2d(before, before, 3, padding=1), nn.SiLU()]
        layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.SiLU()]
    return TimestepEmbedSequential(*layers, zero_convolution(channels[-1], out_channels, 3))


def zero_convolution(channels: int, out_channels: int | None = None, size: int = 1) -> nn.Conv2d:
    """Returns a convolution whose weights are 0."""
    convolution = nn.Conv2d(channels, channels if out_channels is None else out_channels, size, padding=size // 2)
    if not convolution.weight.is_meta:
        with torch.no_grad():
            convolution.weight.zero_()
            convolution.bias.zero_()  # type: ignore[union-attr]  # it has one
    return convolution


def width_of(block: nn.Module) -> int:
    """Returns the channels of an input block's output: a ResBlock's, a Downsample's or the first convolution's."""
    first = next(iter(block.children()))
    convolutions = [module for module in first.modules() if isinstance(module, nn.Conv2d) and module.kernel_size[0] > 1]
    return convolutions[-1].out_channels


def controlnet_from_unet(unet: UNetModel, config: dict, hint_channels: tuple[int, ...] = HINT_CHANNELS):
    """Returns a ControlNet to train: its encoder is a copy of the U-Net's, its zero convolutions are 0.

    config: the U-Net's, as in `sd.checkpoints.config`.
    """
    arguments = {name: value for name, value in config.items() if name != "out_channels"}
    network = ControlNetModel(**arguments, hint_channels=hint_channels)
    ours = network.state_dict()
    network.load_state_dict({key: tensor for key, tensor in unet.state_dict().items() if key in ours}, strict=False)
    return network
