"""The evaluation recognizes slightly changed images, and counts images of other objects as wrong."""

from types import SimpleNamespace

import pytest
import torch

from sd.training.pretrain.dataset import Emoji
from sd.training.pretrain.evaluate import COPY_THRESHOLD, features, features_of_all, nearest_shares


def shapes(size=64):
    """A disc and a square, each red and blue, on white: (4, 3, size, size)."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, size), torch.linspace(-1, 1, size), indexing="ij")
    masks = {"disc": x**2 + y**2 < 0.4, "square": (x.abs() < 0.55) & (y.abs() < 0.55)}
    inks = {"red": (1.0, -1.0, -1.0), "blue": (-1.0, -1.0, 1.0)}
    rows, images = [], []
    for name, mask in masks.items():
        for style, ink in inks.items():
            rows.append(Emoji("", name, style, [], "train" if style == "red" else "pair"))
            images.append(torch.where(mask, torch.tensor(ink)[:, None, None], torch.ones(3, 1, 1)))
    return rows, torch.stack(images)


@pytest.fixture
def dataset():
    rows, images = shapes()

    class Images(SimpleNamespace):
        def __len__(self):
            return len(rows)

        def images(self, indices):
            return images[indices]

    return Images(emoji=rows)


def test_features_have_unit_length_and_do_not_see_white():
    _, images = shapes()
    assert torch.allclose(features(images).norm(dim=1), torch.ones(4))
    assert (features(torch.ones(1, 3, 64, 64)) == 0).all()


def test_noisy_images_are_recognized_and_copies_counted(dataset):
    _, images = shapes()
    known = dataset.emoji, features_of_all(dataset)
    noise = 0.2 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    shares = nearest_shares(images + noise, dataset.emoji, *known)
    assert shares["name"] == shares["style"] == shares["both"] == 1
    # Only the red ones are trained on; a blue one is no copy of a red one.
    assert nearest_shares(images, dataset.emoji, *known)["copies"] == 0.5
    assert (features(images) @ features(images).T).fill_diagonal_(0).max() < COPY_THRESHOLD


def test_an_image_of_another_object_counts_as_wrong(dataset):
    _, images = shapes()
    swapped = images[[2, 3, 0, 1]]  # square for disc, disc for square
    shares = nearest_shares(swapped, dataset.emoji, dataset.emoji, features_of_all(dataset))
    assert (shares["name"], shares["style"], shares["both"]) == (0, 1, 0)
