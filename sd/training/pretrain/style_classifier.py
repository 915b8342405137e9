"""A linear style classifier on texture features of random filters, independent of what an image shows.

The nearest neighbor cannot tell the style: two images of one object look more alike than two objects in one style.
Random filters capture texture as well as trained ones (Ustyuzhaninov et al. 2016, "Texture Synthesis Using Shallow
Convolutional Networks with Random Filters").
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from sd.training.pretrain.dataset import Emoji

SCALES = 3  # whole, half, a quarter
WIDTHS = (48, 64)  # filters of 3 x 3 in the first and the second layer
RIDGE = 1.0


class StyleClassifier:
    """Fits images (B, 3, H, W) in [-1, 1] to the style of each, by weighted ridge regression."""

    def __init__(self, images: Tensor, styles: list[str]):
        self.styles = sorted(set(styles))
        rows = texture_features(images)
        self.mean, self.std = rows.mean(dim=0), rows.std(dim=0) + 1e-6
        label = torch.tensor([self.styles.index(style) for style in styles])
        weight = (1 / label.bincount().double())[label][:, None]  # each style has the same total weight
        x = self.standardize(rows)
        ridge = RIDGE / len(x) * torch.eye(x.shape[1], dtype=torch.double)
        self.solution = torch.linalg.solve(x.T @ (weight * x) + ridge, x.T @ (weight * F.one_hot(label).double()))

    def standardize(self, rows: Tensor) -> Tensor:
        return F.pad((rows - self.mean) / self.std, (0, 1), value=1.0).double()

    def __call__(self, images: Tensor) -> list[str]:
        """Return the style of each of (B, 3, H, W) in [-1, 1]."""
        return [
            self.styles[i] for i in (self.standardize(texture_features(images)) @ self.solution).argmax(dim=1).tolist()
        ]

    def accuracy(self, images: Tensor, emoji: list[Emoji]) -> float:
        """Return the fraction of images whose style is that of their emoji."""
        return sum(found == emoji.style for found, emoji in zip(self(images), emoji)) / len(emoji)


@torch.no_grad()
def texture_features(images: Tensor, batch: int = 16) -> Tensor:
    """Return (B, features) for (B, 3, H, W) in [-1, 1]: mean and deviation of each filter's output where it is not
    white.
    """
    generator = torch.Generator().manual_seed(0)
    first, second = (random_filters(out, into, generator) for into, out in zip((3, *WIDTHS), WIDTHS))
    rows = []
    for x in images.float().split(batch):
        row = []
        for _ in range(SCALES):
            near_ink = F.max_pool2d(((1 - x).amax(dim=1, keepdim=True) > 0.05).float(), 5, stride=1, padding=2)
            edges = F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), first).relu()
            corners = F.conv2d(F.pad(edges, (1, 1, 1, 1), mode="replicate"), second)
            for maps in (x, edges, corners, corners.abs()):
                row += masked_statistics(maps, near_ink)
            x = F.avg_pool2d(x, 2)
        rows.append(torch.cat(row, dim=1))
    features = torch.cat(rows)
    return features.sign() * features.abs().sqrt()  # roots, so that a few strong edges do not dominate


def random_filters(out: int, into: int, generator: torch.Generator) -> Tensor:
    """Return (out, into, 3, 3) random filters of zero mean and unit length."""
    weight = torch.randn(out, into, 3, 3, generator=generator)
    weight -= weight.mean(dim=(1, 2, 3), keepdim=True)
    return weight / weight.flatten(1).norm(dim=1).view(-1, 1, 1, 1)


def masked_statistics(maps: Tensor, where: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation, (B, C) each, of (B, C, H, W) where the mask (B, 1, H, W) is 1."""
    share = where / where.sum(dim=(2, 3), keepdim=True).clamp(min=1)
    mean = (maps * share).sum(dim=(2, 3))
    return mean, ((maps - mean[..., None, None]).square() * share).sum(dim=(2, 3)).sqrt()
