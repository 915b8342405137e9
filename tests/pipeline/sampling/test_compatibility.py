"""The same image as the webui and ComfyUI: their starts, noises and step lists, written out from their sources."""

import math

import pytest
import torch

from sd.pipeline.metadata.settings_infotext import read_settings, to_infotext
from sd.pipeline.noise import SeededNoise
from sd.pipeline.sampler_names import ALL_SAMPLERS, ETA_SAMPLERS
from sd.pipeline.sampling.compatibility import sampler_noise, sigmas_from_image, start_scale, whole_sigmas
from sd.pipeline.sampling.philox import PhiloxGenerator
from sd.pipeline.sampling.schedules import sigmas_for
from sd.pipeline.settings import GenerationSettings
from sd.schedule import SD1_SCHEDULE, sigma_list
from sd.utils.errors import UserError

SHAPE = (4, 8, 8)
SEED0 = [-0.92466259, -0.42534415, -2.6438457, 0.14518388]


def of(sampler="euler_a", **more):
    return GenerationSettings(prompt="x", seed=1, width=64, height=64, sampler=sampler, **more)


def from_image(settings, strength, second_pass=False):
    return sigmas_from_image(settings, settings.steps, strength, SD1_SCHEDULE, second_pass)


def test_the_noise_of_a_gpu_begins_with_its_published_numbers():
    for rng in ("gpu", "nv"):
        first = SeededNoise([0], SHAPE, rng=rng)().flatten()[:4]
        torch.testing.assert_close(first, torch.tensor(SEED0), rtol=0, atol=1e-6)  # to the digits published


def test_later_noise_continues_the_generator_and_starts_anew_with_a_seed_delta():
    generator = PhiloxGenerator(7)
    expected = [generator.randn(SHAPE) for _ in range(3)]
    noise = SeededNoise([7], SHAPE, rng="nv")
    assert all(torch.equal(noise()[0], one) for one in expected)
    delta = SeededNoise([7], SHAPE, rng="nv", seed_delta=31337)
    assert torch.equal(delta()[0], expected[0])
    other = PhiloxGenerator(7 + 31337)
    assert all(torch.equal(delta()[0], other.randn(SHAPE)) for _ in range(2))


def test_variations_come_from_the_same_source():
    plain, other = (SeededNoise([seed], SHAPE, rng="nv")() for seed in (1, 2))
    assert torch.equal(SeededNoise([1], SHAPE, variation_seeds=[2], strength=1e-9, rng="nv")().round(decimals=4),
                       plain.round(decimals=4))  # fmt: skip
    torch.testing.assert_close(
        SeededNoise([1], SHAPE, variation_seeds=[2], strength=1.0, rng="nv")(), other, rtol=1e-4, atol=1e-4
    )


def test_the_webui_begins_at_sigma_and_its_vp_samplers_do_not():
    sigma = 14.6
    assert start_scale(of(), sigma) == math.sqrt(1 + sigma**2)
    assert start_scale(of(compat="comfyui"), sigma) == math.sqrt(1 + sigma**2)
    assert start_scale(of(compat="webui"), sigma) == sigma
    assert start_scale(of("ddim", compat="webui"), sigma) == math.sqrt(1 + sigma**2)


@pytest.mark.parametrize("strength", [0.0, 0.3, 0.5, 0.75, 1.0])
def test_steps_from_an_image_are_the_webuis(strength):
    """The webui: t_enc = int(min(strength, 0.999) * steps); sigmas[steps - t_enc - 1:]."""
    sigmas = sigma_list(20, "karras")
    t_enc = int(min(strength, 0.999) * 20)
    assert from_image(of(schedule="karras", steps=20, compat="webui"), strength) == sigmas[20 - t_enc - 1 :]


@pytest.mark.parametrize("strength", [0.3, 0.5, 0.7, 1.0])
def test_a_second_pass_has_the_webuis_steps(strength):
    """The webui: steps = int(asked / min(strength, 0.999)); sigmas[steps - (asked - 1) - 1:]."""
    steps = int(15 / min(strength, 0.999))
    expected = sigma_list(steps, "karras")[steps - 15 :]
    assert from_image(of(schedule="karras", steps=15, compat="webui"), strength, second_pass=True) == expected


