import math

import torch

from sd.schedule import sigma_list

MEAN = 0.7


def gaussian(x, sigma):
    """The exact denoiser where the data are a normal distribution of mean 0.7 and deviation 1."""
    return MEAN + (x - MEAN) / (1 + sigma**2)


def finished(exercise, denoise, x, sigmas):
    *_, (latent, _) = exercise.euler(denoise, x, sigmas, None)
    return latent


def noise(sigma):
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * sigma


def test_it_yields_every_step_and_its_estimate(exercise):
    sigmas = sigma_list(5)
    steps = list(exercise.euler(lambda x, sigma: x / 2, noise(sigmas[0]), sigmas, None))
    assert len(steps) == 5
    x = noise(sigmas[0])
    for (after, x0), sigma, to in zip(steps, sigmas, sigmas[1:]):
        assert torch.allclose(x0, x / 2)
        assert torch.allclose(after, x + (to - sigma) * (x - x0) / sigma)
        x = after


def test_a_denoiser_that_always_says_the_same_is_reached_exactly(exercise):
    target = noise(1.0)
    sigmas = sigma_list(3)
    assert torch.allclose(finished(exercise, lambda x, sigma: target, noise(sigmas[0]), sigmas), target)


def test_twice_the_steps_halve_the_error(exercise):
    """Euler's method is of the first order; on a Gaussian the true answer has a formula."""
    x = noise(14.0)
    # dx/dsigma = (x - x0) / sigma = (x - mean) sigma / (1 + sigma^2), so x - mean grows as sqrt(1 + sigma^2)
    exact = MEAN + (x - MEAN) / math.sqrt(1 + 14.0**2)
    errors = []
    for steps in (40, 80):
        sigmas = [14.0 * (1 - k / steps) for k in range(steps + 1)]
        errors.append((finished(exercise, gaussian, x, sigmas) - exact).abs().max().item())
    assert 1.8 < errors[0] / errors[1] < 2.2
