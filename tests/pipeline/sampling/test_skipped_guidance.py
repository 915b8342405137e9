"""NGMS against what the webui does: the prompt's estimate stands for the negative one's in odd evaluations."""

import torch

from sd.denoiser import Denoiser, Guidance
from sd.pipeline.metadata.settings_infotext import from_infotext, to_infotext
from sd.pipeline.sampling.cfgpp import UncondGuidance
from sd.pipeline.sampling.composed import ComposedGuidance, EditedDenoiser, UncondComposedGuidance
from sd.pipeline.sampling.skipped_guidance import SkippedGuidance
from sd.pipeline.settings import GenerationSettings
from sd.schedule import SD1_SCHEDULE


def unet(x, t, context):
    """Predicts noise that depends on x and, nonlinearly, on the mean of the context."""
    return torch.tanh(x + context.mean((1, 2))[:, None, None, None]) * (1 + t.view(-1, 1, 1, 1) / 1000)


A, B, UNCOND = torch.full((2, 4, 1), 0.3), torch.full((2, 6, 1), -0.4), torch.full((2, 2, 1), 0.1)


def test_odd_evaluations_below_the_level_follow_the_prompt_alone(tensors):
    (x,) = tensors(1, dtype=torch.float32)
    guided, alone = Guidance(unet, A, UNCOND, 7.5), Denoiser(unet, A)
    skipped = SkippedGuidance(guided, 3.0)
    for sigma, expected in [(5.0, guided), (4.0, guided), (3.0, guided), (2.9, alone), (2.0, guided), (1.0, alone)]:
        assert torch.equal(skipped(x, sigma), expected(x, sigma)), sigma


def test_of_several_prompts_the_first_stands_for_the_negative_one(tensors):
    (x,) = tensors(1, dtype=torch.float32)
    a, b = (Denoiser(unet, context)(x, 2.0) for context in (A, B))
    skipped = SkippedGuidance(ComposedGuidance(unet, [(A, 0.8), (B, -0.5)], UNCOND, 7.5), 3.0)
    skipped(x, 4.0)
    torch.testing.assert_close(skipped(x, 2.0), a + 7.5 * -0.5 * (b - a))


def test_cfg_plus_plus_takes_the_prompts_estimate_as_the_unconditional_one(tensors):
    (x,) = tensors(1, dtype=torch.float32)
    a, b = (Denoiser(unet, context)(x, 2.0) for context in (A, B))
    lone = UncondGuidance(unet, A, UNCOND, 7.5)
    both = UncondComposedGuidance(unet, [(A, 1.0), (B, 0.5)], UNCOND, 7.5)
    for guidance, expected in ((lone, a), (both, a + 0.6 * 0.5 * (b - a))):  # 7.5 / 12.5 is 0.6
        skipped = SkippedGuidance(guidance, 3.0)
        assert torch.equal(skipped.with_uncond(x, 2.0)[1], guidance.with_uncond(x, 2.0)[1])
        x0, uncond = skipped.with_uncond(x, 2.0)
        torch.testing.assert_close(x0, expected)
        torch.testing.assert_close(uncond, a)


def test_prompts_that_change_keep_their_turns(tensors):
    (x,) = tensors(1, dtype=torch.float32)
    first, second = Guidance(unet, A, UNCOND, 7.5), Guidance(unet, B, UNCOND, 7.5)
    skipped = SkippedGuidance(EditedDenoiser([1, 4], [first, second]), 9.0)
    expected = [first, Denoiser(unet, A), second, Denoiser(unet, B)]
    for one in expected:
        assert torch.equal(skipped(x, 2.0), one(x, 2.0))


def test_it_reaches_the_image_and_the_text_in_it(pipe):
    settings = GenerationSettings("a red apple", steps=4, seed=1, width=64, height=64, sampler="euler")
    plain, skipped = (pipe.generate(settings.replace(ngms=value)) for value in (0.0, 15.0))
    assert not torch.equal(plain.latents, skipped.latents)
    assert "NGMS: 15" in skipped.infotexts[0]
    assert from_infotext(skipped.infotexts[0]).ngms == 15


def test_all_steps_are_the_end_of_guidance():
    text = to_infotext(GenerationSettings("x", seed=1, width=64, height=64, ngms=2.5), 0, "", "", False)
    settings = from_infotext(f"{text}, NGMS all steps: True")
    assert settings.ngms == 0
    # The level in between is interpolated in log sigma both ways: rounding of two fp32 logarithms.
    lowest = SD1_SCHEDULE.sigma_of((len(SD1_SCHEDULE) - 1) * (1 - settings.guidance_end))
    assert abs(lowest / 2.5 - 1) < 1e-5
    assert from_infotext(f"{text}, NGMS all steps: False").ngms == 2.5
