"""What each label of an image's text means here, and what is said where it cannot be honored."""

import random
import warnings

import pytest

from sd.pipeline.infotext import parse_infotext, write_infotext
from sd.pipeline.metadata.infotext_fields import read_fields
from sd.pipeline.metadata.infotext_keys import FROM_IMAGE, NO_EFFECT, NOTED, NOTED_APART, OBEYED
from sd.pipeline.metadata.infotext_reading import PAGE, PYTHON, SCRIPTS
from sd.pipeline.metadata.settings_infotext import form_values, from_infotext, read_settings, to_infotext
from sd.pipeline.settings import MAX_SEED, GenerationSettings
from sd.utils.errors import UserError

LINE = "Steps: 20, Sampler: DPM++ 2M Karras, CFG scale: 7, Seed: 1, Size: 512x512, RNG: CPU"


def read(line, prompt="a cat"):
    return form_values(f"{prompt}\n{line}")


def one_note(more, line=LINE):
    """The only note of a line with one more setting."""
    _, notes = read(f"{line}, {more}")
    assert len(notes) == 1, notes
    assert notes[0][0].isupper()
    assert notes[0].endswith(".")
    return notes[0]


def test_a_plain_image_needs_no_note():
    values, notes = read(LINE)
    assert notes == []
    assert values["sampler"] == "dpmpp_2m"
    assert values["schedule"] == "karras"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("RNG: NV", ""),
        ("RNG: philox", "by philox"),
        ("ENSD: 31337", ""),
        ('VAE hash: 735e4c3a44, VAE: "vae-ft-mse-840000.safetensors"', "vae-ft-mse-840000"),
        ("Module 1: vae-ft-mse", "vae-ft-mse"),  # as Forge writes it
        ('ControlNet 0: "Module: canny, Model: x"', "ControlNet"),
        ("Refiner: sd_xl_refiner, Refiner switch at: 0.8", "a refiner"),
        ('FreeU Stages: "[{}]", FreeU Schedule: "0, 1"', "FreeU"),
        ("Face restoration: CodeFormer", "face restoration"),
        ("Emphasis: No norm", ""),
        ("Emphasis: Original", ""),
        ("NGMS: 0.5", ""),
        ("NGMS: 0.5, NGMS all steps: True", ""),
        ("Skip Early CFG: 0.1", "Skip Early CFG"),
        ("Seed resize from: 448x448", "Seed resize from"),
        ("Seed resize from: -1x-1", ""),
        ("Something new: 3, Another: x", "Something new, Another"),
        ("Denoising strength: 0", ""),
        ("Denoising strength: 0.7", "Image to start from"),
        ("Token merging ratio: 0.9", "0.75 is used"),
        ("Diffusion in Low Bits: Automatic", ""),
        ('Lora hashes: "a: 1", TI hashes: "b: 2", Version: v1.10.1', ""),
        ('Hashes: {"model": "cc6cb27103", "embed:x, y: z": "1"}', ""),
        ('Civitai resources: [{"type":"checkpoint","modelVersionId":1}], Civitai metadata: {}', ""),
    ],
)
def test_every_label_is_obeyed_silent_or_noted(more, said):
    line = LINE.replace(", RNG: CPU", "") if "RNG" in more else LINE
    if said:
        assert said in one_note(more, line)
    else:
        assert read(f"{line}, {more}")[1] == []


def test_the_webuis_default_noise_is_a_gpus():
    values, notes = read(LINE.removesuffix(", RNG: CPU"))
    assert (values["rng"], notes) == ("gpu", [])


@pytest.mark.parametrize(
    "label", ["Mask blur: 0", "Init image hash: 1234", "Inpaint area: Only masked", "Operations: img2img"]
)
def test_only_signs_of_a_mask_or_an_image_make_it_img2img(label):
    reading = read_settings(f"x\n{LINE}, Denoising strength: 0.4, {label}")
    assert "another image" in reading.problems["image"]
    assert reading.values["strength"] == 0.4


def test_our_own_img2img_is_known_by_its_version():
    text = to_infotext(GenerationSettings("x", seed=1, width=64, height=64, strength=0.3), 0, "", "", from_image=True)
    assert "image" in read_settings(text).problems


