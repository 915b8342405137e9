"""CFG++ against its formula, and what it is without guidance."""

from itertools import pairwise

import torch

from sd.denoiser import Denoiser
from sd.pipeline.sampling.cfgpp import UncondGuidance, UncondInpaint, ddim_cfgpp, euler_cfgpp
from sd.samplers import SAMPLERS
from sd.schedule import sigma_list


def unet(x, t, context):
    """Predicts noise that depends on x, the time and the context."""
    return torch.tanh(x * (0.5 + t.view(-1, 1, 1, 1) / 1000)) + context[:, :1, :1, None]


COND, UNCOND = torch.full((2, 3, 1), 0.3), torch.full((2, 3, 1), -0.2)


def test_euler_cfgpp_is_the_papers_algorithm(tensors):
    sigmas = sigma_list(12)
    start = tensors(1, dtype=torch.float32)[0] * sigmas[0]
    *_, (ours, _) = euler_cfgpp(UncondGuidance(unet, COND, UNCOND, 7.5), start, sigmas, None)
    x = start
    for sigma, to in pairwise(sigmas):
        cond, uncond = Denoiser(unet, COND)(x, sigma), Denoiser(unet, UNCOND)(x, sigma)
        eps_uncond = (x - uncond) / sigma
        x = uncond + 0.6 * (cond - uncond) + to * eps_uncond
    # one batch of four against two of two, both in float32
    torch.testing.assert_close(ours, x, rtol=1e-5, atol=1e-5)


def test_without_guidance_it_is_ddim(tensors, denoise):
    sigmas = sigma_list(12, to_zero=False)
    (start,) = tensors(1)
    *_, (ours, _) = ddim_cfgpp(denoise, start, sigmas, None)
    *_, (expected, _) = SAMPLERS["ddim"].run(denoise, start, sigmas, None)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


def test_outside_of_the_interval_the_estimate_is_the_conditional_one(tensors):
    guidance = UncondGuidance(unet, COND, UNCOND, 7.5, interval=(0.0, 1.0))
    (x,) = tensors(1, dtype=torch.float32)
    expected = Denoiser(unet, COND)(x, 2.0)
    for estimate in guidance.with_uncond(x, 2.0):
        torch.testing.assert_close(estimate, expected)
    assert not torch.allclose(*guidance.with_uncond(x, 0.5))


def test_rescale_takes_back_the_contrast(tensors):
    (x,) = tensors(1, dtype=torch.float32)
    x0, _ = UncondGuidance(unet, COND, UNCOND, 25.0, rescale=1.0).with_uncond(x, 2.0)
    cond = Denoiser(unet, COND)(x, 2.0)
    torch.testing.assert_close((x - x0).std((1, 2, 3)), (x - cond).std((1, 2, 3)))


def test_inpainting_keeps_both_estimates(tensors):
    known, x = tensors(2, dtype=torch.float32)
    mask = torch.zeros(2, 1, 8, 8)
    mask[..., 4:] = 1
    inpaint = UncondInpaint(UncondGuidance(unet, COND, UNCOND, 7.5), known, mask)
    for estimate in inpaint.with_uncond(x, 1.0):
        assert torch.equal(estimate[..., :4], known[..., :4])
        assert not torch.equal(estimate[..., 4:], known[..., 4:])
