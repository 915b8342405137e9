"""Samplers and schedules by other programs' names."""

import pytest

from sd.pipeline.sampler_names import (
    ALL_SAMPLERS,
    EXTRA_SAMPLERS,
    WEBUI_SCHEDULES,
    find_foreign_sampler,
    find_sampler,
)
from sd.pipeline.sampling.schedules import ALL_SCHEDULES
from sd.pipeline.settings import SCHEDULE_LABELS, GenerationSettings
from sd.utils.errors import UserError

# The webui 1.10's labels and aliases, names of ComfyUI, stable-diffusion.cpp, diffusers and InvokeAI.
NAMES = [
    ("DPM++ 2S a", "dpmpp_2s_a", "karras"),
    ("DPM++ 2S a Karras", "dpmpp_2s_a", "karras"),
    ("DPM++ 3M SDE Exponential", "dpmpp_3m_sde", "exponential"),
    ("DPM++ 3M SDE Karras", "dpmpp_3m_sde", "karras"),
    ("DPM++ 2M SDE Heun Karras", "dpmpp_2m_sde_heun", "karras"),
    ("DPM2 a Karras", "dpm2_a", "karras"),
    ("LMS Karras", "lms", "karras"),
    ("DPM fast", "dpm_fast", "normal"),
    ("DPM adaptive", "dpm_adaptive", "normal"),
    ("Restart", "restart", "karras"),
    ("DDIM CFG++", "ddim_cfgpp", "ldm"),
    ("k_lms", "lms", "normal"),
    ("k_dpm_2_a", "dpm2_a", "karras"),
    ("k_dpm_ad", "dpm_adaptive", "normal"),
    ("k_dpmpp_2m_ka", "dpmpp_2m", "karras"),
    ("k_dpmpp_3m_sde", "dpmpp_3m_sde", "exponential"),
    ("k_euler_ancestral", "euler_a", "ldm"),
    ("dpm_2_ancestral", "dpm2_a", "karras"),
    ("dpmpp_2s_ancestral", "dpmpp_2s_a", "karras"),
    ("dpmpp_3m_sde_gpu", "dpmpp_3m_sde", "exponential"),
    ("dpmpp_2m_sde_heun_gpu", "dpmpp_2m_sde_heun", "exponential"),
    ("euler_cfg_pp", "euler_cfgpp", "normal"),
    ("uni_pc_bh2", "unipc", "ldm"),
    ("ipndm", "ipndm", "normal"),
    ("deis", "deis", "sgm_uniform"),
    ("euler discrete", "euler", "normal"),
    ("euler_a karras", "euler_a", "karras"),
    ("dpm++2s_a", "dpmpp_2s_a", "karras"),
    ("ddim_trailing", "ddim", "trailing"),
    ("tcd", "tcd", "lcm"),
    ("LMSDiscreteScheduler", "lms", "normal"),
    ("KDPM2AncestralDiscreteScheduler", "dpm2_a", "karras"),
    ("DEISMultistepScheduler", "deis", "sgm_uniform"),
    ("IPNDMScheduler", "ipndm", "normal"),
    ("TCDScheduler", "tcd", "lcm"),
    ("kdpm_2_a_k", "dpm2_a", "karras"),
    ("dpmpp_sde_k", "dpmpp_sde", "karras"),
    ("lms_k", "lms", "karras"),
    ("euler_k", "euler", "karras"),
]


@pytest.mark.parametrize(("name", "sampler", "schedule"), NAMES)
def test_other_programs_names(name, sampler, schedule):
    assert find_sampler(name) == (sampler, schedule)


@pytest.mark.parametrize("name", EXTRA_SAMPLERS)
def test_every_name_and_label_is_found(name):
    sampler = EXTRA_SAMPLERS[name]
    assert find_sampler(name) == find_sampler(sampler.label) == (name, sampler.schedule)


def test_every_schedule_is_found_by_its_name_and_label_apart_and_at_the_end():
    assert SCHEDULE_LABELS.keys() == ALL_SCHEDULES.keys()
    for name, label in SCHEDULE_LABELS.items():
        for sampler in ALL_SAMPLERS:
            assert find_sampler(sampler, name) == find_sampler(sampler, label) == (sampler, name)
            assert find_sampler(f"{ALL_SAMPLERS[sampler].label} {label}") == (sampler, name)


@pytest.mark.parametrize(
    ("name", "schedule", "found"),
    [
        ("Euler a", "Automatic", ("euler_a", "normal")),
        ("Euler a", "", ("euler_a", "normal")),
        ("Euler", "Uniform", ("euler", "normal")),
        ("DPM++ 2M", "Uniform", ("dpmpp_2m", "normal")),
        ("DPM++ 2M Karras", "", ("dpmpp_2m", "karras")),
        ("DPM++ 2M Karras", "Automatic", ("dpmpp_2m", "karras")),
        ("LMS", "Exponential", ("lms", "exponential")),
        ("DDIM", "Automatic", ("ddim", "ldm")),
        ("PLMS", "Uniform", ("plms", "ldm")),
        ("LCM", "Automatic", ("lcm", "lcm")),
        ("DPM fast", "Automatic", ("dpm_fast", "normal")),
        ("Heun", "Align Your Steps", ("heun", "align_your_steps")),
    ],
)
def test_names_as_the_webui_means_them(name, schedule, found):
    assert find_foreign_sampler(name, schedule) == found


@pytest.mark.parametrize(("sampler", "schedule"), WEBUI_SCHEDULES.items())
def test_automatic_is_the_webuis_choice(sampler, schedule):
    assert find_foreign_sampler(ALL_SAMPLERS[sampler].label, "Automatic") == (sampler, schedule)
    assert find_foreign_sampler(ALL_SAMPLERS[sampler].label, "", missing="uniform") == (sampler, "normal")


@pytest.mark.parametrize("name", ["heunpp2", "ipndm_v", "dpmpp_2s", "k", "karras", "uniform"])
def test_other_algorithms_are_not_taken_for_ours(name):
    for find in (find_sampler, find_foreign_sampler):
        with pytest.raises(UserError, match=f"unknown sampler '{name}'; choose from ddpm, .*tcd"):
            find(name)


def test_the_settings_take_every_sampler_and_schedule():
    for sampler in ALL_SAMPLERS:
        assert GenerationSettings(sampler=sampler).sampler == sampler
    for schedule in ALL_SCHEDULES:
        assert GenerationSettings(sampler="euler", schedule=schedule).schedule == schedule
