"""The door to the U-Net and what wraps around it: each against the formula of its source, on eps, written out."""

import math

import pytest
import torch

from sd.attention import attention
from sd.denoiser import Denoiser, Guidance, Inpaint, equal_lengths, sigmas_between
from sd.schedule import SD1_SCHEDULE, NoiseSchedule, scaled_linear_betas, sigma_list

B = 3


class Unet(torch.nn.Module):
    """A small function of everything a U-Net is given, which remembers what it was given."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x, t, context):
        self.seen.append((x, t, context))
        text = context.float().mean(dim=(1, 2)).view(-1, 1, 1, 1)
        extra = x[:, 4:].float().mean(dim=(1, 2, 3)).view(-1, 1, 1, 1) if x.shape[1] > 4 else 0
        return torch.tanh(x[:, :4] + text + extra + t.view(-1, 1, 1, 1) / 1000).to(x.dtype)


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


X = rand(B, 4, 8, 8)
COND, UNCOND = rand(B, 77, 16, seed=1), rand(B, 77, 16, seed=2)
SIGMA = SD1_SCHEDULE.sigma_of(421)
# One float32 sum or product more or less, on numbers of size one times sigma (1.35).
ROUNDING = 2e-6


def eps_of(context, x=X, t=421.0, extra=None):
    scaled = x / math.sqrt(1 + SIGMA**2)
    scaled = scaled if extra is None else torch.cat([scaled, extra], 1)
    return Unet()(scaled, torch.full((len(x),), t), context)


def test_denoiser_is_x_less_the_predicted_noise():
    assert torch.allclose(Denoiser(Unet(), COND)(X, SIGMA), X - SIGMA * eps_of(COND), atol=ROUNDING)


def test_time_reaches_the_unet_as_the_exact_whole_number():
    unet = Unet()
    denoise = Denoiser(unet, COND)
    for sigma in sigma_list(50)[:-1]:
        denoise(X, sigma)
    times = [t for _, t, _ in unet.seen]
    assert all(t.shape == (B,) for t in times)
    assert [t[0].item() for t in times] == list(range(981, 0, -20))


def test_the_time_is_that_of_the_schedule_it_is_given():
    every_other = NoiseSchedule(1 - (1 - scaled_linear_betas()).view(-1, 2).prod(dim=1))  # T = 500, the same levels
    unet = Unet()
    sigma = every_other.sigma_of(210)
    Denoiser(unet, COND, schedule=every_other)(X, sigma)
    Guidance(unet, COND, UNCOND, 7.5, schedule=every_other)(X, sigma)
    Guidance(unet, COND, UNCOND, 1.0, schedule=every_other)(X, sigma)
    # the same products in another order: the last digits of float64
    assert [t[0].item() for _, t, _ in unet.seen] == [210] * 3
    assert SD1_SCHEDULE.t_of(sigma) == pytest.approx(421, abs=1e-9)
    assert sigmas_between(0.25, 0.75, every_other)[1] == every_other.sigma_of(499 * 0.75)


def test_noisy_table_entry_comes_to_the_unet_at_unit_variance():
    unet = Unet()
    sigma = SD1_SCHEDULE.sigmas[999].item()
    Denoiser(unet, torch.zeros(1, 77, 16))(rand(1, 4, 64, 64) * math.sqrt(1 + sigma**2), sigma)
    # 16,384 numbers, four standard errors
    assert unet.seen[0][0].std().item() == pytest.approx(1, abs=4 / math.sqrt(2 * 16384))


def test_unet_runs_in_the_contexts_dtype_and_x_keeps_its_own():
    unet = Unet()
    x0 = Denoiser(unet, COND.bfloat16())(X, SIGMA)
    assert unet.seen[0][0].dtype == torch.bfloat16
    eps = Unet()((X / math.sqrt(1 + SIGMA**2)).bfloat16(), torch.full((B,), 421.0), COND.bfloat16())
    assert torch.equal(x0, X - SIGMA * eps.float())  # nothing but eps itself was rounded to 8 bits


def test_nine_channels_are_the_scaled_x_the_mask_and_the_masked_latent():
    unet, extra = Unet(), rand(B, 5, 8, 8, seed=3)
    x0 = Denoiser(unet, COND, extra)(X, SIGMA)
    seen = unet.seen[0][0]
    assert seen.shape == (B, 9, 8, 8)
    assert torch.allclose(seen[:, :4], X / math.sqrt(1 + SIGMA**2), atol=ROUNDING)
    assert torch.equal(seen[:, 4:], extra)
    assert torch.allclose(x0, X - SIGMA * eps_of(COND, extra=extra), atol=ROUNDING)


@pytest.mark.parametrize("scale", [0.0, 3.0, 7.5, -1.0])
def test_guidance_is_ldms_formula_on_eps(scale):
    uncond, cond = eps_of(UNCOND), eps_of(COND)
    expected = X - SIGMA * (uncond + scale * (cond - uncond))
    # the rounding of eps, scale times
    assert torch.allclose(Guidance(Unet(), COND, UNCOND, scale)(X, SIGMA), expected, atol=10 * ROUNDING)


def test_guidance_makes_one_call_with_uncond_first():
    unet, extra = Unet(), rand(B, 5, 8, 8, seed=3)
    Guidance(unet, COND, UNCOND, 7.5, extra)(X, SIGMA)
    ((x, t, context),) = unet.seen
    assert x.shape == (2 * B, 9, 8, 8)
    assert t.shape == (2 * B,)
    assert torch.equal(x[:B], x[B:])
    assert torch.equal(context, torch.cat([UNCOND, COND]))


def test_no_uncond_at_scale_one():
    unet = Unet()
    x0 = Guidance(unet, COND, UNCOND, 1.0)(X, SIGMA)
    assert [len(x) for x, _, _ in unet.seen] == [B]
    assert torch.equal(x0, Denoiser(unet, COND)(X, SIGMA))


def test_guidance_interval():
    unet = Unet()
    denoise = Guidance(unet, COND, UNCOND, 7.5, interval=(0.5, 5.0))
    for sigma in (5.1, 5.0, 1.0, 0.5, 0.4):
        denoise(X, sigma)
    assert [len(x) for x, _, _ in unet.seen] == [B, 2 * B, 2 * B, 2 * B, B]


def test_an_interval_of_the_whole_way_leaves_nothing_out():
    assert sigmas_between(0, 1) == (0.0, math.inf)


@pytest.mark.parametrize("schedule", ["ldm", "sgm_uniform"])
def test_an_interval_is_a_share_of_evenly_spaced_steps(schedule):
    sigmas = sigma_list(50, schedule)[:-1]
    lowest, highest = sigmas_between(0.2, 0.7)
    inside = [i for i, sigma in enumerate(sigmas) if lowest <= sigma <= highest]
    assert inside == list(range(inside[0], inside[-1] + 1))
    assert abs(inside[0] - 10) <= 1  # LDM's first step is 20 below the table's end, one step of 50
    assert abs(inside[-1] - 34) <= 1


def test_an_interval_is_measured_in_t():
    lowest, highest = sigmas_between(0.25, 0.75)
    assert SD1_SCHEDULE.t_of(highest) == pytest.approx(999 * 0.75)
    assert SD1_SCHEDULE.t_of(lowest) == pytest.approx(999 * 0.25)
    assert sigmas_between(0.5, 0.5)[0] == sigmas_between(0.5, 0.5)[1]


@pytest.mark.parametrize("amount", [0.3, 1.0])
def test_rescale_is_diffusers_formula_on_eps(amount):
    """rescale_noise_cfg: the deviation of each image's eps, back to what cond alone has."""
    uncond, cond = eps_of(UNCOND), eps_of(COND)
    guided = uncond + 7.5 * (cond - uncond)
    restored = guided * (cond.std(dim=[1, 2, 3], keepdim=True) / guided.std(dim=[1, 2, 3], keepdim=True))
    expected = X - SIGMA * (amount * restored + (1 - amount) * guided)
    x0 = Guidance(Unet(), COND, UNCOND, 7.5, rescale=amount)(X, SIGMA)
    assert torch.allclose(x0, expected, atol=10 * ROUNDING)


