"""The decoder's opponent: a network that tells real patches from decoded ones, and what each of the two is to learn.

What a latent leaves open, squared errors answer with the mean of all that it might be: a blur. An opponent that knows
the latent as well tells a blur from a drawing at once (Mentzer et al. 2020, "High-Fidelity Generative Image
Compression"; judging patches is from Isola et al. 2017, for this autoencoder from Rombach et al. 2022, section 3.1).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from sd.vae import AutoencoderKL

SLOPE = 0.2


class PatchDiscriminator(nn.Module):
    """How real each place of a picture looks, in patches of 26 pixels, given its latent."""

    def __init__(self, z_channels: int = 4, width: int = 48):
        super().__init__()
        self.first = nn.Conv2d(3, width, 4, stride=2, padding=1)
        self.second = nn.Conv2d(width, 2 * width, 4, stride=2, padding=1)
        self.latent = nn.Conv2d(z_channels, width, 3, padding=1)
        self.third = nn.Conv2d(3 * width, 3 * width, 3, padding=1)
        self.out = nn.Conv2d(3 * width, 1, 3, padding=1)

    def forward(self, images: Tensor, latent: Tensor) -> list[Tensor]:
        """images: (B, 3, H, W) in [-1, 1]. latent: (B, 4, H / 8, W / 8).

        Returns what each layer sees; the last is (B, 1, H / 4, W / 4), above 0 where it takes the picture for real.
        """
        first = F.leaky_relu(self.first(images), SLOPE)
        second = F.leaky_relu(self.second(first), SLOPE)
        known = F.interpolate(F.leaky_relu(self.latent(latent), SLOPE), size=second.shape[-2:])
        third = F.leaky_relu(self.third(torch.cat([second, known], dim=1)), SLOPE)
        return [first, second, third, self.out(third)]


class Rivals(nn.Module):
    """A decoder and its opponent, which learn in one step: no gradient of one's loss reaches the other."""

    def __init__(self, vae: AutoencoderKL):
        super().__init__()
        self.vae, self.discriminator = vae, PatchDiscriminator(vae.z_channels)

    def losses(self, drawn: Tensor, images: Tensor, latent: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(to look real, to be seen as the picture is by each layer, the opponent's own).

        drawn, images: (B, 3, H, W). The first and the last are the two sides of the hinge loss (Lim & Ye 2017), the
        second is the matching of features (Wang et al. 2018, equation 4).
        """
        fixed = {name: parameter.detach() for name, parameter in self.discriminator.named_parameters()}
        seen, real = functional_call(self.discriminator, fixed, (drawn, latent)), self.discriminator(images, latent)
        fake = self.discriminator(drawn.detach(), latent)[-1]
        matched = sum(F.l1_loss(ours, theirs.detach()) for ours, theirs in zip(seen[:-1], real[:-1]))
        return -seen[-1].mean(), matched, F.relu(1 - real[-1]).mean() + F.relu(1 + fake).mean()
