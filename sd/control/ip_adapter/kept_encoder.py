"""The image encoder of IP-Adapters between two images: loaded for the first one, and kept for the next ones."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sd.optimization.cpu_offload import CPU, is_enabled
from sd.unet import UNetModel
from sd.vision.image_encoder import ImageEncoder, load_image_encoder


class KeptEncoder:
    """An image encoder with the device and dtype of a U-Net. It is read from its file when it is first used.

    While the networks are offloaded, it waits in main memory as they do.
    """

    def __init__(self, path: Path, unet: UNetModel):
        self.path, self.unet = path, unet
        self.encoder: ImageEncoder | None = None

    @contextmanager
    def ready(self) -> Iterator[ImageEncoder]:
        """Yield the encoder on the U-Net's device. Raises UserError for a file that holds none."""
        weight = self.unet.out[2].weight
        if self.encoder is None:
            self.encoder = load_image_encoder(self.path, weight.device, weight.dtype)
        try:
            yield self.encoder.to(weight.device)
        finally:
            if is_enabled(self.unet):
                self.encoder.to(CPU)
