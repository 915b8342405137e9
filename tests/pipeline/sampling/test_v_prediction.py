"""v-prediction against diffusers and a Gaussian whose v is known; zero terminal SNR against the paper's algorithm."""

import math

import diffusers
import pytest
import torch
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr

from sd.denoiser import Denoiser, Guidance
from sd.pipeline.sampling.v_prediction import LAST_ALPHA, VDenoiser, predict_v, zero_snr_betas, zero_snr_schedule
from sd.samplers import SAMPLERS
from sd.schedule import SD1_SCHEDULE, scaled_linear_betas, sigma_list

MEAN, SPREAD = 0.7, 0.5
CONTEXT = torch.zeros(2, 1, 1, dtype=torch.float64)


def gaussian(x, sigma):
    return (SPREAD**2 * x + sigma**2 * MEAN) / (SPREAD**2 + sigma**2)


def v_unet(schedule):
    """The exact v of Gaussian data, from its definition: sqrt(a) * noise - sqrt(1 - a) * x0."""

    def unet(x, t, context):
        a = 1 / (1 + schedule.sigma_of(t[0].item()) ** 2)
        sigma = math.sqrt((1 - a) / a)
        x0 = gaussian(x / math.sqrt(a), sigma)
        noise = (x - math.sqrt(a) * x0) / math.sqrt(1 - a)
        return math.sqrt(a) * noise - math.sqrt(1 - a) * x0

    return unet


@pytest.mark.parametrize("schedule", [SD1_SCHEDULE, zero_snr_schedule()], ids=["sd1", "zero-snr"])
def test_the_denoiser_of_a_gaussian_is_its_known_one(schedule, tensors):
    denoise = VDenoiser(v_unet(schedule), CONTEXT, schedule=schedule)
    for t in (0, 1, 500, 900, 998, 999):
        sigma = schedule.sigma_of(t)
        (noise,) = tensors(1)
        x = MEAN + math.sqrt(SPREAD**2 + sigma**2) * noise
        # t is float32 in the U-Net's call, which changes sigma in its seventh digit
        torch.testing.assert_close(denoise(x, sigma), gaussian(x, sigma), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["euler", "dpmpp_2m", "heun", "unipc"])
def test_sampling_from_zero_snr_finds_the_gaussian(name, tensors):
    """From sigma 4519 the ODE ends at MEAN + SPREAD * noise, whatever the model's mean: Lin et al.'s figure 1."""
    schedule = zero_snr_schedule()
    sigmas = sigma_list(200, "karras", noise_schedule=schedule)
    (noise,) = tensors(1)
    denoise = VDenoiser(v_unet(schedule), CONTEXT, schedule=schedule)
    *_, (x, _) = SAMPLERS[name].run(denoise, noise * sigmas[0], sigmas, None)
    torch.testing.assert_close(x, MEAN + SPREAD * noise, atol=0.05, rtol=0.05)  # Euler's error over 200 steps


def test_whole_run_equals_diffusers(tensors):
    options = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    scheduler = diffusers.DDIMScheduler(
        **options, clip_sample=False, set_alpha_to_one=False, prediction_type="v_prediction"
    )
    scheduler.set_timesteps(20)
    (start,) = tensors(1, dtype=torch.float32)

    def unet(x, t, context=None):
        return torch.tanh(x * (0.5 + t.reshape(-1, 1, 1, 1) / 1000))

    theirs = start
    for t in scheduler.timesteps:
        theirs = scheduler.step(unet(theirs, t.float()), t, theirs).prev_sample
    sigmas = sigma_list(20, to_zero=False)
    denoise = VDenoiser(unet, torch.zeros(2, 1, 1))
    *_, (x, _) = SAMPLERS["ddim"].run(denoise, start * math.sqrt(1 + sigmas[0] ** 2), sigmas, None)
    ours = x / math.sqrt(1 + sigmas[-1] ** 2)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)  # float32 on both sides


def test_guidance_predicts_v(tensors):
    def unet(x, t, context):
        return torch.tanh(x) + context[:, :1, :1, None]

    cond, uncond = torch.full((2, 3, 1), 0.3), torch.full((2, 3, 1), -0.2)
    guidance = predict_v(Guidance(unet, cond, uncond, 5.0))
    (x,) = tensors(1, dtype=torch.float32)
    with_cond, without = VDenoiser(unet, cond)(x, 2.0), VDenoiser(unet, uncond)(x, 2.0)
    torch.testing.assert_close(guidance(x, 2.0), without + 5 * (with_cond - without))
    assert not torch.allclose(with_cond, Denoiser(unet, cond)(x, 2.0))


def test_betas_are_rescaled_as_in_the_paper():
    """Algorithm 1 of Lin et al. as diffusers has it, but for the last alpha, which is 0 there."""
    expected = rescale_zero_terminal_snr(scaled_linear_betas())
    ours = zero_snr_betas(scaled_linear_betas())
    torch.testing.assert_close(ours[:-1], expected[:-1], rtol=1e-9, atol=1e-12)
    assert expected[-1] == 1
    assert 0.7 < ours[-1] < 1


def test_the_schedule_begins_as_before_and_ends_in_almost_pure_noise():
    schedule = zero_snr_schedule()
    assert schedule.sigmas[0].item() == pytest.approx(SD1_SCHEDULE.sigmas[0].item(), rel=1e-9)
    assert schedule.sigmas[-1].item() == pytest.approx(math.sqrt((1 - LAST_ALPHA) / LAST_ALPHA), rel=1e-6)
    assert (schedule.sigmas.diff() > 0).all()
