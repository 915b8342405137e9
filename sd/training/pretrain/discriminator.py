"""A patch discriminator that distinguishes real from reconstructed patches, and the losses of both networks.

Where the latent leaves details open, a squared error prefers the mean of all possibilities, which is a blur. A
discriminator that sees the latent too distinguishes a blur from a sharp image (Mentzer et al. 2020, "High-Fidelity
Generative Image Compression"; patches are from Isola et al. 2017, their use for this VAE from Rombach et al. 2022,
section 3.1).
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from sd.vae import AutoencoderKL

SLOPE = 0.2


class PatchDiscriminator(nn.Module):
    """Scores how real each patch of 26 pixels looks, given the image's latent."""

    def __init__(self, z_channels: int = 4, width: int = 48):
        super().__init__()
        self.first = nn.Conv2d(3, width, 4, stride=2, padding=1)
        self.second = nn.Conv2d(width, 2 * width, 4, stride=2, padding=1)
        self.latent = nn.Conv2d(z_channels, width, 3, padding=1)
        self.third = nn.Conv2d(3 * width, 3 * width, 3, padding=1)
        self.out = nn.Conv2d(3 * width, 1, 3, padding=1)

    def forward(self, images: Tensor, latent: Tensor) -> list[Tensor]:
        """images: (B, 3, H, W) in [-1, 1]. latent: (B, 4, H / 8, W / 8).

        Returns the features of each layer; the last is (B, 1, H / 4, W / 4), above 0 where a patch counts as real.
        """
        first = F.leaky_relu(self.first(images), SLOPE)
        second = F.leaky_relu(self.second(first), SLOPE)
        condition = F.interpolate(F.leaky_relu(self.latent(latent), SLOPE), size=second.shape[-2:])
        third = F.leaky_relu(self.third(torch.cat([second, condition], dim=1)), SLOPE)
        return [first, second, third, self.out(third)]


class AdversarialPair(nn.Module):
    """A VAE and its discriminator, trained in the same step; no gradient of one's loss reaches the other."""

    def __init__(self, vae: AutoencoderKL):
        super().__init__()
        self.vae, self.discriminator = vae, PatchDiscriminator(vae.z_channels)

    def losses(self, decoded: Tensor, images: Tensor, latent: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the decoder's adversarial loss, the feature-matching loss, and the discriminator's loss.

        decoded, images: (B, 3, H, W).
        The first and the last are the two sides of the hinge loss (Lim & Ye 2017), the second is feature matching (Wang
        et al. 2018, equation 4).
        """
        fixed = {name: parameter.detach() for name, parameter in self.discriminator.named_parameters()}
        fake_features = functional_call(self.discriminator, fixed, (decoded, latent))
        real_features = self.discriminator(images, latent)
        fake = self.discriminator(decoded.detach(), latent)[-1]
        pairs = zip(fake_features[:-1], real_features[:-1])
        matching = cast(Tensor, sum(F.l1_loss(of_fake, of_real.detach()) for of_fake, of_real in pairs))  # never empty
        discriminator = F.relu(1 - real_features[-1]).mean() + F.relu(1 + fake).mean()
        return -fake_features[-1].mean(), matching, discriminator
