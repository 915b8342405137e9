import torch

from sd.samplers import euler
from sd.schedule import sigma_list

generator = torch.Generator().manual_seed(0)
IMAGE, X = torch.randn(2, 2, 4, 8, 8, generator=generator).unbind(0)
MASK = torch.zeros(2, 1, 8, 8)
MASK[:, :, :, 4:] = 1


def halve(x, sigma):
    return x / 2


def test_the_estimate_is_the_image_where_the_mask_is_zero(exercise):
    x0 = exercise.Inpaint(halve, IMAGE, MASK)(X, 1.0)
    assert torch.equal(x0[..., :4], IMAGE[..., :4])
    assert torch.equal(x0[..., 4:], X[..., 4:] / 2)


def test_soft_edges_mix(exercise):
    kept = exercise.Inpaint(halve, IMAGE, torch.full((2, 1, 8, 8), 0.25)).keep(X)
    assert torch.allclose(kept, 0.75 * IMAGE + 0.25 * X, atol=1e-6)  # float32


def test_a_sampler_keeps_that_part_without_knowing_of_it(exercise):
    sigmas = sigma_list(8)
    *_, (latent, _) = euler(exercise.Inpaint(halve, IMAGE, MASK), X * sigmas[0], sigmas, None)
    assert torch.allclose(latent[..., :4], IMAGE[..., :4], atol=1e-5)


def test_wrappers_nest(exercise):
    left = 1 - MASK
    inner = exercise.Inpaint(halve, IMAGE, MASK)
    assert torch.equal(exercise.Inpaint(inner, -IMAGE, left)(X, 1.0)[..., 4:], -IMAGE[..., 4:])
