"""The trace of a run: what it holds, that the image keeps its bits, and how much memory it takes."""

import math

import pytest
import torch

from sd.attention import attention_written_out, split_heads
from sd.denoiser import Denoiser
from sd.optimization.patching import LayerPatch
from sd.pipeline.settings import GenerationSettings
from sd.pipeline.trace import MAX_SIDE, MAX_STEPS, Trace, reduce
from sd.pipeline.tracing.attention_maps import MAX_POSITIONS, AttentionMaps, map_size, mean_attention
from sd.pipeline.tracing.words import MAX_WORDS
from sd.prompts.weighting import encode_prompt
from sd.unet import UNetModel

HALF = dict(rtol=2e-3, atol=2e-3)  # half precision has 11 bits, 2^-11 of a value; the formula adds three of them


def settings_of(**changes):
    given = dict(prompt="a red apple", seed=3, steps=3, sampler="euler", guidance_scale=4.0) | changes
    return GenerationSettings(**given)


def traced(pipe, **changes):
    trace = Trace()
    return trace, pipe.generate(settings_of(**changes), trace=trace)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"sampler": "heun"},
        {"sampler": "euler_cfgpp"},
        {"sampler": "ddpm", "num_images": 2},
        {"guidance_scale": 1.0},
        {"prompt": "an apple AND red:0.5"},
        {"prompt": "an [apple:pear:0.5]"},
        {"step_cache": 2},
        {"token_merging": 0.5},
        {"hires_scale": 2.0},
        {"guidance_end": 0.5},
    ],
    ids=str,
)
def test_the_image_has_the_same_bits_with_a_trace(pipe, changes):
    expected = pipe.generate(settings_of(**changes)).latents
    trace, output = traced(pipe, **changes)
    assert torch.equal(output.latents, expected)
    assert [one.step for one in trace.steps] == [1, 2, 3]


def test_guidance_joins_the_two_estimates(pipe):
    trace, _ = traced(pipe)
    for one in trace.steps:
        uncond, cond = one.uncond.float(), one.cond.float()
        torch.testing.assert_close(one.guided.float(), uncond + 4 * (cond - uncond), rtol=1e-2, atol=1e-2)


def test_the_steps_follow_each_other(pipe):
    """Euler's step from what was recorded gives what the next step holds."""
    trace, output = traced(pipe)
    ends = [*(one.x.float() for one in trace.steps[1:]), output.latents[0]]
    for one, after, sigma in zip(trace.steps, ends, [*(one.sigma for one in trace.steps[1:]), 0.0]):
        x = one.x.float() * math.sqrt(1 + one.sigma**2)
        x = x + (sigma - one.sigma) * (x - one.guided.float()) / one.sigma
        torch.testing.assert_close(x / math.sqrt(1 + sigma**2), after, **HALF)


def test_without_guidance_there_is_one_estimate(pipe):
    trace, _ = traced(pipe, guidance_scale=1.0)
    assert all(one.uncond is None and torch.equal(one.guided, one.cond) for one in trace.steps)


def test_heuns_second_evaluation_is_not_a_step(pipe):
    trace, _ = traced(pipe, sampler="heun")
    euler, _ = traced(pipe)
    assert [one.sigma for one in trace.steps] == [one.sigma for one in euler.steps]
    assert torch.equal(trace.steps[0].guided, euler.steps[0].guided)


def test_each_position_shares_its_attention_among_the_entries(pipe):
    trace, _ = traced(pipe)
    assert trace.entries == ["start token", "a", "red", "apple", "end token and padding"]
    for one in trace.steps:
        assert one.attention.shape == (5, 4, 4)  # the tiny U-Net attends at half the latent's size
        torch.testing.assert_close(one.attention.float().sum(0), torch.ones(4, 4), **HALF)


def test_the_mean_attention_is_that_of_the_attention_written_out():
    generator = torch.Generator().manual_seed(2)
    q, k = torch.randn(2, 6, 8, generator=generator), torch.randn(2, 5, 8, generator=generator)
    weights = mean_attention(q, k, heads=2)
    v = torch.eye(5).expand(2, 5, 5)  # the values with which the output of a head is its weights
    heads = [attention_written_out(q[..., part], k[..., part], v, 1) for part in (slice(4), slice(4, 8))]
    torch.testing.assert_close(weights, (heads[0] + heads[1]) / 2)
    half = mean_attention(q.half(), k.half(), heads=2)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half.sum(-1), torch.ones(2, 6))  # in fp16 the sums would be off by 1e-4


