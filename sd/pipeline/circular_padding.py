"""Circular padding for tileable images: the left edge continues at the right one, the top at the bottom."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def circular_padding(*networks: nn.Module) -> Iterator[None]:
    """Lets every convolution of the networks, within the context, pad with the opposite edge instead of zeros."""
    convolutions = [m for network in networks for m in network.modules() if isinstance(m, nn.Conv2d)]
    before = [convolution.padding_mode for convolution in convolutions]
    try:
        for convolution in convolutions:
            convolution.padding_mode = "circular"
        yield
    finally:
        for convolution, mode in zip(convolutions, before):
            convolution.padding_mode = mode
