"""Settings as five programs and their forks write them: each is obeyed, noted or refused as it should be.

The texts are written here from the formats; no one's prompt or image is in them.
"""

import json
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

from sd.pipeline.infotext import read_infotext
from sd.pipeline.metadata.infotext_keys import FROM_IMAGE, NO_EFFECT, NOTED, OBEYED, table_of_labels, treatment_of
from sd.pipeline.metadata.settings_infotext import read_settings
from sd.pipeline.settings import OPTIONS, GenerationSettings

WEB = "Steps: 20, Sampler: {}, {}CFG scale: 7, Seed: 42, Size: 512x768, Model hash: 0123456789, Model: dreamy, "
NEW = dict(rng="gpu", compat="webui", steps=20, guidance_scale=7.0, seed=42, width=512, height=768)
V110, V16, FORGE = "Version: v1.10.1", "Version: v1.6.0", "Version: f2.0.1v1.10.1-previous-1-g0123456"


def web(sampler, schedule="", more="", version=V110):
    """The webui's text; `more` ends in a comma and a space."""
    line = WEB.format(sampler, f"Schedule type: {schedule}, " if schedule else "") + more + version
    return f"a lighthouse at night\nNegative prompt: blurry, low quality\n{line}"


def cpp(sampler, more="RNG: cuda, "):
    return (
        "a lighthouse\nNegative prompt: blurry\nSteps: 20, CFG scale: 7.000000, Guidance: 3.500000, Eta: 0.000000, "
        f"Seed: 42, Size: 512x512, Model: v1-5.safetensors, {more}Sampler: {sampler}, Version: stable-diffusion.cpp"
    )


def ks(sampler="euler", scheduler="normal", denoise=1.0, **nodes):
    """A graph of ComfyUI with one KSampler. nodes: further ones, or replacements, by their numbers."""
    inputs = dict(seed=42, steps=20, cfg=7.0, sampler_name=sampler, scheduler=scheduler, denoise=denoise)
    links = dict(model=["4", 0], positive=["6", 0], negative=["7", 0], latent_image=["5", 0])
    graph = {
        "3": node("KSampler", **inputs, **links),
        "4": node("CheckpointLoaderSimple", ckpt_name="folder/dreamy.safetensors"),
        "5": node("EmptyLatentImage", width=512, height=768, batch_size=1),
        "6": node("CLIPTextEncode", text="a lighthouse", clip=["4", 1]),
        "7": node("CLIPTextEncode", text="blurry", clip=["4", 1]),
    }
    return {"prompt": json.dumps(graph | {key.removeprefix("n"): one for key, one in nodes.items()})}


def node(kind, **inputs):
    return {"class_type": kind, "inputs": inputs}


def invoke(scheduler="euler", **more):
    keys = dict(positive_prompt="a lighthouse", negative_prompt="blurry", width=512, height=768, seed=42, steps=20)
    keys |= dict(cfg_scale=7.0, scheduler=scheduler, rand_device="cpu", app_version="4.2.0", model={"name": "dreamy"})
    return {"invokeai_metadata": json.dumps(keys | more)}


def novel(sampler="k_euler_ancestral", **more):
    keys = dict(steps=20, height=768, width=512, scale=7.0, uncond_scale=1.0, seed=42, uc="blurry", sampler=sampler)
    return {"Description": "a {lighthouse}", "Comment": json.dumps(keys | more), "Software": "NovelAI"}


def fooocus(sampler="dpmpp_2m_sde_gpu", scheduler="karras", **more):
    keys = dict(prompt="a lighthouse", negative_prompt="blurry", steps=20, guidance_scale=7.0, seed="42")
    keys |= dict(resolution="(512, 768)", base_model="dreamy", performance="Speed", version="Fooocus v2.5.0")
    return {"parameters": json.dumps(keys | dict(sampler=sampler, scheduler=scheduler) | more)}


COMFY = dict(rng="cpu", compat="comfyui", steps=20, guidance_scale=7.0, seed=42, width=512, height=768)
PLAIN = dict(steps=20, guidance_scale=7.0, seed=42, width=512, height=768)
CPP = dict(rng="nv", steps=20, guidance_scale=7.0, seed=42, width=512, height=512)

