"""The training loss: the error in what the U-Net predicts, the noise (Ho et al. 2020, eq. 14) or v."""

import math

import torch
from torch import Tensor, nn

from sd.checkpoints.predictions import EPS, Prediction
from sd.pipeline.sampling.v_prediction import schedule_of, velocity


def snr_weights(lowest: float = 0.0, highest: float = math.inf, prediction: Prediction = EPS) -> Tensor:
    """Return the weights of the squared error in the prediction at t = 0 … 999: (1000,).

    The error in eps is snr times the error in x0, where snr = a / (1 - a) is the signal-to-noise ratio, and the error
    in v is snr + 1 times it. With these weights the error in x0 counts as much as snr within the bounds. Without bounds
    all weights are 1; with gamma as the upper bound they are those of Min-SNR, min(snr, gamma) / snr for eps and
    min(snr, gamma) / (snr + 1) for v (Hang et al. 2023, "Efficient Diffusion Training via Min-SNR Weighting Strategy",
    sec. 3.4).
    """
    alphas = schedule_of(prediction).alphas_cumprod
    snr = alphas / (1 - alphas)
    if prediction.v:
        return torch.ones_like(snr) if (lowest, highest) == (0, math.inf) else snr.clamp(lowest, highest) / (snr + 1)
    return snr.clamp(lowest, highest) / snr


def noise_error_weights(prediction: Prediction = EPS) -> Tensor:
    """Return the weights (1000,) that make the squared error in the prediction that in the noise.

    The error in v is 1 + 1 / snr times the error in eps, so that the weight is a = alphas_cumprod there.
    """
    alphas = schedule_of(prediction).alphas_cumprod
    return alphas if prediction.v else torch.ones_like(alphas)


def prediction_errors(
    unet: nn.Module,
    x0: Tensor,
    noise: Tensor,
    t: Tensor,
    context: Tensor,
    weights: Tensor,
    prediction: Prediction = EPS,
    target: Tensor | None = None,
) -> Tensor:
    """Return the weighted mean squared errors in eps or v, (B,) fp32.

    x0, noise: (B, 4, h, w), on the CPU or on the U-Net's device. t: (B,) 0 … 999. weights: (1000,), by timestep.
    target: what to predict instead, (B, 4, h, w), such as the prediction of another U-Net.
    """
    device, dtype = unet.out[2].weight.device, unet.out[2].weight.dtype
    schedule = schedule_of(prediction)
    found = unet(schedule.add_noise(x0, noise, t).to(device, dtype), t.to(device), context.to(device, dtype)).float()
    if target is None:
        target = velocity(schedule, x0, noise, t) if prediction.v else noise
    return weights[t].to(device) * (found - target.to(device)).square().mean(dim=(1, 2, 3))


def offset_noise(shape: tuple[int, ...], offset: float, generator: torch.Generator) -> Tensor:
    """Return noise (4, h, w) whose channel means have an additional deviation of `offset` (Guttenberg 2023, "Diffusion
    with Offset Noise").

    Plain noise hardly changes the mean of a latent, so that a model does not learn very dark and very bright images.
    """
    noise = torch.randn(shape, generator=generator)
    return noise + offset * torch.randn(shape[0], 1, 1, generator=generator) if offset else noise
