"""The U-Net's deep part every few steps: against the whole, and against its recomputation by other means."""

import pytest
import torch
from conftest import UNET
from reference_models import randomize

from sd.optimization.deepcache import SHALLOW, AdaptiveStepCached, StepCached, cache_steps
from sd.pipeline.infotext import parse_infotext
from sd.pipeline.metadata.settings_infotext import to_infotext
from sd.pipeline.settings import GenerationSettings
from sd.unet import UNetModel
from sd.utils.errors import UserError

TIMES = [801.0, 601.0, 401.0, 201.0, 1.0]


@pytest.fixture(scope="module")
def unet():
    return randomize(UNetModel(**UNET), seed=3)


def inputs(count: int, batch: int = 2, size: int = 8, seed: int = 0) -> list[tuple]:
    """What `count` calls of one run are given; one context for all, as one run has it."""
    generator = torch.Generator().manual_seed(seed)
    context = torch.randn(batch, 77, 64, generator=generator)
    xs = [torch.randn(batch, 4, size, size, generator=generator) for _ in range(count)]
    return [(x, torch.full((batch,), t), context) for x, t in zip(xs, TIMES)]


def deep_of(unet: UNetModel, given: tuple) -> torch.Tensor:
    """What the deep part of the whole U-Net gives, caught on its way."""
    seen = []
    hook = unet.output_blocks[-SHALLOW - 1].register_forward_hook(lambda module, given, out: seen.append(out))
    unet(*given)
    hook.remove()
    return seen[0]


def with_deep(unet: UNetModel, given: tuple, deep: torch.Tensor) -> torch.Tensor:
    """The whole U-Net, but what its deep part gives is replaced on its way."""
    hook = unet.output_blocks[-SHALLOW - 1].register_forward_hook(lambda module, given, out: deep)
    try:
        return unet(*given)
    finally:
        hook.remove()


@torch.no_grad()
def test_every_call_is_the_unet_bit_for_bit(unet):
    cached = StepCached(unet, 1)
    for given in inputs(3):
        assert torch.equal(cached(*given), unet(*given))


@pytest.mark.parametrize("size", [8, 9])
@torch.no_grad()
def test_between_whole_calls_only_the_shallow_part_is_new(unet, size):
    """Of five calls the first and the fourth are whole; the fifth goes on along the line through these two."""
    calls, cached = inputs(5, size=size), StepCached(unet, 3)
    made = [cached(*given) for given in calls]
    first, fourth = deep_of(unet, calls[0]), deep_of(unet, calls[3])
    times = [given[1][0] for given in calls]
    on_the_line = fourth + (fourth - first) * (times[4] - times[3]) / (times[3] - times[0])
    for i, deep in enumerate([first, first, first, fourth, on_the_line]):
        # The line is written in another order here: a rounding more, over the few layers that are left.
        assert torch.allclose(made[i], with_deep(unet, calls[i], deep), atol=1e-5), i
        assert torch.equal(made[i], unet(*calls[i])) == (i in (0, 3)), i


@torch.no_grad()
def test_what_changes_evenly_is_foreseen(unet):
    """A deep part that is linear in t is the whole U-Net's from the second whole call on."""
    calls, level = inputs(5), deep_of(unet, inputs(1)[0])

    def linear(module, given, out):
        return level * (calls[0][1][0] - now[0]) / 100

    now, cached = [0.0], StepCached(unet, 2)
    hook = unet.output_blocks[-SHALLOW - 1].register_forward_hook(linear)
    try:
        for i, given in enumerate(calls):
            now[0] = given[1][0]
            # fp32 rounding of the line, over the few layers that are left.
            assert torch.allclose(cached(*given), unet(*given), atol=1e-4) == (i != 1), i
    finally:
        hook.remove()


