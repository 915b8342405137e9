import math

import torch

MEAN = 0.7


def gaussian(x, sigma):
    """The exact denoiser where the data are a normal distribution of mean 0.7 and deviation 1."""
    return MEAN + (x - MEAN) / (1 + sigma**2)


def finished(exercise, denoise, x, sigmas):
    *_, (latent, _) = exercise.heun(denoise, x, sigmas, None)
    return latent


def noise(sigma):
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * sigma


def test_twice_the_steps_quarter_the_error(exercise):
    """The second order: on a Gaussian the true answer at level 0.5 has a formula."""
    x, end = noise(14.0), 0.5
    exact = MEAN + (x - MEAN) * math.sqrt((1 + end**2) / (1 + 14.0**2))
    errors = []
    for steps in (40, 80):
        sigmas = [14.0 + (end - 14.0) * k / steps for k in range(steps + 1)]
        errors.append((finished(exercise, gaussian, x, sigmas) - exact).abs().max().item())
    assert 3.3 < errors[0] / errors[1] < 4.7


def test_the_last_step_to_zero_is_the_estimate(exercise):
    steps = list(exercise.heun(gaussian, noise(2.0), [2.0, 1.0, 0.0], None))
    assert len(steps) == 2
    assert torch.equal(steps[-1][0], steps[-1][1])


def test_two_evaluations_a_step_but_one_for_the_last(exercise):
    seen = []

    def counted(x, sigma):
        seen.append(sigma)
        return gaussian(x, sigma)

    list(exercise.heun(counted, noise(4.0), [4.0, 2.0, 1.0, 0.0], None))
    assert seen == [4.0, 2.0, 2.0, 1.0, 1.0]
