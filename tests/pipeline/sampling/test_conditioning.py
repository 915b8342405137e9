"""Prompts in time and in parts, through the pipeline: which context the U-Net sees at which call."""

import pytest
import torch

from sd.denoiser import Denoiser
from sd.pipeline.metadata.settings_infotext import read_settings
from sd.pipeline.sampling.conditioning import MAX_PARTS, count_evaluations, encode_conditioning
from sd.pipeline.settings import GenerationSettings
from sd.prompts.weighting import encode_prompt
from sd.samplers import SAMPLERS
from sd.schedule import sigma_list
from sd.utils.errors import UserError


def of(prompt, **more):
    return GenerationSettings(**{"steps": 6, "seed": 1, "width": 64, "height": 64, "sampler": "euler"} | more,
                              prompt=prompt)  # fmt: skip


def seen_by(pipe, settings, **inputs):
    """The texts whose contexts the U-Net saw as its last row, call by call; guidance is on."""
    seen = []
    hook = pipe.unet.register_forward_pre_hook(lambda unet, args: seen.append(args[2]))
    try:
        pipe.generate(settings, **inputs)
    finally:
        hook.remove()
    return seen


def texts_of(pipe, contexts, texts):
    known = {text: encode_prompt(pipe.tokenizer, pipe.clip, text) for text in texts}
    found = []
    for context in contexts:
        found.append(next(text for text, one in known.items() if torch.equal(context[-1:], one)))
    return found


def test_a_plain_prompt_has_the_bits_of_guidance_by_hand(pipe):
    seen = seen_by(pipe, of("a red apple", negative_prompt="blurry"))
    expected = torch.cat([encode_prompt(pipe.tokenizer, pipe.clip, text) for text in ("blurry", "a red apple")])
    assert all(torch.equal(one, expected) for one in seen)


@pytest.mark.parametrize(
    ("prompt", "sampler", "expected"),
    [
        ("[a cat:a dog:3]", "euler", "a cat,a cat,a cat,a cat,a dog,a dog"),  # step 0 is one evaluation more
        ("[a cat:a dog:0.5]", "euler", "a cat,a cat,a cat,a cat,a dog,a dog"),
        ("[a cat|a dog]", "euler", "a cat,a cat,a dog,a cat,a dog,a cat"),
        # twice as many evaluations, less one in the last step
        ("[a cat:a dog:0.5]", "heun", "a cat,a cat,a cat,a cat,a cat,a cat,a cat,a dog,a dog,a dog,a dog"),
        ("[a cat:a dog:3]", "heun", "a cat,a cat,a cat,a cat,a dog,a dog,a dog,a dog,a dog,a dog,a dog"),
    ],
)
def test_a_prompt_changes_at_the_webuis_evaluation(pipe, prompt, sampler, expected):
    seen = seen_by(pipe, of(prompt, sampler=sampler))
    assert texts_of(pipe, seen, ["a cat", "a dog"]) == expected.split(",")


def test_img2img_counts_all_steps_from_its_own_first_one(pipe, photo):
    """The webui schedules prompts over `steps`, and counts from 0 wherever the image enters."""
    seen = seen_by(pipe, of("[a cat:a dog:0.5]", strength=0.5), image=photo)
    assert texts_of(pipe, seen, ["a cat", "a dog"]) == ["a cat"] * 3
    seen = seen_by(pipe, of("[a cat:a dog:1]", strength=0.5), image=photo)
    assert texts_of(pipe, seen, ["a cat", "a dog"]) == ["a cat", "a cat", "a dog"]


def test_a_second_pass_goes_on_counting(pipe):
    """Numbers from 1 on with a point are shares of the second pass; steps count on from the first."""
    hires = dict(hires_scale=2.0, hires_strength=1.0, steps=4)
    for prompt, second in (
        ("[a cat:a dog:1.5]", ["a cat", "a cat", "a cat", "a dog"]),
        ("[a cat:a dog:5]", ["a cat", "a cat", "a dog", "a dog"]),
        ("[a cat:a dog:0.5]", ["a dog"] * 4),
    ):
        seen = seen_by(pipe, of(prompt, **hires))
        assert texts_of(pipe, seen[4:], ["a cat", "a dog"]) == second, prompt


def test_the_negative_prompt_changes_too_and_has_no_parts(pipe):
    made = encode_conditioning(of("x", negative_prompt="[a:b:2] AND c"), lambda texts: encode(pipe, texts))
    assert [end for end, _ in made.uncond] == [2, 6]
    assert len(made.prompts) == 1
    assert torch.equal(made.uncond[0][1], encode_prompt(pipe.tokenizer, pipe.clip, "a AND c"))


def encode(pipe, texts):
    return torch.cat([encode_prompt(pipe.tokenizer, pipe.clip, text) for text in texts])


