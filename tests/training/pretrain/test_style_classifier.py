"""The style classifier: its solution, and that it recognizes a texture on unseen shapes."""

import pytest
import torch

from sd.training.pretrain.dataset import Emoji
from sd.training.pretrain.evaluate import features
from sd.training.pretrain.style_classifier import StyleClassifier, masked_statistics, random_filters, texture_features
from sd.training.pretrain.train_vae import psnr, reconstructed


def test_spread_counts_marked_places_alone():
    maps = torch.tensor([[1.0, 3.0], [100.0, -100.0]]).view(1, 1, 2, 2)
    where = torch.tensor([[1.0, 1.0], [0.0, 0.0]]).view(1, 1, 2, 2)
    mean, std = masked_statistics(maps, where)
    assert (mean.item(), std.item()) == (2.0, 1.0)
    assert [value.item() for value in masked_statistics(maps, torch.zeros_like(where))] == [
        0.0,
        0.0,
    ]  # an empty image


def test_filters_are_blind_to_an_even_tone_and_of_unit_length():
    weight = random_filters(5, 3, torch.Generator().manual_seed(1))
    assert weight.mean(dim=(1, 2, 3)).abs().max() < 1e-7
    assert torch.allclose(weight.square().sum(dim=(1, 2, 3)), torch.ones(5))


def box(left: int, size: int, striped: bool) -> torch.Tensor:
    """(3, 32, 32): a square on white, of one tone or of thin stripes of the same mean."""
    image = torch.ones(3, 32, 32)
    tone = torch.full((3, 32, 32), -0.2)
    if striped:
        tone[:, ::2] += 0.6
        tone[:, 1::2] -= 0.6
    image[:, 4 : 4 + size, left : left + size] = tone[:, 4 : 4 + size, left : left + size]
    return image


def test_a_texture_is_known_on_shapes_never_seen():
    """Where the nearest image is that of the same shape, so that it says nothing of the style."""
    known = [(left, size, striped) for left in (2, 4) for size in (8, 12) for striped in (True, False)]
    images = torch.stack([box(*one) for one in known])
    classifier = StyleClassifier(images, ["striped" if striped else "plain" for *_, striped in known])
    emoji = torch.stack([box(10, 20, True), box(10, 20, False)])
    assert classifier(emoji) == ["striped", "plain"]
    assert classifier.accuracy(emoji, [Emoji("", "box", "plain", [], "pair")] * 2) == 0.5
    both = features(torch.stack([box(4, 12, True), box(4, 12, False), box(2, 8, True)]))
    assert both[0] @ both[1] > both[0] @ both[2]


def test_texture_is_the_same_in_any_batch():
    images = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert torch.allclose(
        texture_features(images), texture_features(images, batch=2), atol=1e-5
    )  # sums in another order


def test_psnr_is_a_mean_over_images():
    images = torch.zeros(2, 3, 4, 4)
    decoded = torch.stack([torch.full((3, 4, 4), 0.2), torch.full((3, 4, 4), 0.02)])
    assert psnr(decoded, images) == pytest.approx((20 + 40) / 2)  # a range of 2: errors of a tenth and a hundredth


def test_reconstructed_is_encoded_and_decoded_and_kept_in_range():
    class Doubling:
        quant_conv = torch.nn.Conv2d(1, 1, 1)

        def encode(self, images):
            return images * 2, None

        def decode(self, latent):
            return latent

    class Images:
        pixels = torch.tensor([0.25, -0.25, 0.75]).view(3, 1, 1, 1).expand(3, 3, 2, 2)

        def __len__(self):
            return 3

        def images(self, indices):
            return self.pixels[indices]

    decoded = reconstructed(Doubling(), Images(), batch=2)
    assert decoded[:, 0, 0, 0].tolist() == [0.5, -0.5, 1.0]