def test_maps_are_the_mean_softmax_of_the_right_row():
    generator = torch.Generator().manual_seed(1)
    q, k = torch.randn(2, 6, 8, generator=generator), torch.randn(2, 10, 8, generator=generator)
    maps = AttentionMaps((2, 3), torch.eye(5))  # ten keys are the five text vectors, twice
    maps.row = 1
    maps.add(q, k, heads=2)
    maps.add(torch.zeros(2, 6, 8), k, heads=2)  # a second layer, whose attention is even
    maps.add(q[:, :3], k, heads=2)  # another resolution
    weights = (split_heads(q, 2)[1] @ split_heads(k, 2)[1].mT / 2).softmax(-1).mean(0)  # sqrt(4) = 2
    expected = (weights[:, :5] + weights[:, 5:] + 0.2) / 2
    torch.testing.assert_close(maps.take(), expected.T.reshape(5, 2, 3))
    assert maps.take() is None


def test_what_a_word_changes_is_the_distance_to_the_estimate_without_it(pipe):
    trace, _ = traced(pipe)
    one = next(step for step in trace.steps if step.changes is not None)
    assert [word.text for word in trace.words] == ["a", "red", "apple"]
    x = one.x.float()[None] * math.sqrt(1 + one.sigma**2)
    with torch.no_grad():
        full, shorter = (
            Denoiser(pipe.unet, encode_prompt(pipe.tokenizer, pipe.clip, text))(x, one.sigma)
            for text in ("a red apple", "a apple")
        )
    # x was rounded to half precision, and its error grows with sigma, 14 at the first step.
    torch.testing.assert_close(one.changes[1].float(), (full - shorter).abs().mean(1)[0], rtol=0.05, atol=0.02)


def test_changes_stay_within_their_share_of_the_run(pipe):
    trace, _ = traced(pipe, steps=20)
    changed = [one.step for one in trace.steps if one.changes is not None]
    assert changed == [1, 5, 9, 13, 17]  # 0.4 * 40 evaluations are 16, of three words each
    without = Trace(extra_share=0)
    pipe.generate(settings_of(), trace=without)
    assert all(one.changes is None and one.attention is not None for one in without.steps)


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"prompt": "an [apple:pear:0.5]"}, "changes with the steps"),
        ({"prompt": "an apple AND red"}, "before AND"),
        ({"prompt": "apple " * 40}, "40 words"),
        ({"step_cache": 2}, "needs the U-Net as it is"),
        ({"tile_size": 64}, "own attention"),
    ],
)
def test_what_is_not_recorded_is_said(pipe, changes, note):
    trace, _ = traced(pipe, **changes)
    assert note in " ".join(trace.notes)
    assert len(trace.steps) == 3


def test_nothing_is_left_on_the_unet(pipe):
    class Stop(Exception):
        pass

    def stop(*_):
        raise Stop

    with pytest.raises(Stop):
        pipe.generate(settings_of(), on_step=stop, trace=Trace())
    traced(pipe)
    assert not [layer for layer in pipe.unet.modules() if "Observed" in type(layer).__name__]
    assert not [layer for layer in pipe.unet.modules() if isinstance(layer, LayerPatch) and hasattr(layer, "maps")]


def test_the_number_of_steps_is_bounded(pipe):
    trace = Trace(max_steps=4)
    pipe.generate(settings_of(steps=10), trace=trace)
    assert [one.step for one in trace.steps] == [1, 4, 7, 10]


@pytest.mark.parametrize("sampler", ["dpm_adaptive", "restart"])
def test_a_sampler_may_take_as_many_steps_as_it_likes(pipe, sampler):
    taken = []
    trace = Trace()
    pipe.generate(settings_of(sampler=sampler, steps=20), on_step=lambda *_: taken.append(1), trace=trace)
    assert trace.total == len(taken)
    assert len(trace.steps) <= 20
    assert trace.total <= 20 or f"took {len(taken)} steps" in trace.notes[0]


def test_memory_at_the_size_of_v1_5_is_as_stated():
    latents = 4 * 4 * MAX_SIDE**2 * 2  # bytes: four of four channels
    maps = (MAX_WORDS + 2) * 16 * 16 * 2
    changes = MAX_WORDS * MAX_SIDE**2 * 2
    assert round(latents / 1e6, 2) == 0.13
    assert maps / 1e3 < 14
    assert MAX_STEPS * (latents + maps) < 4.7e6
    assert MAX_STEPS * (latents + maps) + 4 * changes < 5.5e6
    assert MAX_STEPS * (latents + (MAX_WORDS + 3) * MAX_POSITIONS * 2 + changes) < 12e6


@pytest.mark.parametrize(("side", "reduced"), [(16, 16), (64, 64), (65, 33), (128, 64), (256, 64)])
def test_larger_latents_are_averaged_down(side, reduced):
    assert reduce(torch.zeros(1, 4, side, side // 2)).shape[2] == reduced


def test_maps_are_of_v1_5s_level_of_16_by_16():
    with torch.device("meta"):
        unet = UNetModel()
    assert map_size(unet, 64, 64) == (16, 16)
    assert map_size(unet, 96, 96) == (24, 24)
    assert map_size(unet, 24, 24) == (24, 24)
    assert map_size(unet, 128, 128) == (32, 32)  # the coarsest with attention that is not the middle's
