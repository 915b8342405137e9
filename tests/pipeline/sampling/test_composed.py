"""Guidance by several prompts and by prompts that change, against their definitions."""

import torch

from sd.denoiser import Denoiser, Guidance
from sd.pipeline.sampling.composed import ComposedGuidance, EditedDenoiser


def unet(x, t, context):
    """Predicts noise that depends on x and, nonlinearly, on the mean of the context."""
    return torch.tanh(x + context.mean((1, 2))[:, None, None, None]) * (1 + t.view(-1, 1, 1, 1) / 1000)


A, B, UNCOND = torch.full((2, 4, 1), 0.3), torch.full((2, 6, 1), -0.4), torch.full((2, 2, 1), 0.1)


def test_one_prompt_of_weight_1_is_guidance(tensors):
    (x,) = tensors(1, dtype=torch.float32)
    for rescale in (0.0, 0.7):
        ours = ComposedGuidance(unet, [(A, 1.0)], UNCOND, 7.5, rescale=rescale)(x, 2.0)
        torch.testing.assert_close(ours, Guidance(unet, A, UNCOND, 7.5, rescale=rescale)(x, 2.0))


def test_several_prompts_are_the_weighted_sum_of_their_directions(tensors):
    (x,) = tensors(1, dtype=torch.float32)
    a, b, uncond = (Denoiser(unet, context)(x, 2.0) for context in (A, B, UNCOND))
    guidance = ComposedGuidance(unet, [(A, 0.8), (B, -0.5)], UNCOND, 7.5, interval=(1.0, 3.0))
    torch.testing.assert_close(guidance(x, 2.0), uncond + 7.5 * (0.8 * (a - uncond) - 0.5 * (b - uncond)))
    a, b, uncond = (Denoiser(unet, context)(x, 5.0) for context in (A, B, UNCOND))
    torch.testing.assert_close(guidance(x, 5.0), uncond + 0.8 * (a - uncond) - 0.5 * (b - uncond))


def test_inpainting_channels_are_given_to_every_prompt(tensors):
    def nine(x, t, context):
        assert x.shape[1] == 9
        return unet(x[:, :4] + x[:, 4:8], t, context)

    x, more = tensors(1, dtype=torch.float32)[0], tensors(1, (2, 5, 8, 8), torch.float32)[0]
    ours = ComposedGuidance(nine, [(A, 1.0)], UNCOND, 7.5, more)(x, 2.0)
    torch.testing.assert_close(ours, Guidance(nine, A, UNCOND, 7.5, more)(x, 2.0))


def test_each_denoiser_has_its_turn(tensors):
    (x,) = tensors(1)
    edited = EditedDenoiser([2, 4], [lambda x, sigma: x * 0 + 1, lambda x, sigma: x * 0 + 2])
    assert [edited(x, 1.0)[0, 0, 0, 0].item() for _ in range(5)] == [1, 1, 1, 2, 2]