@pytest.mark.parametrize("strength", [0.3, 0.7, 1.0])
def test_steps_from_an_image_are_comfyuis(strength):
    """ComfyUI: calculate_sigmas(int(steps / denoise))[-(steps + 1):]."""
    found = from_image(of(schedule="karras", steps=15, compat="comfyui"), strength)
    assert found == sigma_list(int(15 / strength), "karras")[-16:]
    assert from_image(of(compat="comfyui"), 0.0) == [0.0]


def test_steps_from_an_image_are_our_own_otherwise():
    assert from_image(of(schedule="karras", steps=20), 0.75) == sigma_list(20, "karras")[5:]


def test_some_samplers_leave_the_last_level_but_one_out():
    plain = sigmas_for(11, "karras")
    expected = [*plain[:-2], 0.0]
    assert whole_sigmas(of("dpm2", schedule="karras", compat="webui"), 10, SD1_SCHEDULE) == expected
    assert whole_sigmas(of("dpmpp_3m_sde", schedule="karras", compat="webui"), 10, SD1_SCHEDULE) == expected
    assert whole_sigmas(of("unipc", schedule="karras", compat="comfyui"), 10, SD1_SCHEDULE) == expected
    assert whole_sigmas(of("dpm2", schedule="karras"), 10, SD1_SCHEDULE) == sigmas_for(10, "karras")


@pytest.mark.parametrize("rng", ["cpu", "nv"])
def test_a_whole_run_of_an_sde_sampler_is_k_diffusions_as_the_webui_calls_it(rng, denoise, k_sampling, monkeypatch):
    """From pure noise and from an image; the webui makes its paths from all of the levels."""
    brownian = pytest.importorskip("torchsde._brownian.brownian_interval")
    if rng == "nv":  # as the webui replaces it
        monkeypatch.setattr(
            brownian, "_randn", lambda size, dtype, device, seed: PhiloxGenerator(int(seed)).randn(size)
        )
    settings = of("dpmpp_2m_sde", schedule="karras", steps=10, compat="webui", rng=rng)
    whole = whole_sigmas(settings, 10, SD1_SCHEDULE)
    for sigmas in (whole, from_image(settings, 0.5)):
        start = SeededNoise([5], SHAPE, rng=rng)
        x = start() * sigmas[0]
        added = sampler_noise(settings, start, sigmas, SD1_SCHEDULE)
        *_, (ours, _) = ALL_SAMPLERS["dpmpp_2m_sde"].run(denoise, x, sigmas, added)
        levels = torch.tensor(whole)
        tree = k_sampling.BrownianTreeNoiseSampler(x, levels[levels > 0].min(), levels.max(), seed=[5])
        theirs = k_sampling.sample_dpmpp_2m_sde(
            lambda x, sigma: denoise(x, sigma[0].item()), x, torch.tensor(sigmas), disable=True, noise_sampler=tree
        )
        assert ((ours - theirs).norm() / theirs.norm()).item() < 1e-4  # float32 on both sides


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("euler_a", "sample_euler_ancestral"),
        ("dpm2_a", "sample_dpm_2_ancestral"),
        ("dpmpp_2s_a", "sample_dpmpp_2s_ancestral"),
        ("dpmpp_sde", "sample_dpmpp_sde"),
        ("dpmpp_2m_sde", "sample_dpmpp_2m_sde"),
        ("dpmpp_2m_sde_heun", "sample_dpmpp_2m_sde"),
        ("dpmpp_3m_sde", "sample_dpmpp_3m_sde"),
    ],
)
@pytest.mark.parametrize("eta", [0.0, 0.5])
def test_eta_is_k_diffusions(name, theirs, eta, denoise, k_sampling, tensors):
    pytest.importorskip("torchsde")
    sigmas = sigma_list(8, "karras")
    start = tensors(1, (1, *SHAPE), torch.float32)[0] * sigmas[0]
    options = {"solver_type": "heun"} if name.endswith("heun") else {}
    settings = of(name, schedule="karras", steps=8, compat="webui")
    noise = SeededNoise([5], SHAPE)
    levels = torch.tensor(sigmas)
    is_sde = "sde" in name
    tree = k_sampling.BrownianTreeNoiseSampler(start, levels[levels > 0].min(), levels.max(), seed=[5])
    same = SeededNoise([5], SHAPE)
    *_, (ours, _) = ALL_SAMPLERS[name].run(
        denoise, start, sigmas, sampler_noise(settings, noise, sigmas, SD1_SCHEDULE), eta=eta
    )
    expected = getattr(k_sampling, theirs)(
        lambda x, sigma: denoise(x, sigma[0].item()),
        start,
        levels,
        disable=True,
        eta=eta,
        noise_sampler=tree if is_sde else lambda sigma, to: same(),
        **options,
    )
    assert ((ours - expected).norm() / expected.norm()).item() < 1e-4  # float32 on both sides


