"""Exercise 5: the block that the U-Net is made of."""

from torch import Tensor

from sd.unet import ResBlock


def forward(block: ResBlock, x: Tensor, emb: Tensor) -> Tensor:
    """Return the block's output, (B, out_channels, h, w).

    x: (B, in_channels, h, w). emb: (B, time_dim), the embedding of the time. The block has four parts, all callable:

        block.in_layers(x)         (B, out_channels, h, w)
        block.emb_layers(emb)      (B, out_channels), to be added at every position between the two convolutions
        block.out_layers(h)        (B, out_channels, h, w)
        block.skip_connection(x)   (B, out_channels, h, w), to be added at the end

    The project's own: `ResBlock.forward` in sd/unet.py.
    """
    raise NotImplementedError("write this function")
