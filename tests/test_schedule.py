"""The schedule against diffusers, and against LDM's own arithmetic written out."""

import math

import diffusers
import numpy as np
import pytest
import torch

from sd.schedule import SCHEDULES, SD1_SCHEDULE, NoiseSchedule, scaled_linear_betas, sigma_list
from sd.utils.errors import UserError

t_of, sigma_of = SD1_SCHEDULE.t_of, SD1_SCHEDULE.sigma_of
SD15 = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


def test_alphas_cumprod_is_ldms_buffer():
    """make_beta_schedule("linear") and register_schedule, in numpy: float64 inside, float32 in the buffer."""
    ldm_betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=np.float64) ** 2
    assert (
        np.abs(scaled_linear_betas().numpy() - ldm_betas).max() < 1e-17
    )  # the last bit: torch and numpy multiply in another order
    buffer = torch.tensor(np.cumprod(1 - ldm_betas, axis=0), dtype=torch.float32)
    assert torch.equal(SD1_SCHEDULE.alphas_cumprod, buffer)


def test_alphas_cumprod_equals_diffusers():
    # diffusers multiplies the thousand factors in float32: half a unit in the last place of 1, a few times over
    assert (SD1_SCHEDULE.alphas_cumprod - diffusers.DDIMScheduler(**SD15).alphas_cumprod).abs().max() < 1e-6


def test_sigma_table():
    alphas = np.cumprod(1 - scaled_linear_betas().numpy())
    assert SD1_SCHEDULE.sigmas.numpy() == pytest.approx(
        np.sqrt(1 / alphas - 1), rel=1e-12
    )  # 1 - a loses 4 of 16 digits
    assert SD1_SCHEDULE.sigmas[[0, -1]].tolist() == pytest.approx([0.029167, 14.614641], abs=1e-6)


def test_time_of_a_tables_entry_is_exact():
    for t, sigma in enumerate(SD1_SCHEDULE.sigmas.tolist()):
        assert t_of(sigma) == t
        assert sigma_of(t) == sigma


def test_time_between_entries_is_log_linear():
    low, high = SD1_SCHEDULE.sigmas[[500, 501]].tolist()
    assert t_of(math.sqrt(low * high)) == pytest.approx(500.5, abs=1e-9)
    assert sigma_of(500.25) == pytest.approx(low**0.75 * high**0.25, rel=1e-12)
    for t in np.random.default_rng(0).uniform(0, 999, 200):
        assert t_of(sigma_of(t)) == pytest.approx(t, abs=1e-9)


def test_time_is_clamped_outside_of_the_table():
    assert t_of(0.001) == 0
    assert t_of(100) == 999


def test_time_equals_diffusers_to_rounding():
    euler = diffusers.EulerDiscreteScheduler(**SD15)
    log_sigmas = SD1_SCHEDULE.sigmas.log().numpy()
    for sigma in (0.03, 0.5, 1.0, 7.3, 14.6):
        assert t_of(sigma) == pytest.approx(float(euler._sigma_to_t(np.float64(sigma), log_sigmas)), abs=1e-6)


@pytest.mark.parametrize("shape", [(5, 4, 8, 8), (5, 7)])
def test_add_noise_equals_diffusers(shape):
    x0, noise = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0, 1, 250, 700, 999])
    expected = diffusers.DDPMScheduler(**SD15).add_noise(x0, noise, t)
    # diffusers takes 1 - a in float32, which at t = 0 is known to 7e-5 of itself, hence sqrt(1 - a) to 1e-6
    assert torch.allclose(SD1_SCHEDULE.add_noise(x0, noise, t), expected, rtol=0, atol=5e-6)


def test_add_noise_keeps_the_dtype_and_its_arguments():
    x0, noise = torch.ones(2, 2, 4, 8, 8, dtype=torch.bfloat16)
    noisy = SD1_SCHEDULE.add_noise(x0, noise, torch.tensor([10, 990]))
    assert noisy.dtype == torch.bfloat16
    assert (x0 == 1).all()
    assert (noise == 1).all()


