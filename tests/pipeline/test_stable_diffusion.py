import math

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from PIL import Image
from safetensors.torch import save_file
from small_models import save_lora

from sd.adapters.manager import Adapters
from sd.checkpoints.discovery import Models
from sd.pipeline.latents import decode_latent, encode_image
from sd.pipeline.metadata.settings_infotext import from_infotext
from sd.pipeline.sampling.compatibility import truncate_sigmas
from sd.pipeline.settings import GenerationSettings
from sd.pipeline.stable_diffusion import StableDiffusion
from sd.prompts.weighting import encode_prompt
from sd.samplers import SAMPLERS
from sd.schedule import sigma_list
from sd.utils.errors import UserError
from sd.utils.images import from_tensor, to_tensor
from sd.vae import LATENT_SCALE


def same(a: Image.Image, b: Image.Image) -> bool:
    return a.size == b.size and a.tobytes() == b.tobytes()


def half_mask() -> Image.Image:
    """64x64, white on the left 24 columns: three latent cells of eight."""
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (0, 0, 24, 64))
    return mask


def test_txt2img_is_ddim_with_guidance_written_out(pipe):
    """The whole of it against diffusers' scheduler and a loop in VP form, as everybody writes it."""
    made = pipe("a red apple", "blurry", steps=7, sampler="ddim", guidance_scale=5.0, seed=11)

    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    scheduler.set_timesteps(7)
    contexts = [encode_prompt(pipe.tokenizer, pipe.clip, text) for text in ("blurry", "a red apple")]
    latent = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(11))
    with torch.no_grad():
        for t in scheduler.timesteps:
            uncond, cond = (pipe.unet(latent, t.expand(1), context) for context in contexts)
            latent = scheduler.step(uncond + 5.0 * (cond - uncond), t, latent).prev_sample
        image = pipe.vae.decode(latent / LATENT_SCALE)
    # Seven steps of a random U-Net enlarge fp32's rounding (another order of sums, batch of 2) about tenfold.
    assert (made.latents - latent).norm() / latent.norm() < 1e-5
    # The same image but for pixels that stood at the edge of rounding.
    difference = np.asarray(made.images[0], int) - np.asarray(from_tensor(image)[0], int)
    assert abs(difference).max() <= 1


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_third_of_a_batch_is_the_one_made_alone(pipe, sampler):
    many = pipe("a red apple", steps=3, sampler=sampler, seed=7, num_images=3)
    alone = pipe("a red apple", steps=3, sampler=sampler, seed=9)
    assert many.seeds == [7, 8, 9]
    assert torch.equal(many.latents[2:], alone.latents)
    assert same(many.images[2], alone.images[0])
    assert not same(many.images[0], alone.images[0])
    assert many.infotexts[2] == alone.infotexts[0]


def test_a_real_batch_differs_by_rounding_only(pipe):
    many = pipe("a red apple", steps=3, seed=7, num_images=3, batch_size=3)
    alone = pipe("a red apple", steps=3, seed=9)
    # Another batch size lets the backend sum in another order: fp32 rounding, a little enlarged by three steps.
    torch.testing.assert_close(many.latents[2:], alone.latents, rtol=1e-4, atol=1e-4)


def test_a_list_of_prompts_goes_on_counting_seeds(pipe):
    both = pipe(["a red apple", "a dog"], steps=2, seed=5, num_images=2)
    assert both.seeds == [5, 6, 7, 8]
    assert same(both.images[3], pipe("a dog", steps=2, seed=8).images[0])


def test_img2img_at_strength_0_is_the_vaes_reconstruction(pipe, photo):
    made = pipe("a red apple", image=photo, strength=0.0, seed=1)
    with torch.no_grad():
        mean, _ = pipe.vae.encode(to_tensor(photo))
        reconstruction = pipe.vae.decode(mean)
    # Scaled and scaled back: one rounding each way, so a pixel at the edge of rounding may fall to the other side.
    difference = np.asarray(made.images[0], int) - np.asarray(from_tensor(reconstruction)[0], int)
    assert abs(difference).max() <= 1
    torch.testing.assert_close(made.latents, mean * LATENT_SCALE)