# (the text or the PNG's texts, values, labels with a note, fields with a problem)
CASES = {
    # the webui and its forks
    "webui": (web("DPM++ 2M", "Karras"), NEW | dict(sampler="dpmpp_2m", schedule="karras"), set(), set()),
    "webui automatic": (web("DPM++ 2M", "Automatic"), NEW | dict(sampler="dpmpp_2m", schedule="karras"), set(), set()),
    "webui automatic sde": (web("DPM++ 2M SDE", "Automatic"), NEW | dict(schedule="exponential"), set(), set()),
    "webui uniform": (web("Euler", "Uniform"), NEW | dict(sampler="euler", schedule="normal"), set(), set()),
    "webui sgm": (web("DPM++ SDE", "SGM Uniform"), NEW | dict(schedule="sgm_uniform"), set(), set()),
    "webui ays": (web("Euler a", "Align Your Steps"), NEW | dict(schedule="align_your_steps"), set(), set()),
    "webui kl": (web("Euler a", "KL Optimal"), NEW | dict(schedule="kl_optimal"), set(), set()),
    "webui 1.6": (web("DPM++ 2M SDE Karras", version=V16), NEW | dict(sampler="dpmpp_2m_sde"), set(), set()),
    "webui 1.6 plain": (web("Euler a", version=V16), NEW | dict(sampler="euler_a", schedule="normal"), set(), set()),
    "webui without a version": (web("Euler a", version="Clip skip: 2"), NEW | dict(clip_skip=2), set(), set()),
    "webui ddim": (web("DDIM", more="Eta DDIM: 0.4, "), NEW | dict(sampler="ddim", eta=0.4), set(), set()),
    "webui eta": (web("Euler a", more="Eta: 0.5, "), NEW | dict(eta=0.5), set(), set()),
    "webui eta of euler": (web("Euler", more="Eta: 0.5, "), NEW | dict(sampler="euler"), set(), set()),
    "webui ensd": (web("Euler a", more="ENSD: 31337, "), NEW | dict(ensd=31337), set(), set()),
    "webui nv": (web("Euler a", more="RNG: NV, "), NEW | dict(rng="nv"), set(), set()),
    "webui cpu": (web("Euler a", more="RNG: CPU, "), NEW | dict(rng="cpu"), set(), set()),
    "webui restart": (web("Restart", "Karras"), NEW | dict(sampler="restart"), set(), set()),
    "webui dpm fast": (web("DPM fast", "Automatic"), NEW | dict(sampler="dpm_fast"), set(), set()),
    "webui unipc": (web("UniPC", "Automatic"), NEW | dict(sampler="unipc", schedule="ldm"), set(), set()),
    "webui lcm": (web("LCM", "Automatic"), NEW | dict(sampler="lcm", schedule="lcm"), set(), set()),
    "webui emphasis": (web("Euler a", more="Emphasis: No norm, "), NEW | dict(emphasis="no_norm"), set(), set()),
    "webui emphasis none": (web("Euler a", more="Emphasis: None, "), NEW | dict(emphasis="none"), set(), set()),
    "webui hires": (
        web("Euler a", more="Denoising strength: 0.5, Hires upscale: 2, Hires steps: 10, Hires upscaler: Latent, "),
        NEW | dict(hires_scale=2.0, hires_steps=10, hires_strength=0.5, hires_upscaler="latent"),
        set(),
        set(),
    ),
    "webui hires esrgan": (
        web("Euler a", more="Denoising strength: 0.4, Hires upscale: 1.5, Hires upscaler: R-ESRGAN 4x+, "),
        NEW | dict(hires_scale=1.5, hires_upscaler="lanczos"),
        {"Hires upscaler"},
        set(),
    ),
    "webui hires sampler": (
        web("Euler a", more="Denoising strength: 0.4, Hires upscale: 2, Hires upscaler: Latent, Hires sampler: DDIM, "),
        NEW,
        {"features"},
        set(),
    ),
    "webui variation": (
        web("Euler a", more="Variation seed: 7, Variation seed strength: 0.25, "),
        NEW | dict(variation_seed=7, variation_strength=0.25),
        set(),
        set(),
    ),
    "webui seed resize": (web("Euler a", more="Seed resize from: 448x448, "), NEW, {"features"}, set()),
    "webui controlnet": (
        web("Euler a", more='ControlNet 0: "Module: canny, Model: x", '),
        NEW | dict(control="x:preprocessor=canny"),
        {"ControlNet"},
        set(),
    ),
    "webui refiner": (web("Euler a", more="Refiner: x, Refiner switch at: 0.8, "), NEW, {"features"}, set()),
    "webui ngms": (web("Euler a", more="NGMS: 0.5, "), NEW | dict(ngms=0.5), set(), set()),
    "webui pad conds": (web("Euler a", more="Pad conds: True, "), NEW, {"features"}, set()),
    "webui vae": (web("Euler a", more="VAE hash: 0123456789, VAE: kl-f8.ckpt, "), NEW, {"VAE"}, set()),
    "webui zero snr": (web("Euler a", more="Noise Schedule: Zero Terminal SNR, "), NEW, {"Noise Schedule"}, set()),
    "webui img2img": (
        web("Euler a", more="Denoising strength: 0.75, Init image hash: 01234567, "),
        NEW | dict(strength=0.75),
        set(),
        {"image"},
    ),
    "webui inpainting": (
        web("Euler a", more="Denoising strength: 1, Mask blur: 4, Inpaint area: Only masked, "),
        NEW | dict(mask_blur=4, only_masked=True),
        set(),
        {"image"},
    ),
    "webui unknown sampler": (web("Quantum 3000"), NEW, set(), {"sampler"}),
    "webui unknown schedule": (web("Euler a", "Fibonacci"), NEW | dict(sampler="euler_a"), set(), {"schedule"}),
    "webui unknown label": (web("Euler a", more="Something new: 3, "), NEW, {"labels"}, set()),
    "webui lora": (web("Euler a", more='Lora hashes: "ink: 0123456789ab", '), NEW, set(), set()),
    "forge": (web("DPM++ 2M", "Karras", "Module 1: kl-f8, ", FORGE), NEW | dict(schedule="karras"), {"VAE"}, set()),
    "forge low bits": (web("Euler", "Simple", "Diffusion in Low Bits: Automatic, ", FORGE), NEW, set(), set()),
    # stable-diffusion.cpp
    "cpp euler a": (cpp("euler_a"), CPP | dict(sampler="euler_a"), set(), set()),
    "cpp discrete": (cpp("euler discrete"), CPP | dict(sampler="euler", schedule="normal"), set(), set()),
    "cpp karras": (cpp("dpm++2m karras"), CPP | dict(sampler="dpmpp_2m", schedule="karras"), set(), set()),
    "cpp cpu": (cpp("heun", "RNG: cpu, "), CPP | dict(rng="cpu", sampler="heun"), set(), set()),
    "cpp std": (cpp("heun", "RNG: std_default, "), PLAIN | dict(height=512), {"RNG"}, set()),
    "cpp lcm": (cpp("lcm"), CPP | dict(sampler="lcm"), set(), set()),
    # ComfyUI
    "comfyui": (ks(), COMFY | dict(sampler="euler", schedule="normal"), set(), set()),
    "comfyui sde": (ks("dpmpp_sde", "karras"), COMFY | dict(sampler="dpmpp_sde", schedule="karras"), set(), set()),
    "comfyui 2m sde gpu": (
        ks("dpmpp_2m_sde_gpu", "exponential"),
        COMFY | dict(sampler="dpmpp_2m_sde"),
        {"Sampler"},
        set(),
    ),
    "comfyui ddim": (ks("ddim", "ddim_uniform"), COMFY | dict(sampler="euler", schedule="ddim_uniform"), set(), set()),
    "comfyui beta": (ks("uni_pc", "beta"), COMFY | dict(sampler="unipc", schedule="beta"), set(), set()),
    "comfyui lora": (
        ks(
            n3=node(
                "KSampler",
                seed=42,
                steps=20,
                cfg=7.0,
                sampler_name="lms",
                scheduler="simple",
                denoise=1.0,
                model=["9", 0],
                positive=["6", 0],
                negative=["7", 0],
                latent_image=["5", 0],
            ),
            n9=node("LoraLoader", lora_name="ink.safetensors", strength_model=0.5, strength_clip=0.5, model=["4", 0]),
        ),
        COMFY | dict(sampler="lms", schedule="simple", prompt="a lighthouse <lora:ink:0.5:0.5>"),
        set(),
        set(),
    ),
    "comfyui img2img": (ks(denoise=0.6, n5=node("VAEEncode", pixels=["8", 0])), dict(strength=0.6), set(), {"image"}),
    "comfyui unknown": (ks("res_multistep", "normal"), {"seed": 42, "steps": 20}, set(), {"sampler"}),
    # InvokeAI
    "invokeai": (invoke(), PLAIN | dict(rng="cpu", sampler="euler"), set(), set()),
    "invokeai karras": (invoke("dpmpp_2m_k"), PLAIN | dict(sampler="dpmpp_2m", schedule="karras"), set(), set()),
    "invokeai gpu": (invoke(rand_device="cuda"), PLAIN, {"RNG"}, set()),
    "invokeai skip": (invoke(clip_skip=1), PLAIN | dict(clip_skip=2), set(), set()),
    "invokeai img2img": (invoke(init_image="x.png", strength=0.7), PLAIN | dict(strength=0.7), set(), {"image"}),
    # NovelAI and Fooocus
    "novelai": (
        novel(),
        PLAIN | dict(sampler="euler_a", clip_skip=2, prompt="a (lighthouse:1.05)"),
        {"RNG", "labels"},
        set(),
    ),
    "novelai rescale": (novel(cfg_rescale=0.3), PLAIN | dict(guidance_rescale=0.3), {"RNG", "labels"}, set()),
    "fooocus": (
        fooocus(),
        PLAIN | dict(sampler="dpmpp_2m_sde", schedule="karras", compat="comfyui"),
        {"RNG", "labels", "Sampler"},
        set(),
    ),
    "fooocus sharpness": (fooocus(sharpness=2.0), PLAIN, {"RNG", "labels", "Sampler"}, set()),
}