@pytest.mark.parametrize("steps", [1, 2, 4, 5, 10, 20, 50, 100, 200, 500])
def test_ldm_list_is_ldms_where_steps_divide_1000(steps):
    """make_ddim_timesteps("uniform") and make_ddim_sampling_parameters, with alphas as sigmas."""
    times = np.asarray(list(range(0, 1000, 1000 // steps))) + 1
    table = SD1_SCHEDULE.sigmas.numpy()
    assert sigma_list(steps, to_zero=False) == table[times][::-1].tolist() + [table[0]]
    assert sigma_list(steps) == table[times][::-1].tolist() + [0]


def test_ldm_list_is_diffusers_at_any_number_of_steps():
    ddim = diffusers.DDIMScheduler(**SD15)
    for steps in range(1, 1000):
        ddim.set_timesteps(steps)
        assert sigma_list(steps)[:-1] == SD1_SCHEDULE.sigmas[ddim.timesteps].tolist()


def test_a_thousand_steps_visit_every_time():
    assert sigma_list(1000) == SD1_SCHEDULE.sigmas.tolist()[::-1] + [0]


@pytest.mark.parametrize("steps", [1, 2, 5, 20, 50])
@pytest.mark.parametrize("schedule", ["karras", "exponential"])
def test_karras_and_exponential_equal_diffusers(schedule, steps):
    peer = diffusers.DPMSolverMultistepScheduler(**SD15, **{f"use_{schedule}_sigmas": True})
    peer.set_timesteps(steps)
    # float32 there, from a float32 alphas_cumprod: 1e-5 of the smallest sigma
    assert sigma_list(steps, schedule) == pytest.approx(peer.sigmas.tolist(), rel=3e-5)


def test_lists_that_do_not_end_at_zero_reach_the_smallest_level_in_as_many_steps():
    for schedule in ("karras", "exponential", "sgm_uniform"):
        levels = sigma_list(10, schedule, to_zero=False)
        assert levels[0] == pytest.approx(sigma_of(999))
        assert levels[-1] == sigma_of(0)
    # even in their measures all the way
    for schedule, measure in (("karras", lambda sigma: sigma ** (1 / 7)), ("exponential", np.log)):
        gaps = np.diff(measure(np.array(sigma_list(10, schedule, to_zero=False))))
        assert gaps == pytest.approx((measure(sigma_of(0)) - measure(sigma_of(999))) / 10)


def test_sgm_uniform_is_even_in_time():
    assert [t_of(sigma) for sigma in sigma_list(3, "sgm_uniform")[:-1]] == pytest.approx([999, 666, 333], abs=1e-9)


def test_lcm_list_is_diffusers():
    lcm = diffusers.LCMScheduler(**SD15)
    for steps in range(1, 51):
        lcm.set_timesteps(steps)
        assert [t_of(sigma) for sigma in sigma_list(steps, "lcm")[:-1]] == lcm.timesteps.tolist()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_lists_fall_and_are_as_long_as_asked(schedule):
    for steps in (1, 2, 3, 7, 30, 50) + ((999, 1000) if schedule != "lcm" else ()):
        for to_zero in (True, False):
            levels = sigma_list(steps, schedule, to_zero)
            assert len(levels) == steps + 1
            assert levels[-1] == (0 if to_zero else sigma_of(0))
            assert all(a > b for a, b in zip(levels[:-1], levels[1:-1] + [0]))
            assert levels[-2] >= levels[-1]  # equal in one case: LDM's list of 1000 has visited t = 0 already


@pytest.mark.parametrize("steps", [0, -1, 1001, 2.5, math.nan, "20", None])
def test_steps_out_of_bounds_are_told_so(steps):
    with pytest.raises(UserError, match=rf"invalid number of steps: {steps} \(expected an integer from 1 to 1000\)"):
        sigma_list(steps)


def test_unknown_schedule_and_too_many_lcm_steps_are_told_so():
    with pytest.raises(UserError, match="unknown schedule 'cosine'; choose from ldm, karras"):
        sigma_list(20, "cosine")
    with pytest.raises(UserError, match=r"invalid number of steps: 51 \(the lcm schedule has at most 50"):
        sigma_list(51, "lcm")


def test_another_model_is_another_schedule_object():
    peer = diffusers.DDPMScheduler(num_train_timesteps=500, beta_schedule="squaredcos_cap_v2")
    cosine = NoiseSchedule(peer.betas)
    assert len(cosine) == 500
    # float32 there; the last levels are where a nears 0, so only the difference is bounded
    assert (cosine.alphas_cumprod - peer.alphas_cumprod).abs().max() < 1e-6
    x0, noise = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0, 250, 499])
    # as above: sqrt(1 - a) in float32 at t = 0
    assert torch.allclose(cosine.add_noise(x0, noise, t), peer.add_noise(x0, noise, t), rtol=0, atol=5e-6)
    assert cosine.t_of(cosine.sigma_of(123)) == 123


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_list_takes_its_levels_from_the_noise_schedule_it_is_given(schedule):
    shorter = NoiseSchedule(scaled_linear_betas()[:500])
    levels = sigma_list(10, schedule, to_zero=False, noise_schedule=shorter)
    assert len(levels) == 11
    assert levels[0] <= shorter.sigma_of(499) * (1 + 1e-12)  # the largest, to the rounding of value**7
    assert shorter.t_of(levels[0]) >= 450
    assert levels[-1] == shorter.sigma_of(0)
    with pytest.raises(UserError, match="expected an integer from 1 to 500"):
        sigma_list(501, schedule, noise_schedule=shorter)
