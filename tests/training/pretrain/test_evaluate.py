"""The judge of drawings: it knows pictures again when little changed, and says so when they are of something else."""

from types import SimpleNamespace

import pytest
import torch

from sd.training.pretrain.dataset import Emoji
from sd.training.pretrain.evaluate import COPY, features, features_of_all, judge


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
def pictures():
    rows, images = shapes()

    class Pictures(SimpleNamespace):
        def __len__(self):
            return len(rows)

        def images(self, indices):
            return images[indices]

    return Pictures(emoji=rows)


def test_features_have_unit_length_and_do_not_see_white():
    _, images = shapes()
    assert torch.allclose(features(images).norm(dim=1), torch.ones(4))
    assert (features(torch.ones(1, 3, 64, 64)) == 0).all()


def test_noisy_pictures_are_known_again_and_copies_are_told(pictures):
    _, images = shapes()
    known = pictures.emoji, features_of_all(pictures)
    noise = 0.2 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    shares = judge(images + noise, pictures.emoji, *known)
    assert shares["name"] == shares["style"] == shares["both"] == 1
    # Only the red ones are trained on; a blue one is no copy of a red one.
    assert judge(images, pictures.emoji, *known)["copies"] == 0.5
    assert (features(images) @ features(images).T).fill_diagonal_(0).max() < COPY


def test_a_drawing_of_something_else_is_counted_as_such(pictures):
    _, images = shapes()
    swapped = images[[2, 3, 0, 1]]  # square for disc, disc for square
    shares = judge(swapped, pictures.emoji, pictures.emoji, features_of_all(pictures))
    assert (shares["name"], shares["style"], shares["both"]) == (0, 1, 0)
