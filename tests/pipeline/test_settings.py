import pytest

from sd.pipeline.infotext import parse_infotext
from sd.pipeline.metadata.settings_infotext import from_infotext, to_infotext
from sd.pipeline.settings import GenerationSettings
from sd.utils.errors import UserError


def test_a_webui_image_is_understood():
    text = (
        "a castle (on a hill:1.2)\nNegative prompt: blurry, lowres\n"
        "Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 965400086, Size: 512x768, "
        "Model hash: cc6cb27103, Model: v1-5-pruned-emaonly, Denoising strength: 0.55, Clip skip: 2, "
        "Hires upscale: 2, Hires upscaler: Latent, Version: v1.10.1"
    )
    settings = from_infotext(text)
    assert settings == GenerationSettings(
        prompt="a castle (on a hill:1.2)",
        negative_prompt="blurry, lowres",
        steps=20,
        sampler="dpmpp_2m",
        schedule="karras",
        guidance_scale=7.0,
        seed=965400086,
        width=512,
        height=768,
        clip_skip=2,
        hires_scale=2.0,
        hires_strength=0.55,
        variation_seed=settings.variation_seed,
        rng="gpu",  # the webui's default, which it does not write
        compat="webui",
    )


def test_an_older_webui_names_the_schedule_with_the_sampler():
    settings = from_infotext("x\nSteps: 20, Sampler: DPM++ 2M Karras, CFG scale: 7, Seed: 1, Size: 512x512")
    assert (settings.sampler, settings.schedule) == ("dpmpp_2m", "karras")


def test_writing_and_reading_is_the_same_again():
    asked = GenerationSettings(
        prompt='a "red", apple\nSteps: many',
        negative_prompt="x: y",
        steps=3,
        guidance_scale=2.25,
        sampler="dpmpp_2m_sde",
        schedule="sgm_uniform",
        seed=2**40,
        width=64,
        height=128,
        clip_skip=2,
        guidance_rescale=0.5,
        variation_seed=9,
        variation_strength=0.25,
        hires_scale=1.5,
        hires_strength=0.4,
        hires_upscaler="lanczos",
        tiling=True,
        guidance_start=0.1,
        guidance_end=0.75,
        step_cache=3,
        token_merging=0.4,
    )
    text = to_infotext(asked, 0, "model, with comma", "0123456789", from_image=False)
    assert from_infotext(text) == asked


def test_what_is_not_asked_for_is_not_written():
    text = to_infotext(GenerationSettings("x", seed=1, width=64, height=64), 0, "", "", from_image=False)
    assert not {"Guidance start", "Guidance end", "Step cache", "Token merging ratio"} & parse_infotext(text).keys()


def test_variations_keep_the_seed_and_count_the_variation():
    plain = GenerationSettings(seed=5, num_images=3, variation_seed=8)
    varied = GenerationSettings(seed=5, num_images=3, variation_seed=8, variation_strength=0.1)
    assert plain.seeds() == [5, 6, 7]
    assert varied.seeds() == [5, 5, 5]
    assert varied.variation_seeds() == [8, 9, 10]


@pytest.mark.parametrize("text", ["", "only a prompt", "x\nSteps: many, Sampler: Euler, CFG scale: 7, Seed: 1"])
def test_text_without_settings_is_refused(text):
    with pytest.raises(UserError):
        from_infotext(text)


def test_a_webui_sampler_that_we_lack_is_named():
    with pytest.raises(UserError, match=r"DPM\+\+ 3M"):
        from_infotext("x\nSteps: 20, Sampler: DPM++ 3M, CFG scale: 7, Seed: 1, Size: 512x512")