def test_img2img_starts_part_of_the_way_down(pipe, photo):
    steps = []
    pipe("x", image=photo, strength=0.5, steps=10, seed=1, on_step=lambda done, total, x0: steps.append((done, total)))
    assert steps == [(i, 5) for i in range(1, 6)]
    with torch.no_grad():
        known = encode_image(pipe.vae, to_tensor(photo))
    distances = [(pipe("x", image=photo, strength=s, steps=10, seed=1).latents - known).norm() for s in (0.0, 0.3, 0.9)]
    assert distances[0] == 0
    assert distances[0] < distances[1] < distances[2]


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "plms", "heun", "dpmpp_2m", "unipc"])
@pytest.mark.parametrize("strength", [0.6, 1.0])
def test_inpainting_leaves_the_rest_of_the_latent_bit_for_bit(pipe, photo, sampler, strength):
    made = pipe("x", image=photo, mask=half_mask(), strength=strength, steps=5, sampler=sampler, seed=1)
    with torch.no_grad():
        known = encode_image(pipe.vae, to_tensor(photo))
    assert torch.equal(made.latents[..., 3:], known[..., 3:])
    assert not torch.allclose(made.latents[..., :3], known[..., :3], atol=0.1)
    assert np.array_equal(np.asarray(made.images[0])[:, 24:], np.asarray(photo)[:, 24:])


def test_inpainting_unet_sees_mask_and_masked_image(inpainting_pipe, photo):
    seen = []
    inpainting_pipe.unet.register_forward_pre_hook(lambda unet, args: seen.append(args[0]))
    inpainting_pipe("x", image=photo, mask=half_mask(), steps=2, strength=1.0, seed=1)
    hidden = to_tensor(photo)
    hidden[..., :24] = 0
    with torch.no_grad():
        masked = encode_image(inpainting_pipe.vae, hidden)
    assert seen[0].shape == (2, 9, 8, 8)
    for row in seen[0]:
        assert torch.equal(row[4, :, :3], torch.ones(8, 3))
        assert torch.equal(row[4, :, 3:], torch.zeros(8, 5))
        assert torch.equal(row[5:], masked[0])


def test_inpainting_unet_generates_from_text_alone(inpainting_pipe):
    seen = []
    inpainting_pipe.unet.register_forward_pre_hook(lambda unet, args: seen.append(args[0]))
    inpainting_pipe("x", steps=1, seed=1)
    assert torch.equal(seen[0][:, 4], torch.ones(2, 8, 8))


def test_a_guidance_interval_written_out(pipe):
    """Five steps of Euler by hand: t = 801, 601, 401 lie between shares 0.15 and 0.65 of the way, 201 and 1 do not."""
    made = pipe("a red apple", "blurry", steps=5, sampler="euler", seed=4, guidance_start=0.15, guidance_end=0.65)
    (segment,) = pipe.encode_prompts(GenerationSettings("a red apple", "blurry")).segments()
    uncond, (cond, _) = segment.uncond, segment.conds[0]
    sigmas = sigma_list(5)
    x = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(4))[None] * (1 + sigmas[0] ** 2) ** 0.5
    for sigma, to, t in zip(sigmas, sigmas[1:], (801.0, 601.0, 401.0, 201.0, 1.0)):
        with torch.no_grad():
            eps, from_uncond = (
                pipe.unet(x / (1 + sigma**2) ** 0.5, torch.tensor([t]), context) for context in (cond, uncond)
            )
        x = x + (to - sigma) * (from_uncond + 7.5 * (eps - from_uncond) if t > 400 else eps)
    # Twelve steps' worth of rounding on numbers of size ten: a batch of two against one by one, eps against x0.
    assert torch.allclose(made.latents, x, atol=1e-3)


APPROXIMATE = dict(guidance_start=0.1, guidance_end=0.7, step_cache=2, token_merging=0.5)


@pytest.mark.parametrize("sampler", list(SAMPLERS))
def test_approximations_together_in_every_sampler(pipe, sampler):
    asked = dict(steps=4, seed=1, sampler=sampler)
    made = pipe("a red apple", num_images=2, **asked, **APPROXIMATE)
    assert made.latents.isfinite().all()
    alone = pipe.generate(from_infotext(made.infotexts[1]))
    assert torch.equal(alone.latents, made.latents[1:])
    assert not torch.allclose(pipe("a red apple", **asked).latents, made.latents[:1])


def test_approximations_inpaint_and_generate_twice(inpainting_pipe, photo):
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 32, 64))
    made = inpainting_pipe("x", image=photo, mask=mask, strength=1.0, steps=3, seed=1, **APPROXIMATE)
    assert made.latents.isfinite().all()
    twice = inpainting_pipe("x", steps=4, seed=1, hires_scale=1.5, **APPROXIMATE)
    assert twice.images[0].size == (96, 96)