@pytest.mark.parametrize(
    ("label", "written", "name", "value"),
    [
        ("Steps", "4.0", "steps", 4),
        ("Clip skip", "2.0", "clip_skip", 2),
        ("Clip skip", "0", "clip_skip", 1),
        ("Seed", "18446744073709551615", "seed", MAX_SEED),
        ("CFG scale", "7", "guidance_scale", 7.0),
        ("Tiling", "True", "tiling", True),
        ("Tiling", "False", "tiling", False),
    ],
)
def test_numbers_as_other_programs_write_them(label, written, name, value):
    settings = dict(part.split(": ") for part in LINE.split(", ")) | {label: written}
    values, notes = read(", ".join(f"{label}: {value}" for label, value in settings.items()))
    assert (values[name], notes) == (value, [])


def test_a_size_is_cut_as_the_webui_cuts_it():
    values, notes = read(LINE.replace("512x512", "500x511"))
    assert (values["width"], values["height"]) == (496, 504)
    assert "500x511" in notes[0]


def test_one_odd_value_does_not_refuse_the_others():
    line = "Steps: many, Sampler: DPM++ 3M, CFG scale: 700, Seed: x, Size: 99999x64, Clip skip: 2, RNG: CPU"
    values, notes = read(line)
    assert values == {
        "prompt": "a cat",
        "negative_prompt": "",
        "clip_skip": 2,
        "height": 64,
        "rng": "cpu",
        "compat": "webui",
    }
    assert len(notes) == 6
    with pytest.raises(UserError, match=r"DPM\+\+ 3M"):
        from_infotext(f"a cat\n{line}")


def test_a_missing_sampler_is_said_and_not_refused():
    values, notes = read("Steps: 20, CFG scale: 7, Seed: 1, Size: 512x512, RNG: CPU")
    assert "sampler" not in values
    assert "DDPM" in notes[0]
    assert GenerationSettings(**values).sampler == "ddpm"


@pytest.mark.parametrize(
    ("written", "sampler", "schedule"),
    [
        ("Sampler: euler discrete", "euler", "normal"),  # stable-diffusion.cpp
        ("Sampler: euler_a karras", "euler_a", "karras"),
        ("Sampler: dpm++2m karras", "dpmpp_2m", "karras"),
        ("Sampler: DPM++ 2M, Schedule type: Automatic", "dpmpp_2m", "karras"),
        ("Sampler: DPM++ 2M SDE, Schedule type: Automatic", "dpmpp_2m_sde", "exponential"),
        ("Sampler: Euler a, Schedule type: Automatic", "euler_a", "normal"),
        ("Sampler: DPM++ 2M, Schedule type: SGM Uniform", "dpmpp_2m", "sgm_uniform"),
        ("Sampler: dpmpp_2m_sde_gpu, Scheduler: exponential", "dpmpp_2m_sde", "exponential"),
    ],
)
def test_samplers_by_other_programs_names(written, sampler, schedule):
    values, _ = read(f"Steps: 20, {written}, CFG scale: 7, Seed: 1, Size: 512x512")
    assert (values["sampler"], values["schedule"]) == (sampler, schedule)


@pytest.mark.parametrize(
    ("more", "scale", "notes"),
    [
        ("Hires upscale: 2, Hires upscaler: Latent", 2.0, []),
        ("Hires resize: 768x768, Hires upscaler: Latent", 1.5, []),
        ("Hires resize: 1024x0, Hires upscaler: Latent", 2.0, []),
        ("Hires resize: 768x1024, Hires upscaler: Latent", 2.0, ["Hires resize"]),
        ("Hires upscale: 2, Hires upscaler: R-ESRGAN 4x+", 2.0, ["Hires upscaler"]),
        ("Hires upscale: 2, Hires upscaler: Latent, Hires steps: 20", 2.0, []),
        ("Hires upscale: 2, Hires upscaler: Latent, Hires steps: few", 2.0, ["Hires steps"]),
        ("Hires upscale: 2, Hires upscaler: Latent, Hires Module 1: Use same choices", 2.0, []),
        ("Hires upscale: 2, Hires upscaler: Latent, Hires sampler: Euler", 2.0, ["features"]),
    ],
)
def test_the_second_pass(more, scale, notes):
    reading = read_settings(f"x\n{LINE}, Denoising strength: 0.5, {more}")
    assert reading.problems == {}
    assert list(reading.notes) == notes
    assert (reading.values["hires_scale"], reading.values["hires_strength"]) == (scale, 0.5)


