"""Regions: against a toy denoiser whose answer is known, and in the pipeline with everything that they meet."""

import numpy as np
import pytest
import torch
from PIL import Image

from sd.denoiser import Denoiser, Guidance
from sd.pipeline.inputs.regions import check_regions, region_weights
from sd.pipeline.metadata.settings_infotext import read_settings
from sd.pipeline.sampling.composed import ComposedGuidance
from sd.pipeline.settings import GenerationSettings
from sd.utils.errors import UserError

SMALL = dict(steps=3, seed=5, guidance_scale=3.0, sampler="euler", width=64, height=64)
X = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def settings(prompt, **more):
    return GenerationSettings(prompt, **SMALL | more)


def half_mask(left=True, size=64):
    mask = Image.new("L", (size, size))
    mask.paste(255, (0, 0, size // 2, size) if left else (size // 2, 0, size, size))
    return mask


def pixels(output):
    return np.array(output.images[0]).astype(int)


def toy_unet(x, t, context):
    """eps whose x0 is the mean of the context, at every position: x0 = x - sigma * eps."""
    sigma = 2.0
    return (x * (1 + sigma**2) ** 0.5 - context.mean((1, 2))[:, None, None, None]) / sigma


def context_of(value):
    return torch.full((2, 4, 3), float(value))


def test_x0_is_each_regions_answer_in_its_region():
    weights = region_weights(settings("a ADDCOL b"), [], 64, 64)
    conds = list(zip((context_of(0.5), context_of(-1)), weights))
    x0 = ComposedGuidance(toy_unet, conds, context_of(0.1), 1.0)(X, 2.0)
    expected = torch.full_like(X, 0.5)
    expected[..., 4:] = -1
    torch.testing.assert_close(x0, expected, rtol=0, atol=2e-6)  # fp32 rounding of x of size 10


def test_the_whole_images_prompt_has_its_share_and_guidance_adds_to_the_mean():
    weights = region_weights(settings("g ADDBASE a ADDCOL b", region_base=0.25), [], 64, 64)
    conds = list(zip(map(context_of, (2, 0.5, -1)), weights))
    x0 = ComposedGuidance(toy_unet, conds, context_of(0.1), 3.0)(X, 2.0)
    left, right = 0.25 * 2 + 0.75 * 0.5, 0.25 * 2 - 0.75 * 1
    expected = torch.full_like(X, 0.1 + 3 * (left - 0.1))
    expected[..., 4:] = 0.1 + 3 * (right - 0.1)
    torch.testing.assert_close(x0, expected, rtol=0, atol=1e-5)  # fp32 rounding, three times


def test_it_is_the_sum_of_masks_times_the_guided_denoisers():
    soft = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    a, b, uncond = (torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(seed)) for seed in (2, 3, 4))
    ours = ComposedGuidance(toy_unet, [(a, soft), (b, 1 - soft)], uncond, 5.0)(X, 2.0)
    alone = [Guidance(toy_unet, one, uncond, 5.0)(X, 2.0) for one in (a, b)]
    torch.testing.assert_close(ours, soft * alone[0] + (1 - soft) * alone[1], rtol=0, atol=2e-5)  # order of sums


def test_one_region_everywhere_is_the_plain_denoiser_bit_for_bit():
    cond, uncond = context_of(0.7), context_of(0.1)
    masked = ComposedGuidance(toy_unet, [(cond, torch.ones(1, 1, 8, 8))], uncond, 7.5)(X, 2.0)
    assert torch.equal(masked, Guidance(toy_unet, cond, uncond, 7.5)(X, 2.0))
    assert not torch.equal(masked, Denoiser(toy_unet, cond)(X, 2.0))


def test_masks_sum_to_one_and_follow_the_ratios():
    for prompt, ratios in (("a ADDCOL b ADDCOL c", "1,2,4"), ("g ADDBASE a ADDROW b ADDCOL c", "3;2,1,1.5")):
        weights = region_weights(settings(prompt, region_ratios=ratios), [], 72, 56)
        torch.testing.assert_close(sum(weights), torch.ones(1, 1, 7, 9))  # rounding
    thirds = region_weights(settings("a ADDCOL b", region_ratios="1,2"), [], 64, 64)[0][0, 0, 0]
    # A third of 8 cells is 2 and two thirds.
    torch.testing.assert_close(thirds, torch.tensor([1, 1, 2 / 3, 0, 0, 0, 0, 0]))
    assert region_weights(settings("a cat"), [], 64, 64) == []


def test_overlapping_masks_share_and_bare_parts_are_the_bases_or_everyones():
    masks = [Image.new("L", (8, 8), 255), half_mask()]
    one, two = region_weights(settings("a ADDCOL b"), masks, 64, 64)
    assert one[0, 0, 0].tolist() == [0.5] * 4 + [1.0] * 4
    assert two[0, 0, 0].tolist() == [0.5] * 4 + [0.0] * 4
    black = Image.new("L", (8, 8))
    base, one = region_weights(settings("g ADDBASE a"), [half_mask()], 64, 64)
    torch.testing.assert_close(base[0, 0, 0], torch.tensor([0.2] * 4 + [1.0] * 4))
    assert (region_weights(settings("a ADDCOL b"), [black, black], 64, 64)[0] == 0.5).all()


# In the pipeline


def test_one_region_that_covers_all_is_the_plain_prompt_bit_for_bit(pipe):
    plain = pipe("a red apple", **SMALL).latents
    white, black = Image.new("L", (16, 16), 255), Image.new("L", (16, 16))
    assert torch.equal(pipe("a red apple", region_mask=white, **SMALL).latents, plain)
    assert torch.equal(pipe("a cat ADDCOL a red apple", region_mask=[black, white], **SMALL).latents, plain)
    assert torch.equal(pipe("x ADDBASE a red apple", region_base=0.0, **SMALL).latents, plain)
    assert torch.equal(pipe("a red apple ADDBASE x", region_base=1.0, **SMALL).latents, plain)
    assert torch.equal(pipe("a red ADDCOMM apple", **SMALL).latents, pipe("a red, apple", **SMALL).latents)


def test_equal_prompts_in_two_regions_are_the_plain_prompt(pipe):
    plain = pipe("a red apple", **SMALL).latents
    both = pipe("a red apple ADDCOL a red apple", region_ratios="1,2", **SMALL).latents
    torch.testing.assert_close(both, plain, rtol=0, atol=1e-4)  # fp32 in another order, over three steps


def test_a_region_changes_its_own_part_most(pipe):
    plain = pixels(pipe("a red apple", **SMALL))
    other = pixels(pipe("a red apple ADDCOL a big blue house", **SMALL | {"guidance_scale": 9.0}))
    both = pixels(pipe("a red apple", **SMALL | {"guidance_scale": 9.0}))
    change = abs(other - both).mean(axis=(0, 2))
    assert change[40:].mean() > 2 * change[:24].mean()
    assert not np.array_equal(other, plain)


@pytest.mark.parametrize(
    "more",
    [
        {"negative_prompt": "blurry, (bad:1.3)"},
        {"sampler": "euler_cfgpp"},
        {"sampler": "lcm", "guidance_scale": 1.0},
        {"guidance_rescale": 0.5, "guidance_start": 0.2, "guidance_end": 0.8},
        {"step_cache": 2, "token_merging": 0.3},
        {"hires_scale": 2.0, "hires_upscaler": "latent"},
        {"tiling": True},
        {"compat": "webui", "rng": "gpu"},
        {"num_images": 2, "batch_size": 2},
    ],
    ids=lambda more: next(iter(more)),
)
def test_it_combines_and_is_the_same_twice(pipe, more):
    prompt = "a garden ADDBASE a [cat:fox:0.5] ADDCOL a dog AND a pig:0.5 ADDROW " + "a long tree, " * 30
    given = SMALL | more
    made = [pipe(prompt, **given) for _ in range(2)]
    assert np.array_equal(pixels(made[0]), pixels(made[1]))
    assert not np.array_equal(pixels(made[0]), pixels(pipe("a garden", **given)))


def test_img2img_inpainting_and_an_inpainting_checkpoint(pipe, inpainting_pipe, photo):
    mask = half_mask()
    prompt = "a cat ADDROW a dog"
    given = SMALL | {"strength": 0.7}
    made = pipe(prompt, image=photo, mask=mask, **given)
    assert np.array_equal(np.array(made.images[0])[:, 40:], np.array(photo)[:, 40:])
    assert not np.array_equal(pixels(made), pixels(pipe("a cat", image=photo, mask=mask, **given)))
    pipe(prompt, image=photo, mask=mask, soft_inpainting=True, mask_blur=4, **given)
    noted = pipe(prompt, image=photo, mask=mask, only_masked=True, **given)
    assert "not the whole image" in " ".join(noted.notes)
    inpainting_pipe(prompt, image=photo, mask=mask, **given)


def test_tiled_diffusion(pipe):
    given = SMALL | {"width": 96, "tile_size": 64}
    made = pipe("a cat ADDCOL a dog", **given)
    assert made.images[0].size == (96, 64)
    assert not np.array_equal(pixels(made), pixels(pipe("a cat", **given)))


def test_infotext_has_the_regions_and_asks_for_the_masks(pipe):
    prompt = "a garden ADDBASE a cat ADDCOL a dog"
    text = pipe(prompt, region_ratios="1,2", region_base=0.4, **SMALL).infotexts[0]
    values = read_settings(text).values
    assert (values["prompt"], values["region_ratios"], values["region_base"]) == (prompt, "1,2", 0.4)
    masked = pipe(prompt, region_mask=[half_mask(), half_mask(False)], **SMALL).infotexts[0]
    assert "Region masks: 2" in masked
    assert "region masks, which are not in it" in read_settings(masked).notes["Region masks"]
    assert "labels" not in read_settings(masked).notes


def test_what_regions_need_in_the_prompt_is_said(pipe):
    assert pipe("a cat", region_base=0.5, **SMALL).notes == [
        "Without ADDBASE in the prompt, region base changes nothing."
    ]
    beside = pipe("a cat ADDCOL a dog", region_base=0.5, **SMALL).notes
    assert beside == ["Without ADDBASE in the prompt, region base changes nothing."]
    assert pipe("a park ADDBASE a cat ADDCOL a dog", region_base=0.5, **SMALL).notes == []
    (small,) = pipe("a cat addcol a dog", **SMALL).notes
    assert "in capitals, ADDCOL is for regions" in small


def test_notes(pipe):
    assert "change nothing" in pipe("a cat", region_ratios="1,2", **SMALL).notes[0]
    bare = pipe("a cat ADDCOL a dog", region_mask=[half_mask(), Image.new("L", (8, 8))], region_ratios="1,2", **SMALL)
    assert "the region ratios change nothing" in " ".join(bare.notes)
    assert "50 % of the image is in no region's mask" in " ".join(bare.notes)


@pytest.mark.parametrize(
    ("given", "masks", "said"),
    [
        (dict(prompt="a", negative_prompt="b ADDCOL c"), 0, "negative prompt is one"),
        (dict(prompt="a ADDCOL b"), 1, "2 regions and there is 1 region mask: give one mask for each"),
        (dict(prompt="a"), 2, "1 region and there are 2 region masks"),
        (dict(prompt="a ADDCOL b", region_ratios="1,2,3"), 0, "do not fit"),
        (dict(prompt="a ADDCOL b ADDBASE c"), 0, "stands once"),
    ],
)
def test_what_does_not_fit_is_refused(given, masks, said):
    with pytest.raises(UserError, match=said):
        check_regions(GenerationSettings(**given), masks)


def test_too_many_regions_are_refused(pipe):
    with pytest.raises(UserError, match="17 parts"):
        pipe(" ADDCOL ".join("a" * 17), **SMALL)


@pytest.mark.parametrize(
    "mask",
    [
        half_mask().convert("RGB"),
        half_mask().convert("P"),
        half_mask().convert("1"),
        Image.fromarray(np.array(half_mask()).astype(np.uint16) * 257),
        half_mask(size=512),
        np.array(half_mask()) > 0,
    ],
    ids=["rgb", "palette", "1 bit", "16 bit", "large", "array"],
)
def test_masks_of_any_kind(pipe, mask):
    given = dict(prompt="a cat ADDCOL a dog", **SMALL)
    expected = pipe(**given, region_mask=[half_mask(), half_mask(False)])
    made = pipe(**given, region_mask=[mask, half_mask(False)])
    assert abs(pixels(made) - pixels(expected)).mean() < 1  # of 255; a large mask's edge is smooth once it is resized


def test_a_mask_of_strokes_on_a_transparent_ground(pipe):
    stroke = Image.new("RGBA", (64, 64))
    stroke.paste((200, 0, 0, 255), (0, 0, 32, 64))
    given = dict(prompt="a cat ADDCOL a dog", **SMALL)
    expected = pipe(**given, region_mask=[half_mask(), half_mask(False)])
    assert np.array_equal(pixels(pipe(**given, region_mask=[stroke, half_mask(False)])), pixels(expected))