def test_an_empty_prompt_generates_without_guidance(pipe):
    batches = []
    pipe.unet.register_forward_pre_hook(lambda unet, args: batches.append(len(args[0])))
    empty = pipe("", steps=2, seed=1)
    assert batches == [1, 1]
    assert torch.equal(empty.latents, pipe("", steps=2, seed=1, guidance_scale=1.0).latents)


def test_every_setting_is_heard(pipe):
    plain = pipe("a red apple", steps=3, seed=1).latents
    for changed in (
        dict(negative_prompt="blurry"),
        dict(guidance_scale=3.0),
        dict(sampler="euler"),
        dict(schedule="karras"),
        dict(clip_skip=2),
        dict(variation_strength=0.5, variation_seed=3),
        dict(guidance_rescale=0.7),
        dict(tiling=True),
        dict(guidance_start=0.5),
        dict(guidance_end=0.5),
        dict(step_cache=2),
        dict(token_merging=0.5),
        dict(seed=2),
    ):
        assert not torch.allclose(pipe("a red apple", **(dict(steps=3, seed=1) | changed)).latents, plain), changed
    assert torch.equal(pipe("a red apple", steps=3, seed=1).latents, plain)  # and leaves nothing behind


def test_variation_strength_runs_from_one_seeds_noise_to_the_others(pipe):
    first, second = pipe("x", steps=1, sampler="ddim", seed=1), pipe("x", steps=1, sampler="ddim", seed=2)
    for strength, expected in ((0.0, first), (1.0, second)):
        made = pipe("x", steps=1, sampler="ddim", seed=1, variation_seed=2, variation_strength=strength)
        # At 1 the arc's sine of a half turn leaves fp32 rounding of the first noise.
        torch.testing.assert_close(made.latents, expected.latents, rtol=1e-3, atol=1e-4)


def test_tiling_makes_the_image_wrap(pipe):
    """Shift the starting noise around the edge, and the image shifts with it."""
    from sd.denoiser import Denoiser
    from sd.pipeline.circular_padding import circular_padding

    x = torch.randn(1, 4, 8, 8)
    context = torch.randn(1, 77, 64)
    with torch.no_grad(), circular_padding(pipe.unet, pipe.vae):
        denoise = Denoiser(pipe.unet, context)
        image, shifted = (decode_latent(pipe.vae, denoise(start, 1.0)) for start in (x, x.roll(4, dims=3)))
    # The U-Net halves the size once, so a shift by 4 is whole there; what is left is fp32 rounding.
    torch.testing.assert_close(image.roll(32, dims=3), shifted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("upscaler", ["latent", "lanczos"])
def test_hires_generates_twice(pipe, upscaler):
    steps = []
    made = pipe(
        *("a red apple",),
        **dict(steps=10, seed=1, hires_scale=1.5, hires_strength=0.5, hires_upscaler=upscaler),
        on_step=lambda done, total, x0: steps.append((done, total, x0.shape[-1])),
    )
    assert made.images[0].size == (96, 96)
    assert steps == [(i, 15, 8 if i <= 10 else 12) for i in range(1, 16)]


def test_on_step_can_stop_the_generation(pipe):
    class Cancelled(Exception):
        pass

    def stop(done, total, x0):
        assert x0.shape == (1, 4, 8, 8)
        assert pipe.preview(x0)[0].size == (64, 64)
        if done == 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        pipe("x", steps=5, seed=1, tiling=True, on_step=stop)
    assert all(m.padding_mode == "zeros" for m in pipe.unet.modules() if isinstance(m, torch.nn.Conv2d))


def test_odd_sizes_and_not_square(pipe):
    made = pipe("x", steps=2, seed=1, width=72, height=40)
    assert made.images[0].size == (72, 40)
    assert made.latents.shape == (1, 4, 5, 9)


def test_the_infotext_generates_the_same_again(pipe, tmp_path):
    made = pipe(
        "a (red:1.2) apple,\nround", "blurry", steps=3, sampler="dpmpp_2m", schedule="karras", num_images=2, clip_skip=2
    )
    again = pipe.generate(from_infotext(made.infotexts[1]))
    assert same(again.images[0], made.images[1])
    assert again.infotexts[0] == made.infotexts[1]


def test_fp16_vae_that_overflows_is_run_again_in_fp32(pipe, capsys):
    pipe.vae.half()
    with torch.no_grad():
        pipe.vae.decoder.conv_in.weight.mul_(1e5)  # beyond 65504
    image = decode_latent(pipe.vae, torch.randn(1, 4, 8, 8))
    assert image.isfinite().all()
    assert capsys.readouterr().err.count("fp32") == 1
    decode_latent(pipe.vae, torch.randn(1, 4, 8, 8))
    assert capsys.readouterr().err == ""


def test_an_image_that_is_not_a_number_is_said(pipe):
    with torch.no_grad():
        pipe.vae.decoder.conv_out.bias.fill_(math.nan)
    with pytest.raises(UserError, match="NaN"):
        pipe("x", steps=1, seed=1)


def test_taesd_previews_and_decodes(pipe):
    from sd.pipeline.taesd import TAESD

    pipe.taesd = TAESD()
    latent = pipe("x", steps=1, seed=1).latents
    with torch.no_grad():
        expected = from_tensor(pipe.taesd.decode(latent))[0]
    assert same(pipe.preview(latent)[0], expected)
    assert not same(pipe("x", steps=1, seed=1).images[0], expected)
    pipe.decode_with_taesd = True
    assert same(pipe("x", steps=1, seed=1).images[0], expected)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (dict(width=0), "width"),
        (dict(height=-8), "height"),
        (dict(width=65), "multiple of 8"),
        (dict(width=10**9), "width"),
        (dict(steps=0), "steps"),
        (dict(steps=-1), "steps"),
        (dict(steps=1001), "steps"),
        (dict(steps=2.5), "steps"),
        (dict(sampler="nonsense"), "sampler"),
        (dict(schedule="nonsense"), "schedule"),
        (dict(num_images=0), "images"),
        (dict(seed=-2), "seed"),
        (dict(seed=2**70), "seed"),
        (dict(strength=1.5), "strength"),
        (dict(guidance_scale=float("nan")), "guidance"),
        (dict(guidance_scale=-1), "guidance"),
        (dict(clip_skip=0), "clip_skip must"),
        (dict(clip_skip=3), "clip_skip must"),
        (dict(prompt="apple " * 5000), "prompt"),
        (dict(hires_scale=100), "hires"),
        (dict(mask=Image.new("L", (64, 64))), "mask"),
        (dict(guidance_start=0.6, guidance_end=0.5), "ends"),
        (dict(guidance_end=1.5), "guidance_end must"),
        (dict(step_cache=0), "step_cache must"),
        (dict(token_merging=0.9), "token_merging must"),
    ],
)
def test_what_cannot_be_generated_is_said_in_one_sentence(pipe, changed, said):
    with pytest.raises(UserError, match=said) as caught:
        pipe(**(dict(prompt="x", steps=2, seed=1) | changed))
    assert "\n" not in str(caught.value)