def test_the_second_pass_keeps_its_own_number_of_steps():
    more = "Hires upscale: 2, Hires upscaler: Latent, Hires steps: 5"
    assert read_settings(f"x\n{LINE}, {more}").values["hires_steps"] == 5


def test_every_size_of_a_second_pass_is_reached():
    for width in range(64, 512, 24):
        for target in range(width + 8, width * 3, 56):
            line = LINE.replace("512x512", f"{width}x{width}") + f", Hires resize: {target}x{target}"
            settings = GenerationSettings(**read(line)[0])
            assert settings.hires_size == (target // 8 * 8, target // 8 * 8)


@pytest.mark.parametrize(
    ("size", "first", "expected"),
    [
        ("1024x1024", "512x512", (512, 512, 2.0)),
        ("1024x1024", "0x0", (512, 512, 2.0)),
        ("512x512", "0x0", (512, 512, 1.0)),
        # sqrt(512^2 / (768 * 1536)) = 0.4714; times the sides, up to 64s: 384 and 768
        ("768x1536", "0x0", (384, 768, 2.0)),
    ],
)
def test_the_first_webuis_second_pass(size, first, expected):
    line = LINE.replace("512x512", size)
    reading = read_settings(f"x\n{line}, Denoising strength: 0.7, First pass size: {first}")
    settings = GenerationSettings(**reading.values)
    assert (settings.width, settings.height, settings.hires_scale) == expected
    assert reading.problems == {}


def test_two_settings_that_do_not_go_together():
    values, notes = read(f"{LINE}, Guidance start: 0.8, Guidance end: 0.2")
    assert not {"guidance_start", "guidance_end"} & values.keys()
    assert "before it starts" in notes[0]


@pytest.mark.parametrize(
    ("line", "scripts", "page", "python"),
    [
        ("Steps: x", "set --steps.", 'set "Steps".', "set steps."),
        ("Steps: 9, CFG scale: x", "set --guidance-scale.", 'set "Guidance".', "set guidance_scale."),
        (
            *("Steps: 9, Sampler: 3M SDE", "set --sampler, for example to dpmpp_sde."),
            *('set "Sampler", for example to "DPM++ SDE".', "set sampler, for example to 'dpmpp_sde'."),
        ),
        (
            *("Steps: 9, Sampler: DDIM, Schedule type: x", "set --schedule, for example to karras."),
            *('set "Schedule", for example to "Karras".', "set schedule, for example to 'karras'."),
        ),
        ("Steps: 9, Sampler: DDIM, Eta DDIM: x", "set --eta.", 'set "Eta".', "set eta."),
        (
            *("Steps: 9, Init image hash: 1, Denoising strength: x", "set --strength."),
            *('set "Denoising strength".', "set strength."),
        ),
        (
            *("Steps: 9, Denoising strength: x, Size: 64x64, Hires upscale: 2", "set --hires-strength."),
            *('set "Hires denoising".', "set hires_strength."),
        ),
        (
            *("Steps: 9, Init image hash: 1", "use img2img.py or inpaint.py with that image."),
            *('give that image as "Image to start from".', "give that image as well."),
        ),
        (
            *("Steps: 9, Denoising strength: 0.4", "use img2img.py or inpaint.py with that image."),
            *('give that image as "Image to start from".', "give that image as well."),
        ),
        ("Steps: 9, Prediction: v", "with --prediction v,", 'with "Prediction" v,', "with prediction v,"),
        (
            *("Steps: 9, Noise Schedule: Zero Terminal SNR", "set --prediction to v-zero-snr"),
            *('set "Prediction" to v-zero-snr', "set prediction to v-zero-snr"),
        ),
    ],
)
def test_sentences_name_flags_to_scripts_labels_on_the_page_and_arguments_in_python(line, scripts, page, python):
    for interface, said in ((SCRIPTS, scripts), (PAGE, page), (PYTHON, python)):
        reading = read_settings(f"x\n{line}, Seed: 1, RNG: CPU, Clip skip: 1", interface)
        sentences = [*reading.notes.values(), *reading.problems.values()]
        assert any(said in one for one in sentences), (interface, sentences)
        assert interface is SCRIPTS or not any("--" in one or ".py" in one for one in sentences), sentences


def test_no_sentence_for_the_page_names_a_flag_or_a_script():
    chance, said = random.Random(1), set()
    labels = [*OBEYED, *NO_EFFECT, *NOTED, *NOTED_APART, *FROM_IMAGE]
    for _ in range(500):
        parts = [f"{chance.choice(labels)}: {chance.choice(['x', '-1', '1', '0.9', 'nan', '9999'])}" for _ in range(8)]
        said |= set(form_values("x\n" + ", ".join(["Steps: 1", *parts]))[1])
    assert len(said) > 100
    assert [one for one in said if "--" in one or ".py" in one] == []


def test_from_python_what_is_not_honored_is_a_warning():
    with pytest.warns(UserWarning, match="by philox"):
        from_infotext(f"x\n{LINE.replace('RNG: CPU', 'RNG: philox')}")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        from_infotext(f"x\n{LINE}")


@pytest.mark.parametrize("text", ["", "only a prompt", "Prompt: x, y: z, w: v"])
def test_a_text_without_settings_is_refused(text):
    with pytest.raises(UserError, match="no settings"):
        form_values(text)


def test_whatever_stands_there_nothing_is_raised():
    chance = random.Random(0)
    labels = [*OBEYED, *NO_EFFECT, *NOTED, *NOTED_APART, *FROM_IMAGE]
    values = ["", "x", "-1", "0", "1e999", "nan", "9" * 400, "0x0", "3x4", "²", "1.", ".", "Karras", '"a, b"', "٣"]
    for _ in range(500):
        parts = [f"{chance.choice(labels)}: {chance.choice(values)}" for _ in range(8)]
        form_values("x\n" + ", ".join(["Steps: 1", *parts]))


def test_templates_below_the_settings_do_not_hide_them():
    below = "Template: a {red|blue} cat, x: y, z: w, q: r\nNegative Template: x, y"
    text = f"a red cat\nNegative prompt: x\n{LINE}\n{below}"
    found = parse_infotext(text)
    assert (found["Prompt"], found["Negative prompt"], found["Steps"]) == ("a red cat", "x", "20")
    assert found["Template"] == "a {red|blue} cat, x: y, z: w, q: r"
    assert found["Negative Template"] == "x, y"
    assert form_values(text)[1] == []


def test_a_template_of_several_lines_and_windows_line_ends():
    found = parse_infotext(f"a\r\nb\r\n{LINE}\r\nTemplate: c\r\nd")
    assert (found["Prompt"], found["RNG"], found["Template"]) == ("a\nb", "CPU", "c\nd")


def test_prompts_that_look_like_settings_stay_prompts():
    chance = random.Random(1)
    pieces = [
        "Steps: 20",
        "Sampler: Euler",
        "Seed: 1",
        "Negative prompts: no",
        "a cat",
        "x: y",
        '"',
        ",",
        "\n",
        " ",
        "Template: q",
    ]
    for _ in range(300):
        prompt = "".join(chance.choice(pieces) for _ in range(chance.randrange(1, 12))).strip()
        settings = {"Steps": 3, "Sampler": "Euler", "CFG scale": 7.0, "Seed": 4}
        found = parse_infotext(write_infotext(prompt, "", settings))
        assert found["Prompt"] == prompt
        assert found["Seed"] == "4"


def test_a_hostile_number_takes_no_time():
    assert "seed" in read_fields(parse_infotext("x\nSteps: 1, Seed: " + "9" * 100_000 + ", Size: 8x8"), PYTHON).problems
