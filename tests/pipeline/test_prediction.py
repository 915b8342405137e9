"""Models of v-prediction and zero terminal SNR through the whole pipeline, into infotext and back."""

import math

import pytest
import torch
from diffusers import DDIMScheduler

from sd.checkpoints.predictions import PREDICTIONS, Prediction, with_prediction
from sd.pipeline.metadata.infotext_reading import SCRIPTS
from sd.pipeline.metadata.settings_infotext import read_settings
from sd.pipeline.sampler_names import ALL_SAMPLERS
from sd.pipeline.sampling.schedules import sigmas_for
from sd.pipeline.sampling.v_prediction import VDenoiser, schedule_of
from sd.pipeline.sampling_loop import sampler_run
from sd.pipeline.settings import GenerationSettings
from sd.pipeline.stable_diffusion import StableDiffusion
from sd.prompts.weighting import encode_prompt
from sd.utils.errors import UserError

V, BOTH = PREDICTIONS["v"], PREDICTIONS["v-zero-snr"]
SD1 = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1)


def of(pipe, prediction):
    pipe.sizes = with_prediction(pipe.sizes, prediction)
    return pipe


@pytest.mark.parametrize("prediction", [V, BOTH], ids=lambda one: one.name)
def test_txt2img_is_diffusers_ddim(pipe, prediction):
    """From the prompt to the latent, against diffusers' scheduler and a loop in VP form."""
    made = of(pipe, prediction)("a cat", "blurry", steps=8, sampler="ddim", guidance_scale=5.0, seed=11)
    zero = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"} if prediction.zero_snr else {}
    scheduler = DDIMScheduler(**SD1, set_alpha_to_one=False, prediction_type="v_prediction", **zero)
    if prediction.zero_snr:
        scheduler.alphas_cumprod[-1] = schedule_of(prediction).alphas_cumprod[-1]  # theirs is 0 exactly
    scheduler.set_timesteps(8)  # a divisor of 1000: else diffusers steps to other times than it visits
    contexts = [encode_prompt(pipe.tokenizer, pipe.clip, text) for text in ("blurry", "a cat")]
    latent = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(11))
    with torch.no_grad():
        for t in scheduler.timesteps:
            uncond, cond = (pipe.unet(latent, t.expand(1), context) for context in contexts)
            latent = scheduler.step(uncond + 5.0 * (cond - uncond), t, latent).prev_sample
    # fp32: the whole of eight steps of a random U-Net, whose errors grow about tenfold
    assert (made.latents - latent).norm() / latent.norm() < 2e-5


def test_zero_snr_starts_from_pure_noise_and_says_so(pipe):
    seen = []
    pipe.unet.register_forward_pre_hook(lambda unet, args: seen.append(args[1][0].item()))
    made = of(pipe, BOTH)("x", steps=2, seed=1)
    assert seen[0] == 999
    assert "trailing is used instead" in made.notes[0]
    assert "Schedule type: Trailing" in made.infotexts[0]
    assert of(pipe, BOTH)("x", steps=2, seed=1, schedule="karras").notes == []


@pytest.mark.parametrize("name", ALL_SAMPLERS)
@pytest.mark.parametrize("value", [-1.0, 1.0], ids=["black", "white"])
def test_every_sampler_finds_a_black_and_a_white_image(name, value):
    """Data of one constant: the exact v is known, and from pure noise every sampler must return that very constant."""
    schedule = schedule_of(BOTH)

    def unet(x, t, context):
        sigma = schedule.sigma_of(t[0].item())
        noise = (x * math.sqrt(1 + sigma**2) - value) / sigma  # sigma space: x = x0 + sigma * noise
        return (noise - sigma * value) / math.sqrt(1 + sigma**2)

    settings = GenerationSettings("x", sampler=name, seed=1, width=8, height=8)
    to_zero = ALL_SAMPLERS[name].to_zero
    sigmas = sigmas_for(10, "lcm" if name in ("lcm", "tcd") else "karras", to_zero, schedule)
    generator = torch.Generator().manual_seed(0)

    def noise():
        return torch.randn(1, 4, 4, 4, generator=generator, dtype=torch.float64)

    denoise = VDenoiser(unet, torch.zeros(1, 1, 1, dtype=torch.float64), schedule=schedule)
    *_, (_, x0) = sampler_run(settings, schedule)(denoise, noise() * sigmas[0], sigmas, noise)
    # t is float32 in the U-Net's call, which at sigma 4519 leaves about 1e-3 of x0; LCM mixes in a little of x.
    torch.testing.assert_close(x0, torch.full_like(x0, value), rtol=0, atol=2e-2)


def test_a_model_of_eps_has_the_bits_of_before(pipe):
    plain = pipe("a cat", steps=3, seed=1).latents
    assert torch.equal(of(pipe, Prediction())("a cat", steps=3, seed=1).latents, plain)
    assert not torch.allclose(of(pipe, V)("a cat", steps=3, seed=1).latents, plain, atol=0.1)


def test_a_choice_is_written_into_infotext_and_read_as_a_note(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "plain.safetensors")
    loaded = StableDiffusion.from_pretrained(tmp_path / "plain.safetensors", "cpu", prediction="v")
    assert loaded.prediction == V
    text = loaded("x", steps=1, seed=1).infotexts[0]
    assert "Prediction: v" in text
    assert "--prediction v," in read_settings(text, SCRIPTS).notes["Prediction"]
    marked = of(pipe, V)
    marked.save_pretrained(tmp_path / "marked.safetensors")
    again = StableDiffusion.from_pretrained(tmp_path / "marked.safetensors", "cpu")
    assert again.prediction == V
    assert "Prediction" not in again("x", steps=1, seed=1).infotexts[0]
    with pytest.raises(UserError, match="unknown prediction"):
        StableDiffusion.from_pretrained(tmp_path / "plain.safetensors", "cpu", prediction="x0")


def test_the_webuis_zero_snr_option_is_a_note():
    text = "x\nSteps: 20, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 64x64, Noise Schedule: Zero Terminal SNR"
    assert "--prediction to v-zero-snr" in read_settings(text, SCRIPTS).notes["Noise Schedule"]
