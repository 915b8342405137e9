"""LoRAs that work in some regions of an image only: which ones each region names, and how to turn off the others."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn

from sd.adapters.injection import deltas_of

Names = frozenset[str]  # of the LoRAs that work together


class RegionLoras:
    """The LoRAs of a prompt's regions. by_region: the names of those that each region names.

    networks: where they are loaded. A LoRA that no region names, such as one that was loaded by hand, always works.
    """

    def __init__(self, networks: Sequence[nn.Module], by_region: Sequence[Names]):
        self.by_region = list(by_region)
        self.sets = list(dict.fromkeys(by_region))
        names = set[str]().union(*by_region)
        found = [(delta, name) for network in networks for name in names for delta in deltas_of(network, name).values()]
        self.deltas = [(delta, name, delta.strength) for delta, name in found]

    @contextmanager
    def only(self, names: Names) -> Iterator[None]:
        """Lets only these of the regions' LoRAs work within the context."""
        try:
            for delta, name, strength in self.deltas:
                delta.strength = strength if name in names else 0.0
            yield
        finally:
            for delta, _, strength in self.deltas:
                delta.strength = strength