def test_parts_are_summed_by_their_weights(pipe):
    """One Euler step against the formula: uncond + scale * sum of weight * (cond - uncond)."""
    settings = of("a cat AND a dog:0.5 AND blue :-0.3", steps=1, guidance_scale=4.0, negative_prompt="red")
    made = pipe.generate(settings).latents
    contexts = [encode_prompt(pipe.tokenizer, pipe.clip, text) for text in ("red", "a cat", " a dog", " blue")]
    # euler's only step ends at 0, so that its latent is x0 = x - sigma * eps
    sigma = sigma_list(1)[0]
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1)) * (1 + sigma**2) ** 0.5
    with torch.no_grad():
        uncond, *conds = (Denoiser(pipe.unet, context)(x, sigma) for context in contexts)
    expected = uncond + 4 * sum(w * (cond - uncond) for w, cond in zip((1, 0.5, -0.3), conds))
    torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-4)  # fp32, in batches of another size


def test_one_part_of_weight_1_is_the_plain_prompt(pipe):
    plain = pipe.generate(of("a cat")).latents
    twice = pipe.generate(of("a cat AND a cat:0")).latents
    torch.testing.assert_close(twice, plain, rtol=1e-3, atol=1e-3)  # another batch size; six steps enlarge rounding


@pytest.mark.parametrize("sampler", ["euler_cfgpp", "dpmpp_2m", "heun", "ddim"])
@pytest.mark.parametrize("prompt", ["a AND b:0.5", "[a:b:1]", "[a|b] AND [c:d:0.5]:0.4"])
def test_every_kind_of_prompt_is_taken_by_every_kind_of_sampler(pipe, inpainting_pipe, photo, sampler, prompt):
    one = pipe.generate(of(prompt, sampler=sampler, steps=3)).latents
    other = pipe.generate(of("a", sampler=sampler, steps=3)).latents
    assert torch.isfinite(one).all()
    assert not torch.equal(one, other)
    mask = photo.convert("L").point(lambda value: 255 * (value > 100))
    assert torch.isfinite(inpainting_pipe.generate(of(prompt, sampler=sampler, steps=2), photo, mask).latents).all()


def test_a_batch_is_its_images(pipe):
    many = pipe.generate(of("[a|b] AND c", num_images=2), batch_size=2).latents
    alone = pipe.generate(of("[a|b] AND c", num_images=2), batch_size=1).latents
    torch.testing.assert_close(many, alone, rtol=1e-3, atol=1e-3)  # another batch size; six steps enlarge rounding


def test_a_colon_at_the_end_is_text_but_in_the_webui(pipe):
    def encoded(compat):
        return encode_conditioning(of("a ratio of 16:9", compat=compat), lambda texts: encode(pipe, texts)).prompts

    assert encoded("none")[0][1] == 1
    assert encoded("webui")[0][1] == 9
    assert encoded("comfyui")[0][1] == 1


def test_comfyui_takes_it_all_as_text(pipe):
    made = encode_conditioning(of("[a:b:2] AND c", compat="comfyui"), lambda texts: encode(pipe, texts))
    assert [(len(timeline), weight) for timeline, weight in made.prompts] == [(1, 1.0)]


def test_parts_of_different_lengths_are_extended_as_in_the_webui(pipe):
    long = ", ".join(["a cat"] * 40)
    made = encode_conditioning(of(f"a AND {long}", compat="webui"), lambda texts: encode(pipe, texts))
    short, other = (timeline[0][1] for timeline, _ in made.prompts)
    assert short.shape == other.shape == (1, 154, 64)
    assert torch.equal(short[:, 77:], short[:, 76:77].expand(-1, 77, -1))
    assert made.uncond[0][1].shape == (1, 77, 64)
    assert torch.isfinite(pipe.generate(of(f"a AND {long}", compat="webui", steps=1)).latents).all()


def test_too_many_parts_are_refused(pipe):
    with pytest.raises(UserError, match=f"use at most {MAX_PARTS}"):
        pipe.generate(of(" AND ".join(["a"] * (MAX_PARTS + 1))))


def test_evaluations_are_counted_twice_where_the_webui_does():
    assert {name: count_evaluations(of("x", sampler=name)) for name in SAMPLERS} == {
        name: 12 if name in ("heun", "dpm2", "dpmpp_sde") else 6 for name in SAMPLERS
    }
    assert count_evaluations(of("x", sampler="heun", hires_steps=5), second_pass=True) == 10
    assert count_evaluations(of("x", sampler="heun"), second_pass=True) == 12


def test_the_prompt_is_written_and_read_as_it_is(pipe):
    prompt = "a [cat:dog:0.5] in [red|blue] AND a (tree:1.2) :0.7"
    made = pipe.generate(of(prompt, steps=2))
    again = GenerationSettings(**read_settings(made.infotexts[0]).values)
    assert again.prompt == prompt
    assert torch.equal(pipe.generate(again).latents, made.latents)
