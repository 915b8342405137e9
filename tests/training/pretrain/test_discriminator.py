"""The discriminator: its receptive field, the separation of gradients, and that it learns to detect a blur."""

import pytest
import torch
import torch.nn.functional as F

from sd.training.pretrain.discriminator import AdversarialPair, PatchDiscriminator
from sd.vae import AutoencoderKL


@pytest.fixture
def networks():
    torch.manual_seed(0)
    return AdversarialPair(AutoencoderKL(channels=32, channel_mult=(1, 1, 1, 1), num_res_blocks=1))


def test_a_patch_is_26_pixels_and_knows_the_latent_above_it():
    torch.manual_seed(0)
    discriminator = PatchDiscriminator(width=8)
    images, latent = torch.randn(1, 3, 64, 64, requires_grad=True), torch.randn(1, 4, 8, 8, requires_grad=True)
    scores = discriminator(images, latent)[-1]
    assert scores.shape == (1, 1, 16, 16)
    scores[0, 0, 8, 8].backward()
    # It sees 5 x 5 places of 4 pixels, which here lie in 3 x 3 cells of 8, and each cell with those around it.
    for tensor, extent in ((images, 26), (latent, 5)):
        touched = tensor.grad[0].abs().amax(dim=0) > 0
        assert touched.any(dim=0).sum() == extent
        assert touched.any(dim=1).sum() == extent


def test_losses_are_the_written_out_ones(networks):
    decoded, images, latent = torch.randn(2, 3, 32, 32), torch.randn(2, 3, 32, 32), torch.randn(2, 4, 4, 4)
    real, matched, discriminator_loss = networks.losses(decoded, images, latent)
    *ours, fooled = networks.discriminator(decoded, latent)
    *theirs, right = networks.discriminator(images, latent)
    assert real.item() == pytest.approx(-fooled.mean().item(), rel=1e-5)
    wanted = sum((a - b).abs().mean().item() for a, b in zip(ours, theirs))
    assert matched.item() == pytest.approx(wanted, rel=1e-5)
    hinge = (1 - right).clamp(min=0).mean() + (1 + fooled).clamp(min=0).mean()
    assert discriminator_loss.item() == pytest.approx(hinge.item(), rel=1e-5)
    assert networks.losses(images, images, latent)[1] == 0  # a perfect image is seen as the image is


def test_no_gradient_of_ones_loss_reaches_the_other(networks):
    latent, images = torch.randn(1, 4, 4, 4), torch.randn(1, 3, 32, 32)
    real, matched, discriminator_loss = networks.losses(networks.vae.decode(latent), images, latent)
    for loss, learns, stays in (
        (real + matched, networks.vae.decoder, networks.discriminator),
        (discriminator_loss, networks.discriminator, networks.vae),
    ):
        networks.zero_grad()
        loss.backward(retain_graph=True)
        assert all(parameter.grad is not None for parameter in learns.parameters())
        assert all(parameter.grad is None for parameter in stays.parameters())


def test_it_learns_to_distinguish_a_blur_from_a_sharp_image(networks):
    optimizer = torch.optim.AdamW(networks.discriminator.parameters(), 2e-3, betas=(0.5, 0.99))
    latent = torch.zeros(4, 4, 4, 4)

    def pair():
        edges = (torch.rand(4, 1, 1, 32) > 0.5).float() * 2 - 1  # stripes, each of its own
        sharp = edges.expand(4, 3, 32, 32)
        return F.avg_pool2d(F.pad(sharp, (1, 1, 1, 1), mode="replicate"), 3, stride=1), sharp

    for _ in range(30):
        blurred, sharp = pair()
        optimizer.zero_grad()
        networks.losses(blurred, sharp, latent)[2].backward()
        optimizer.step()
    blurred, sharp = pair()
    for_a_blur = networks.losses(blurred, sharp, latent)[0]
    for_an_image = networks.losses(sharp, sharp, latent)[0]
    assert for_a_blur > for_an_image + 0.5  # the hinge asks for 2 in the end