@pytest.mark.parametrize(("a", "b", "together"), [(77, 77, 77), (77, 231, 231), (154, 231, 462), (1, 77, 77)])
def test_contexts_of_two_lengths_become_one(a, b, together):
    a, b = equal_lengths(rand(B, a, 16), rand(B, b, 16))
    assert a.shape == b.shape == (B, together, 16)


def test_repeating_a_context_changes_nothing():
    q, context = rand(B, 20, 16), rand(B, 154, 16, seed=1)
    longer, _ = equal_lengths(context, rand(B, 231, 16))
    assert longer.shape[1] == 462
    # the softmax's sum in another order
    assert torch.allclose(attention(q, longer, longer, 2), attention(q, context, context, 2), atol=1e-6)


def test_guidance_takes_a_long_prompt():
    long = rand(B, 231, 16, seed=4)
    unet = Unet()
    Guidance(unet, long, UNCOND, 7.5)(X, SIGMA)
    assert torch.equal(unet.seen[0][2][B:], long)
    assert torch.equal(unet.seen[0][2][:B], UNCOND.repeat(1, 3, 1))


def test_inpaint_keeps_exactly_and_generates_exactly():
    known = rand(B, 4, 8, 8, seed=5) * 1e3
    mask = (rand(B, 1, 8, 8, seed=6) > 0).float()
    inner = Denoiser(Unet(), COND)
    denoise = Inpaint(inner, known, mask)
    masked = mask.bool().expand_as(X)
    for result, free in ((denoise(X, SIGMA), inner(X, SIGMA)), (denoise.keep(X), X)):
        assert torch.equal(result[masked], free[masked])
        assert torch.equal(result[~masked], known[~masked])


def test_inpaint_blends_along_a_soft_edge():
    known, mask = rand(B, 4, 8, 8, seed=5), torch.full((B, 1, 8, 8), 0.25)
    blended = Inpaint(None, known, mask).keep(X)
    assert torch.allclose(blended, 0.25 * X + 0.75 * known, atol=ROUNDING)
