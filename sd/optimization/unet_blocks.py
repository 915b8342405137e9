"""The U-Net's blocks as loops that patches share, where they run only some of the blocks."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from sd.unet import UNetModel, timestep_embedding


def embed_time(unet: UNetModel, t: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns the embedding (B, time_dim) of t, (B,), 0..999."""
    return unet.time_embed(timestep_embedding(t, unet.model_channels).to(dtype))


def run_input_blocks(
    blocks: Iterable[nn.Module], x: Tensor, skips: list[Tensor], emb: Tensor, context: Tensor
) -> Tensor:
    """Runs some of the input blocks and appends each one's output to `skips`. Returns the last output."""
    for block in blocks:
        x = block(x, emb, context)
        skips.append(x)
    return x


def run_output_blocks(
    blocks: Iterable[nn.Module], x: Tensor, skips: list[Tensor], emb: Tensor, context: Tensor
) -> Tensor:
    """Runs some of the output blocks; each takes the last of `skips` beside its input, (B, C1 + C2, h, w)."""
    for block in blocks:
        x = torch.cat([x, skips.pop()], dim=1)
        x = block(x, emb, context, size=skips[-1].shape[-2:] if skips else None)
    return x