@torch.no_grad()
def test_another_context_is_computed_whole(unet):
    cached, (first, second, third) = StepCached(unet, 5), inputs(3)
    cached(*first)
    alone = [part[:1] for part in second]  # of one row: cond without uncond, outside of a guidance interval
    assert torch.equal(cached(*alone), unet(*alone))
    assert torch.equal(cached(*third), unet(*third))  # what was kept of `first` is too old by now


@torch.no_grad()
def test_rows_do_not_mix(unet):
    whole, parts = StepCached(unet, 2), [StepCached(unet, 2) for _ in range(2)]
    calls = inputs(2)
    rows = [[[part[i : i + 1] for part in given] for given in calls] for i in range(2)]
    for row in rows:
        row[1][2] = row[0][2]  # slices are new objects; one run has one context
    together = [whole(*given) for given in calls]
    for i in range(2):
        for step in range(2):
            # Rounding of a batch of two against batches of one, over some ten layers of values near 1.
            assert torch.allclose(parts[i](*rows[i][step]), together[step][i : i + 1], atol=1e-5)


@pytest.mark.parametrize("sampler", ["ddpm", "heun", "dpmpp_sde", "plms", "unipc"])
def test_the_deep_part_is_computed_every_nth_call_of_an_image(pipe, sampler):
    counts = {"deep": 0, "shallow": 0}

    def counted(name):
        def count(*_):
            counts[name] += 1

        return count

    pipe.unet.middle_block.register_forward_hook(counted("deep"))
    pipe.unet.out.register_forward_hook(counted("shallow"))
    asked = dict(steps=6, sampler=sampler, seed=1)
    pipe("a red apple", step_cache=2, num_images=2, **asked)
    calls = counts["shallow"] // 2  # of each of the two images, which a CPU generates one by one
    assert counts["deep"] == 2 * -(-calls // 2)
    assert calls == {"heun": 11, "dpmpp_sde": 11, "plms": 7}.get(sampler, 6)


def test_no_image_depends_on_the_one_before(pipe):
    asked = dict(steps=5, sampler="heun", step_cache=4)
    alone = pipe("a dog", seed=2, **asked).latents
    pipe("a cat", seed=1, width=72, height=40, **asked)
    assert torch.equal(pipe(["a cat", "a dog"], seed=1, **asked).latents[1:], alone)
    assert not torch.allclose(pipe("a dog", seed=2, steps=5, sampler="heun").latents, alone)


def test_once_is_off_and_nothing_stays(pipe):
    pipe.optimize()  # as the first call does
    keys, text = list(pipe.unet.state_dict()), repr(pipe.unet)
    before = pipe("a dog", seed=2, steps=4).latents
    pipe("a dog", seed=2, steps=4, step_cache=3)
    assert torch.equal(pipe("a dog", seed=2, steps=4, step_cache=1).latents, before)
    assert (list(pipe.unet.state_dict()), repr(pipe.unet)) == (keys, text)


@pytest.fixture
def whole_calls(monkeypatch):
    """Counts the calls that computed all blocks."""
    counted = []
    compute = StepCached.compute_deep_features

    def counting(self, *given):
        counted.append(self)
        return compute(self, *given)

    monkeypatch.setattr(StepCached, "compute_deep_features", counting)
    return counted


@torch.no_grad()
def test_at_a_threshold_of_0_every_call_is_the_unet_bit_for_bit(unet):
    cached = AdaptiveStepCached(unet, 0.0)
    for given in (*inputs(3), inputs(3)[2]):  # the last changes nothing at all
        assert torch.equal(cached(*given), unet(*given))


@torch.no_grad()
def test_without_a_bound_only_the_first_call_and_the_resets_are_whole(unet, whole_calls):
    cached, calls = AdaptiveStepCached(unet, float("inf")), inputs(4)
    for given in calls:
        cached(*given)
    assert len(whole_calls) == 1
    resets = {
        "t rises": (calls[3][0], torch.full((2,), 802.0), calls[0][2]),
        "another size": (*inputs(2, size=9, seed=1)[1][:2], calls[0][2]),
        "another context": inputs(3, size=9, seed=1)[2],
    }
    for i, (reset, given) in enumerate(resets.items()):
        assert torch.equal(cached(*given), unet(*given)), reset
        assert len(whole_calls) == 2 + i, reset
        assert cached.slope is None, reset


@torch.no_grad()
def test_calls_are_whole_where_the_shallow_part_has_changed_by_the_threshold(unet, whole_calls):
    """The changes of calls that were not whole add up: each is compared with the last whole one."""
    first, other = inputs(2)
    calls = [(first[0] + i / 10 * (other[0] - first[0]), first[1] - i, first[2]) for i in range(12)]
    shallow = []
    hook = unet.input_blocks[SHALLOW - 1].register_forward_hook(lambda module, given, out: shallow.append(out))
    for given in calls:
        unet(*given)
    hook.remove()
    threshold, last, expected = 0.3, 0, [0]
    for i, now in enumerate(shallow):
        before = shallow[last]
        if max((now[j] - before[j]).abs().sum() / before[j].abs().sum() for j in range(2)) >= threshold:
            expected.append(i)
            last = i
    assert 2 < len(expected) < 12
    cached, found = AdaptiveStepCached(unet, threshold), []
    for i, given in enumerate(calls):
        before = len(whole_calls)
        cached(*given)
        found += [i] * (len(whole_calls) - before)
    assert found == expected


@torch.no_grad()
def test_two_whole_calls_at_one_t_keep_the_line(unet):
    """As Heun's method makes them, where both exceed the threshold."""
    cached, calls = AdaptiveStepCached(unet, 1e-3), inputs(4)
    calls[2] = (calls[2][0], calls[1][1], calls[2][2])
    for given in calls[:3]:
        cached(*given)
    cached.threshold = float("inf")
    assert cached(*calls[3]).isfinite().all()


def test_the_value_chooses_between_steps_and_a_threshold(unet):
    assert cache_steps(unet, 1.0) is unet
    assert (type(cache_steps(unet, 3.0)), cache_steps(unet, 3.0).every) == (StepCached, 3)
    assert (type(cache_steps(unet, 0.2)), cache_steps(unet, 0.2).threshold) == (AdaptiveStepCached, 0.2)


@pytest.mark.parametrize("sampler", ["heun", "euler_a", "unipc"])
def test_a_threshold_with_every_patch_and_nothing_stays(pipe, sampler, whole_calls):
    asked = dict(steps=6, sampler=sampler, seed=2, token_merging=0.5, num_images=2)
    before = pipe("a dog", **asked).latents
    made = pipe("a dog", step_cache=0.5, **asked).latents
    assert made.isfinite().all()
    assert not torch.equal(made, before)
    assert 2 <= len(whole_calls) < 2 * (11 if sampler == "heun" else 6)
    assert torch.equal(pipe("a dog", step_cache=0.5, **asked).latents, made)
    if sampler != "heun":  # whose second call at a t may change by less than a hundredth
        tight = pipe("a dog", step_cache=0.01, **asked).latents
        # The shared prefix of cond and uncond is computed for both rows: the same sums in a batch of two.
        assert torch.allclose(tight, before, rtol=1e-3, atol=1e-3)
    assert torch.equal(pipe("a dog", **asked).latents, before)


@pytest.mark.parametrize(("value", "text"), [(3, "3"), (0.2, "0.2")])
def test_infotext_has_the_number_as_it_is_typed(value, text):
    settings = GenerationSettings("x", seed=1, width=64, height=64, step_cache=value)
    assert parse_infotext(to_infotext(settings, 0, "", "", from_image=False))["Step cache"] == text


@pytest.mark.parametrize("value", [0, 21, 1.5, True, 0.001, float("nan"), "0.2"])
def test_what_cannot_be_is_said(pipe, value):
    with pytest.raises(UserError, match="step_cache must be"):
        pipe("x", step_cache=value)