def test_comfyui_adds_a_gpus_noise_from_the_seed():
    noise = SeededNoise([3], SHAPE, later="gpu")
    noise()
    assert torch.equal(noise()[0], PhiloxGenerator(3).randn(SHAPE))


def test_eta_where_there_is_none_is_refused():
    with pytest.raises(UserError, match="the sampler euler has no eta"):
        of("euler", eta=0.5)
    assert {"ddim", "euler_a", "dpm_fast", "dpm_adaptive", "dpmpp_3m_sde"} <= set(ETA_SAMPLERS)
    assert not {"euler", "heun", "lms", "unipc", "plms"} & set(ETA_SAMPLERS)


@pytest.mark.parametrize("change", [{"rng": "nv"}, {"rng": "gpu"}, {"eta": 0.5}, {"ensd": 31337}, {"compat": "webui"}])
def test_each_changes_the_image_and_is_written_and_read(pipe, change):
    settings = of(steps=3)
    plain = pipe.generate(settings).latents
    changed = settings.replace(**change)
    made = pipe.generate(changed)
    assert not torch.equal(made.latents, plain)
    again = read_settings(made.infotexts[0])
    assert not again.notes
    assert {name: again.values[name] for name in change} == change
    assert torch.equal(pipe.generate(GenerationSettings(**again.values)).latents, made.latents)


WEBUI = "x\nSteps: 3, Sampler: {}, CFG scale: 7, Seed: 1, Size: 64x64, Version: v1.10.1"


@pytest.mark.parametrize(
    ("sampler", "more", "expected"),
    [
        ("Euler a", "", {"rng": "gpu", "compat": "webui"}),
        ("Euler a", "RNG: NV, ENSD: 31337, Eta: 0.5", {"rng": "nv", "ensd": 31337, "eta": 0.5, "compat": "webui"}),
        ("DDIM", "RNG: CPU, Eta DDIM: 0.3", {"rng": "cpu", "eta": 0.3, "compat": "webui"}),
        ("Euler", "RNG: CPU, Eta: 0.5", {"rng": "cpu", "compat": "webui"}),  # Euler has none
    ],
)
def test_the_webuis_labels_are_obeyed(sampler, more, expected):
    reading = read_settings(WEBUI.format(sampler) + (f", {more}" if more else ""))
    assert reading.notes == {}
    names = ("rng", "ensd", "eta", "compat")
    assert {name: reading.values[name] for name in names if name in reading.values} == expected


def test_our_own_older_images_are_generated_as_before():
    text = to_infotext(of(), 0, "", "", from_image=False)
    assert read_settings(text).values["rng"] == "cpu"
    assert "compat" not in read_settings(text).values
    unknown = read_settings(WEBUI.format("Euler") + ", RNG: std_default")
    assert "generated by std_default" in unknown.notes["RNG"]


def test_a_second_pass_begins_the_noise_again_for_the_webui(pipe):
    """The first call of each pass is the seed's first noise of the pass's shape."""
    seen = []
    pipe.unet.register_forward_pre_hook(lambda unet, args: seen.append(args[0]))
    settings = of("euler", steps=2, hires_scale=2.0, hires_strength=1.0, guidance_scale=1.0, compat="webui", rng="nv")
    pipe.generate(settings)
    assert len(seen) == 4
    assert seen[2].shape == (1, 4, 16, 16)
