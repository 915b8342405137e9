"""CLIP's vision tower, and both towers with their projections, to compare images with text.

Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision".
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sd.clip import CLIPTextModel, Encoder

PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)


class VisionEmbeddings(nn.Module):
    """A linear embedding of each patch behind a learned class vector, plus a learned vector for each position."""

    def __init__(self, image_size: int, patch_size: int, width: int):
        super().__init__()
        self.class_embedding = nn.Parameter(torch.randn(width))
        self.patch_embedding = nn.Conv2d(3, width, patch_size, stride=patch_size, bias=False)
        self.position_embedding = nn.Embedding((image_size // patch_size) ** 2 + 1, width)

    def forward(self, pixels: Tensor) -> Tensor:
        """pixels: (B, 3, image_size, image_size). Returns (B, 1 + patches, width)."""
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)  # (B, patches, width)
        first = self.class_embedding.expand(len(pixels), 1, -1)
        return torch.cat([first, patches], dim=1) + self.position_embedding.weight  # (B, 1 + patches, width)


class CLIPVisionModel(nn.Module):
    """A vision transformer that encodes an image's patches as one vector. Defaults are ViT-L/14."""

    def __init__(
        self, image_size: int = 224, patch_size: int = 14, width: int = 1024, layers: int = 24, heads: int = 16
    ):
        super().__init__()
        self.image_size = image_size
        self.embeddings = VisionEmbeddings(image_size, patch_size, width)
        self.pre_layrnorm = nn.LayerNorm(width)  # the typo is part of the file format
        self.encoder = Encoder(width, layers, heads)
        self.post_layernorm = nn.LayerNorm(width)

    def forward(self, pixels: Tensor) -> Tensor:
        """pixels: (B, 3, image_size, image_size) from `clip_pixels`. Returns (B, width)."""
        x = self.encoder(self.pre_layrnorm(self.embeddings(pixels)), causal=False)
        return self.post_layernorm(x[:, 0])


class CLIP(nn.Module):
    """Both towers and a shared embedding space, in which cosine similarity measures how well text and image match."""

    def __init__(self, text: CLIPTextModel, vision: CLIPVisionModel, projection_dim: int = 768):
        super().__init__()
        self.text_model = text
        self.vision_model = vision
        self.text_projection = nn.Linear(text.final_layer_norm.weight.shape[0], projection_dim, bias=False)
        self.visual_projection = nn.Linear(vision.post_layernorm.weight.shape[0], projection_dim, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(2.6592))  # log(1 / 0.07), section 2.5

    def encode_text(self, tokens: Tensor) -> Tensor:
        """tokens: (B, 77), padded with the end token. Returns (B, projection_dim), each of unit length."""
        states = self.text_model(tokens)
        # The first end token has seen the whole text; it has the highest id of the original vocabulary.
        end = (tokens == 49407).int().argmax(dim=1)
        return F.normalize(self.text_projection(states[torch.arange(len(tokens)), end]), dim=-1)

    def encode_image(self, pixels: Tensor) -> Tensor:
        """pixels: (B, 3, S, S) from `clip_pixels`. Returns (B, projection_dim), each of unit length."""
        return F.normalize(self.visual_projection(self.vision_model(pixels)), dim=-1)


def clip_pixels(image: Tensor, size: int) -> Tensor:
    """image: (B, 3, H, W) in [-1, 1]. Returns (B, 3, size, size): resized, center cropped, with CLIP's mean and std."""
    height, width = image.shape[-2:]
    scale = size / min(height, width)
    resized = [max(size, round(height * scale)), max(size, round(width * scale))]
    image = F.interpolate(image.float(), size=resized, mode="bicubic", antialias=True).clamp(-1, 1)
    top, left = (resized[0] - size) // 2, (resized[1] - size) // 2
    image = image[..., top : top + size, left : left + size]
    mean = torch.tensor(PIXEL_MEAN, device=image.device).view(3, 1, 1)
    std = torch.tensor(PIXEL_STD, device=image.device).view(3, 1, 1)
    return ((image + 1) / 2 - mean) / std