def test_an_unknown_keyword_is_pythons_own_error(pipe):
    with pytest.raises(TypeError, match="colour"):
        pipe("x", steps=2, colour="red")


def test_seed_is_any_when_it_is_none_or_minus_one(pipe):
    seeds = {pipe("x", steps=1, seed=seed).seeds[0] for seed in (None, -1, None)}
    assert len(seeds) == 3  # three draws of 32 bits: equal once in a thousand million


def test_last_part():
    sigmas = [4.0, 3.0, 2.0, 1.0, 0.0]
    assert truncate_sigmas(sigmas, 1.0) == sigmas
    assert truncate_sigmas(sigmas, 0.5) == [2.0, 1.0, 0.0]
    assert truncate_sigmas(sigmas, 0.3) == [1.0, 0.0]
    assert truncate_sigmas(sigmas, 0.0) == [0.0]


@pytest.fixture
def loads(pipe, tmp_path, monkeypatch):
    """The names of the LoRAs that the pipeline has loaded; it can load bent and curly."""
    for seed, name in enumerate(("bent", "curly")):
        save_lora(tmp_path / f"{name}.safetensors", seed)
    pipe.adapters.models = Models(tmp_path / "none", tmp_path, tmp_path / "none")
    loaded, load = [], Adapters.load_lora

    def load_counted(self, path, *more):
        loaded.append(path.stem)
        return load(self, path, *more)

    monkeypatch.setattr(Adapters, "load_lora", load_counted)
    return loaded


