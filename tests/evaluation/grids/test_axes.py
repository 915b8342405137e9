"""What each axis changes, and what it refuses."""

import pytest

from sd.evaluation.grids.axes import KINDS, Point, find_kind, parse_axis
from sd.pipeline.settings import OPTIONS, GenerationSettings
from sd.utils.errors import UserError

BASE = Point(GenerationSettings(prompt="a red cat <lora:old:1:lbw=OUTALL>", seed=3))


def settings_of(text, base=BASE):
    axis = parse_axis(text)
    return [axis.apply(base, i).settings for i in range(len(axis.values))]


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("steps", "steps"),
        ("--guidance-scale", "guidance_scale"),
        ("CFG Scale", "guidance_scale"),
        ("Seed", "seed"),
        ("Var. seed", "variation_seed"),
        ("Var. strength", "variation_strength"),
        ("Prompt S/R", "prompt_sr"),
        ("Checkpoint name", "checkpoint"),
        ("Schedule type", "schedule"),
        ("Denoising", "strength"),
        ("Clip skip", "clip_skip"),
        ("Hires upscaler", "hires_upscaler"),
        ("Size", "size"),
        ("RNG source", "rng"),
        ("VAE", "vae"),
        ("Eta", "eta"),
        ("Token merging ratio", "token_merging"),
    ],
)
def test_names_of_ours_and_of_the_webui(name, found):
    assert find_kind(name).name == found


def test_every_option_but_two_is_an_axis():
    assert {row.name for row in OPTIONS} - KINDS.keys() == {"num_images", "control"}


def test_numbers_booleans_and_choices():
    assert [one.steps for one in settings_of("steps=10, 20-22")] == [10, 20, 21, 22]
    assert [one.guidance_scale for one in settings_of("cfg scale=1-3 [3]")] == [1, 2, 3]
    assert [one.tiling for one in settings_of("tiling=true, off")] == [True, False]
    assert [one.rng for one in settings_of("rng=GPU, cpu")] == ["gpu", "cpu"]
    assert [(one.width, one.height) for one in settings_of("size=64x72, 128 x 64")] == [(64, 72), (128, 64)]
    assert [one.eta for one in settings_of("eta=0, 0.5")] == [0, 0.5]


def test_a_sampler_brings_its_own_schedule_unless_another_was_chosen():
    own = GenerationSettings(sampler="dpmpp_2m").schedule
    assert [(one.sampler, one.schedule) for one in settings_of("sampler=dpmpp_2m, Euler a")] == [
        ("dpmpp_2m", own),
        ("euler_a", GenerationSettings(sampler="euler_a").schedule),
    ]
    chosen = BASE.with_settings(sampler="euler", schedule="exponential")
    assert [one.schedule for one in settings_of("sampler=dpmpp_2m, DPM++ 2M Karras", chosen)] == [
        "exponential",
        "karras",
    ]
    with_eta = BASE.with_settings(sampler="ddim", eta=0.5)
    assert [one.eta for one in settings_of("sampler=euler, euler_a", with_eta)] == [None, 0.5]


def test_random_seeds_are_drawn_once():
    axis = parse_axis("seed=-1, -1, 5")
    assert "-1" not in axis.values
    assert axis.values[2] == "5"
    assert axis.values[0] != axis.values[1]
    assert parse_axis(str(axis)) == axis


def test_search_and_replace_in_both_prompts():
    base = BASE.with_settings(negative_prompt="red eyes")
    found = settings_of('prompt_sr=red, "pale, green", ""', base)
    assert [one.prompt.split(" <")[0] for one in found] == ["a red cat", "a pale, green cat", "a  cat"]
    assert [one.negative_prompt for one in found] == ["red eyes", "pale, green eyes", " eyes"]
    with pytest.raises(UserError, match="'Red' is not in the prompt"):
        settings_of("prompt_sr=Red, blue")


def test_loras_become_tags_and_their_strengths_change():
    added = [one.prompt.removeprefix(BASE.settings.prompt) for one in settings_of("lora=dog, dog:0.5, none")]
    assert added == [" <lora:dog:1>", " <lora:dog:0.5>", ""]
    (one,) = settings_of("lora_strength=0.25")
    assert one.prompt == "a red cat <lora:old:0.25:lbw=OUTALL>"
    with pytest.raises(UserError, match="names no LoRA"):
        settings_of("lora_strength=1", Point(GenerationSettings(prompt="a cat")))


def test_checkpoints_vaes_and_styles():
    axis = parse_axis("checkpoint=a/anime.ckpt, photo")
    assert [axis.apply(BASE, i).ckpt for i in range(2)] == ["a/anime.ckpt", "photo"]
    assert axis.labels() == ["anime", "photo"]
    assert parse_axis("vae=none").apply(BASE, 0).vae == "none"
    plain, styled = settings_of("styles=none, watercolor")
    assert plain == BASE.settings
    assert "watercolor" in styled.prompt


@pytest.mark.parametrize(
    "text",
    ['prompt_sr=a, "b, c", ""', "steps=1-3", "sampler=Euler a, DPM++ 2M Karras", "cfg_scale=-1, 0.5", "vae=a b, c"],
)
def test_an_axis_is_its_text(text):
    assert parse_axis(str(parse_axis(text))) == parse_axis(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("stps=1", "did you mean steps"),
        ("zzzzzz=1", "prompt_sr"),
        ("steps", "has no values"),
        ("steps=", "has no values"),
        ("steps=1.5", "no whole number"),
        ("steps=0", "must be a whole number from 1 to"),
        ("guidance_scale=strong", "no number"),
        ("tiling=maybe", "neither true nor false"),
        ("sampler=foo", "unknown sampler"),
        ("schedule=foo", "unknown schedule"),
        ("size=64", "width x height"),
        ("width=100", "multiple of 8"),
        ("styles=foo", "unknown style"),
        ("num_images=1, 2", "use seed"),
        ("control=x", "control is no axis"),
        ("lora_strength=much", "no strength"),
    ],
)
def test_what_cannot_be_used_is_refused(text, said):
    with pytest.raises(UserError, match=said):
        settings_of(text)