@pytest.fixture
def text_of(tmp_path):
    def text_of(content):
        if isinstance(content, str):
            content = {"parameters": content}
        info = PngImagePlugin.PngInfo()
        for key, text in content.items():
            info.add_text(key, text)
        Image.new("RGB", (512, 768)).save(tmp_path / "image.png", pnginfo=info)
        return read_infotext(tmp_path / "image.png")

    return text_of


@pytest.mark.parametrize("name", CASES)
def test_each_is_obeyed_noted_or_refused(name, text_of):
    content, values, notes, problems = CASES[name]
    reading = read_settings(text_of(content))
    assert {field: reading.values.get(field) for field in values} == values
    assert set(reading.notes) == notes, reading.notes
    assert set(reading.problems) == problems, reading.problems
    GenerationSettings(**reading.values)  # what is left can be generated


def test_there_are_as_many_as_promised():
    assert len(CASES) >= 60


def test_no_label_is_treated_in_two_ways():
    ways = [set(OBEYED), set(NO_EFFECT), set(FROM_IMAGE), set(NOTED)]
    assert sum(map(len, ways)) == len(set().union(*ways))
    assert {treatment_of(row.infotext.label) for row in OPTIONS if row.infotext} == {"obeyed"}
    assert treatment_of("Size-1") == "obeyed"
    assert treatment_of("Mask blur") == "obeyed"
    assert treatment_of("Init image hash") == "refused"
    assert treatment_of("Lora whatever") == "no effect"
    assert treatment_of("Skip Early CFG") == treatment_of("Anything else") == "noted"


def test_the_guide_shows_the_table():
    root = next(path for path in Path(__file__).parents if (path / "docs").is_dir())
    assert table_of_labels() in (root / "docs" / "guides" / "same-image.md").read_text(encoding="utf-8")
