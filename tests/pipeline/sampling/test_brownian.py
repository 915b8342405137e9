"""Brownian noise against torchsde's tree, k-diffusion's runs with it, and the law of Brownian motion."""

import math
from itertools import pairwise

import pytest
import torch

from sd.pipeline.sampler_names import ALL_SAMPLERS
from sd.pipeline.sampling.brownian import BrownianNoise, BrownianPath, noise_levels
from sd.pipeline.sampling.philox import PhiloxGenerator
from sd.schedule import sigma_list

SHAPE = (4, 8, 8)


@pytest.mark.parametrize("seed", [0, 42, 2**32 + 5])
def test_increments_are_those_of_torchsdes_tree(seed):
    torchsde = pytest.importorskip("torchsde")
    tree = torchsde.BrownianTree(t0=0.0291675, w0=torch.zeros(SHAPE), t1=14.6146412, entropy=seed)
    path = BrownianPath(seed, SHAPE, 0.0291675, 14.6146412)
    times = [0.0291675, 0.03, 0.5, 0.500001, 1.7, 7.3219, 14.6146, 14.6146412]
    for low, high in [*pairwise(times), (0.03, 14.0), (0.5, 14.6146412)]:
        # sums of up to 25 float32 numbers of size 3
        torch.testing.assert_close(path(high) - path(low), tree(low, high), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "theirs", "options"),
    [
        ("dpmpp_sde", "sample_dpmpp_sde", {}),
        ("dpmpp_2m_sde", "sample_dpmpp_2m_sde", {}),
        ("dpmpp_2m_sde_heun", "sample_dpmpp_2m_sde", {"solver_type": "heun"}),
        ("dpmpp_3m_sde", "sample_dpmpp_3m_sde", {}),
    ],
)
@pytest.mark.parametrize("steps", [5, 20])
def test_whole_runs_equal_k_diffusions_with_its_tree(name, theirs, options, steps, denoise, tensors, k_sampling):
    pytest.importorskip("torchsde")
    sigmas = sigma_list(steps, "karras")
    start = tensors(1, (2, *SHAPE), torch.float32)[0] * sigmas[0]
    seeds = [5, 6]
    *_, (ours, _) = ALL_SAMPLERS[name].run(denoise, start, sigmas, BrownianNoise(name, sigmas, seeds, SHAPE))
    levels = torch.tensor(sigmas)
    sampler = k_sampling.BrownianTreeNoiseSampler(start, levels[levels > 0].min(), levels.max(), seed=seeds)
    expected = getattr(k_sampling, theirs)(
        lambda x, sigma: denoise(x, sigma[0].item()), start, levels, disable=True, noise_sampler=sampler, **options
    )
    # float32 on both sides: measured 2e-7 to 3e-6
    assert ((ours - expected).norm() / expected.norm()).item() < 1e-4


def test_a_path_has_the_law_of_brownian_motion():
    """The increments over disjoint intervals are independent and of a variance equal to their length."""
    path = BrownianPath(1, (200_000,), 0.1, 8.0)
    first, second = path(1.3) - path(0.1), path(5.0) - path(1.3)
    error = 5 / math.sqrt(200_000)  # five standard errors
    assert first.square().mean().item() / 1.2 == pytest.approx(1, abs=math.sqrt(2) * error)
    assert second.square().mean().item() / 3.7 == pytest.approx(1, abs=math.sqrt(2) * error)
    assert (first * second).mean().item() / math.sqrt(1.2 * 3.7) == pytest.approx(0, abs=error)


def test_a_step_taken_in_two_halves_follows_the_same_path():
    sigmas = [14.6, 3.0, 0.5, 0.0]
    whole = BrownianNoise("dpmpp_2m_sde", sigmas, [3], SHAPE)
    halves = BrownianNoise("dpmpp_2m_sde", [14.6, 8.0, 3.0, 1.0, 0.5, 0.0], [3], SHAPE)
    for sigma, middle, to in ((14.6, 8.0, 3.0), (3.0, 1.0, 0.5)):
        both = halves() * math.sqrt(sigma - middle) + halves() * math.sqrt(middle - to)
        torch.testing.assert_close(both / math.sqrt(sigma - to), whole(), rtol=1e-4, atol=1e-5)


def test_an_images_noise_depends_on_its_seed_alone():
    sigmas = sigma_list(6)
    both, alone = (BrownianNoise("dpmpp_3m_sde", sigmas, seeds, SHAPE) for seeds in ([1, 2], [2]))
    for _ in range(5):
        first, second = both()
        assert torch.equal(second, alone()[0])
        assert not torch.equal(first, second)


def test_the_paths_take_the_webuis_noise_of_a_gpu_too():
    path = BrownianPath(0, SHAPE, 0.03, 14.6, randn=lambda seed, shape: PhiloxGenerator(seed).randn(shape))
    assert not torch.equal(path(14.6), BrownianPath(0, SHAPE, 0.03, 14.6)(14.6))


def test_dpmpp_sde_takes_its_noise_at_the_geometric_middles():
    found = noise_levels("dpmpp_sde", [8.0, 2.0, 0.5])
    assert found == pytest.approx([8.0, 4.0, 2.0, 1.0, 0.5], rel=1e-6)
    assert noise_levels("dpmpp_2m_sde", [8.0, 2.0]) == [8.0, 2.0]