def test_the_loras_of_a_prompt_stay_for_the_next_image_while_they_are_the_same(pipe, loads):
    prompts = [
        *("apple<lora:bent:0.5>", "pear <lora:bent:0.5>", "pear"),
        *("<lora:bent:0.7>pear", "a<lora:curly:1><lora:bent:0.7>", "a<lora:bent:0.7><lora:curly:1>"),
    ]
    alone = [pipe(prompt, steps=2, seed=7 + i) for i, prompt in enumerate(prompts)]
    assert loads == ["bent", "bent", "bent", "curly", "bent", "bent", "curly"]
    loads.clear()
    with pipe.keep_prompt_loras():
        kept = [pipe(prompt, steps=2, seed=7 + i) for i, prompt in enumerate(prompts)]
    assert loads == ["bent", "bent", "curly", "bent", "bent", "curly"]
    assert pipe.adapters.names() == []
    for one, other in zip(kept, alone):
        assert torch.equal(one.latents, other.latents)
        assert (one.infotexts, one.notes) == (other.infotexts, other.notes)
        assert list(map(str, one.reports)) == list(map(str, other.reports))
    loads.clear()
    both = pipe(["apple<lora:bent:0.5>"] * 3, steps=1, seed=1)
    assert (loads, len(both.images), pipe.adapters.names()) == (["bent"], 3, [])


def test_an_error_releases_the_loras_that_are_kept(pipe, loads):
    plain = pipe("apple", steps=2, seed=1).latents
    with pipe.keep_prompt_loras():
        pipe("apple<lora:bent:1>", steps=1)
        assert pipe.adapters.names() == ["<lora:bent>"]
        with pytest.raises(UserError, match="nothing"):
            pipe("apple<lora:bent:1><lora:nothing:1>", steps=1)
    assert pipe.adapters.names() == []
    assert torch.equal(pipe("apple", steps=2, seed=1).latents, plain)


def test_loras_and_embeddings_come_and_go(pipe, tmp_path):
    generator = torch.Generator().manual_seed(0)
    save_lora(tmp_path / "bent.safetensors", 0)
    save_file({"<bent>": torch.randn(2, 64, generator=generator)}, tmp_path / "word.safetensors")
    pipe.adapters.models = Models(tmp_path / "none", tmp_path, tmp_path / "none")
    plain, in_words = (pipe(text, steps=2, seed=1).latents for text in ("apple", "a <bent> apple"))

    tagged = pipe("apple<lora:bent:0.5>", steps=2, seed=1)
    assert not torch.allclose(tagged.latents, plain)
    assert "<lora:bent:0.5>" in tagged.infotexts[0]
    assert torch.equal(pipe("apple", steps=2, seed=1).latents, plain)  # it was there for that prompt only

    report = pipe.load_lora(tmp_path / "bent.safetensors", 0.5)
    assert (report.matched, report.total) == (1, 1)
    assert torch.equal(pipe("apple", steps=2, seed=1).latents, tagged.latents)
    pipe.load_embedding(tmp_path / "word.safetensors")
    both = pipe("a <bent> apple", steps=2, seed=1)
    assert not torch.allclose(both.latents, in_words)
    assert 'Adapters: "bent, <bent>"' in both.infotexts[0]
    pipe.unload()
    assert torch.equal(pipe("apple", steps=2, seed=1).latents, plain)
    assert torch.equal(pipe("a <bent> apple", steps=2, seed=1).latents, in_words)
    for wrong in ("<lora:nothing:1>", "<lora:../bent:1>", "<lora:bent:much>"):
        with pytest.raises(UserError, match=r"lora|LoRA"):
            pipe(wrong, steps=1)


@pytest.mark.parametrize("name", ["model.ckpt", "model.safetensors", "model"])
def test_saved_and_loaded_it_generates_the_same(pipe, tmp_path, name):
    pipe.save_pretrained(tmp_path / name)
    again = StableDiffusion.from_pretrained(tmp_path / name)
    assert again.sizes == pipe.sizes
    for part in ("clip", "vae", "unet"):
        read, written = (getattr(one, part).state_dict() for one in (again, pipe))
        assert read.keys() == written.keys()
        assert all(torch.equal(read[key], written[key]) for key in written)
    # One grey level: in a file, weights begin anywhere, and where the address differs kernels may sum in another order.
    images = [np.asarray(one("x", steps=2, seed=1).images[0]).astype(int) for one in (again, pipe)]
    assert abs(images[0] - images[1]).max() <= 1


def test_no_path_is_the_bundled_model():
    pipe = StableDiffusion.from_pretrained()
    assert pipe.path.name == "emoji.safetensors"
    assert pipe.dtype == torch.float32
    made = pipe("a red apple", steps=4, seed=1)
    assert made.images[0].size == (pipe.image_size, pipe.image_size)
    assert "Model: emoji" in made.infotexts[0]
