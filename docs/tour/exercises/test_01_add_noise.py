import math

import torch

from sd.schedule import SD1_SCHEDULE


def latents(seed, count=3):
    return torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def test_each_latent_gets_the_noise_of_its_own_time(exercise):
    x0, noise, times = latents(0), latents(1), torch.tensor([0, 400, 999])
    noisy = exercise.add_noise(x0, noise, times)
    assert noisy.shape == x0.shape
    for i, t in enumerate(times):
        a = SD1_SCHEDULE.alphas_cumprod[t].item()
        expected = math.sqrt(a) * x0[i] + math.sqrt(1 - a) * noise[i]
        # float32: 1 - a has lost three of its seven digits where a is near 1
        assert torch.allclose(noisy[i], expected, atol=1e-4)


def test_the_variance_stays_one(exercise):
    x0, noise = latents(0, 64), latents(1, 64)
    for t in (0, 500, 999):
        variance = exercise.add_noise(x0, noise, torch.full((64,), t)).var().item()
        assert abs(variance - 1) < 0.05  # four standard errors of 16,384 numbers
