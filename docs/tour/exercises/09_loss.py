"""Exercise 9: the loss that everything was learned with."""

from torch import Tensor, nn


def prediction_errors(
    unet: nn.Module, x0: Tensor, noise: Tensor, t: Tensor, context: Tensor, weights: Tensor
) -> Tensor:
    """Return the mean squared errors of the predicted noise (Ho et al. 2020, eq. 14), (B,), weighted by time.

    x0, noise: (B, 4, h, w). t: (B,) whole numbers 0 … 999. context: (B, M, D), the text. weights: (1000,), one for each
    time; the error of each latent is multiplied by the weight of its t.

    Add the noise to x0 with `SD1_SCHEDULE.add_noise` of sd/schedule.py, give the U-Net the result, t and the context,
    and compare what it returns with the noise. The mean is over channels, height and width, not over the batch.

    The project's own: `prediction_errors` in sd/training/loss.py.
    """
    raise NotImplementedError("write this function")
