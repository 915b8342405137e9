"""CLIP from scratch (Radford et al. 2021): a text tower and an image tower with a shared embedding space."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sd.clip import CLIPTextModel
from sd.tokenizer import Tokenizer
from sd.training.loop import TrainConfig, save_model, train
from sd.training.pretrain.dataset import EmojiDataset
from sd.vision.clip_vision import CLIP, CLIPVisionModel, clip_pixels


def new_clip(text: dict, vision: dict, projection_dim: int) -> CLIP:
    """Return both towers at random, with small embeddings, so that a word that never occurs stays near zero."""
    clip = CLIP(CLIPTextModel(**text), CLIPVisionModel(**vision), projection_dim)
    nn.init.normal_(clip.text_model.embeddings.token_embedding.weight, std=0.02)
    nn.init.normal_(clip.text_model.embeddings.position_embedding.weight, std=0.01)
    nn.init.normal_(clip.vision_model.embeddings.position_embedding.weight, std=0.02)
    nn.init.normal_(clip.vision_model.embeddings.class_embedding, std=0.02)
    return clip


def train_clip(clip: CLIP, run: Path, dataset: EmojiDataset, settings: TrainConfig) -> CLIP:
    """Train the two towers to match texts and images of a batch (Radford et al. 2021, figure 3)."""
    tokenizer = Tokenizer()
    captions = [tokenizer(emoji.captions) for emoji in dataset.emoji]
    styled = [len(emoji.captions) - len(emoji.plain_captions) for emoji in dataset.emoji]
    names = label_ids(emoji.name for emoji in dataset.emoji)
    styles = label_ids(emoji.style for emoji in dataset.emoji)

    def loss(clip: CLIP, indices: Tensor, generator: torch.Generator) -> Tensor:
        chosen = [torch.randint(len(captions[i]), (1,), generator=generator).item() for i in indices.tolist()]
        tokens = torch.stack([captions[i][k] for i, k in zip(indices.tolist(), chosen)])
        length = (tokens == tokens.max()).int().argmax(dim=1).max() + 1  # causal: later tokens have no effect
        tokens = tokens[:, :length]
        images = augment(dataset.images(indices), generator)
        device = clip.logit_scale.device
        text = clip.encode_text(tokens.to(device))
        image = clip.encode_image(clip_pixels(images.to(device), clip.vision_model.image_size))
        logits = clip.logit_scale.clamp(max=4.6052).exp() * text.float() @ image.float().T  # at most 100, section 2.5
        # A caption without a style fits this name in every style; all fitting images share the target.
        fits = names[indices][:, None] == names[indices]
        has_style = torch.tensor([k < styled[i] for i, k in zip(indices.tolist(), chosen)])
        fits &= (styles[indices][:, None] == styles[indices]) | ~has_style[:, None]
        fits = fits.float().to(device)
        return (soft_cross_entropy(logits, fits) + soft_cross_entropy(logits.T, fits.T)) / 2

    return train(clip, loss, len(dataset), run, settings, on_save=lambda average, step: save_model(average, run))


def label_ids(words) -> Tensor:
    """Return each word as the number of its first appearance."""
    numbers: dict[str, int] = {}
    return torch.tensor([numbers.setdefault(word, len(numbers)) for word in words])


def soft_cross_entropy(logits: Tensor, fits: Tensor) -> Tensor:
    """Return the cross-entropy against all matches, in equal parts. logits, fits: (B, B)."""
    return -(F.log_softmax(logits, dim=1) * fits / fits.sum(dim=1, keepdim=True)).sum(dim=1).mean()


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return (B, 3, H, W): each image moved, stretched, rotated, tinted, half of them mirrored, with a hole in it.

    The model soon memorizes a few images of each name; only features that survive these changes generalize.
    """

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(len(images), *shape, generator=generator)

    stretch, turn = uniform(0.75, 1.25, 2), uniform(-0.3, 0.3)  # the second in radians
    mirror = uniform(0, 1).round() * 2 - 1
    cos, sin = turn.cos(), turn.sin()
    linear = torch.stack([mirror * cos, -sin, mirror * sin, cos], 1).view(-1, 2, 2) / stretch[:, :, None]
    rows = torch.cat([linear, uniform(-0.15, 0.15, 2, 1)], dim=2)  # (B, 2, 3)
    grid = F.affine_grid(rows, list(images.shape), align_corners=False)
    ink = F.grid_sample(images - 1, grid, align_corners=False)  # white is 0 for grid_sample's padding
    ink = ink * uniform(0.8, 1.2, 3, 1, 1)
    hole = (grid - uniform(-0.8, 0.8, 1, 1, 2)).abs().amax(dim=-1) < uniform(0, 0.35, 1, 1)
    return (1 + ink * ~hole[:, None]).clamp(-1, 1)
