"""The page without a browser: from widgets to a request and back, and how jobs look."""

from pathlib import Path

import gradio as gr
import pytest
from safetensors.torch import save_file
from web_client import base64_of

from sd.control.ip_adapter.network import ImageProjection, IPAdapterModel
from sd.control.t2i_adapter import T2IAdapter
from sd.pipeline.metadata.settings_infotext import to_infotext
from sd.pipeline.settings import GenerationSettings
from sd.pipeline.stable_diffusion import BUNDLED
from sd.utils.errors import UserError
from sd.web.jobs.job import Job
from sd.web.jobs.model_index import Models
from sd.web.ui.addons import with_addon
from sd.web.ui.control import ControlBuilder, sliders_of, unadded, with_unit
from sd.web.ui.form import SAMPLER, SETTINGS, STEPS, Form, seed_of, size_like, usual_size
from sd.web.ui.generate_tab import title_of
from sd.web.ui.job_status import generation_panel
from sd.web.ui.train_tab import curves, training_panel


@pytest.fixture
def placed(tmp_path):
    """(the page, the form on it)"""
    with gr.Blocks() as page:
        return page, Form(Models(*(tmp_path / name for name in ("weights", "loras", "embeddings"))))


@pytest.fixture
def form(placed):
    return placed[1]


def values_of(form, **changes):
    values = {name: widget.value for name, widget in form.widgets.items()} | changes
    return [values[name] for name in form.widgets]


def test_untouched_it_asks_for_an_image_of_the_models_size(form):
    asked = form.request(*values_of(form, seed="5"))
    expected = GenerationSettings("a red apple", seed=5, steps=STEPS, sampler=SAMPLER, width=128, height=128)
    assert asked.settings.replace(variation_seed=0) == expected.replace(variation_seed=0)
    assert (asked.checkpoint, asked.image, asked.mask) == (BUNDLED.stem, None, None)


def test_axes_of_a_grid_are_a_type_and_values(form):
    asked = form.request(*values_of(form, x_axis="steps", x_values="1-3", z_axis="prompt_sr", z_values="red, blue"))
    assert asked.axes == ["steps=1, 2, 3", "", "prompt_sr=red, blue"]
    assert form.request(*values_of(form)).axes == ["", "", ""]
    for changes, said in ((dict(x_values="1"), "X has values but no type"), (dict(y_axis="steps"), "Y has no values")):
        with pytest.raises(UserError, match=said):
            form.request(*values_of(form, **changes))
    filled, _ = form.fill(to_infotext(GenerationSettings(seed=1, width=64, height=64), 0, "", "", from_image=False))
    assert filled[form.widgets["x_axis"]] == ""


def test_outpainting_needs_an_image_and_keeps_the_options_of_masks(form, photo):
    changes = dict(outpaint=16, outpaint_sides="left", mask_blur=8, invert_mask=True)
    assert form.request(*values_of(form, **changes)).settings.outpaint == 0
    painted = {"image": f"data:image/png;base64,{base64_of(photo)}", "mask": ""}
    settings = form.request(*values_of(form, painted=painted, **changes)).settings
    assert (settings.outpaint, settings.outpaint_sides, settings.mask_blur) == (16, "left", 8)
    assert not settings.invert_mask  # there is no mask to invert
    assert settings.outpaint_sides in form.widgets["outpaint_sides"].choices[1]


def test_options_that_need_an_image_or_a_mask_are_said_to_change_nothing(form, photo):
    image = {"image": f"data:image/png;base64,{base64_of(photo)}", "mask": ""}
    assert form.unused(*values_of(form)) == form.unused(*values_of(form, painted=image)) == []
    changes = dict(outpaint=32, outpaint_sides="left", invert_mask=True, mask_blur=9)
    assert form.unused(*values_of(form, **changes)) == ["Without an image to start from, outpaint changes nothing."]
    left_out = form.request(*values_of(form, **changes)).settings
    assert left_out == left_out.replace(outpaint=0, outpaint_sides="left, right, up, down", invert_mask=False)
    without_mask = ["Without a painted mask, invert mask changes nothing."]
    assert form.unused(*values_of(form, painted=image, **changes)) == without_mask
    changes["outpaint"] = 0
    expected = ["Without a painted mask, invert mask and mask blur change nothing."]
    assert form.unused(*values_of(form, painted=image, **changes)) == expected
    assert form.unused(*values_of(form, painted=image | {"mask": image["image"]}, **changes)) == []


def test_an_images_text_fills_the_form_with_its_settings(form):
    settings = GenerationSettings(
        prompt="a fox, (red:1.2)",
        negative_prompt="blue",
        strength=0.65,
        steps=17,
        guidance_scale=4.5,
        sampler="dpmpp_2m",
        schedule="karras",
        seed=2**63 - 1,  # more than a browser's numbers hold
        width=192,
        height=64,
        clip_skip=2,
        guidance_rescale=0.3,
        variation_seed=2**53 + 1,
        variation_strength=0.25,
        tiling=True,
        rng="nv",
        ensd=31337,
        compat="webui",
        guidance_start=0.1,
        guidance_end=0.9,
        step_cache=2,
        token_merging=0.5,
        control="canny:weight=0.8:preprocessor=canny",
    )
    text = to_infotext(settings, 0, BUNDLED.stem, "0123456789", from_image=True)
    filled, notes = form.fill(text)
    assert notes == [
        'It was generated from another image, which is not in it: give that image as "Image to start from".',
        "It was generated with a ControlNet, whose image is not in it: give that image as the control image.",
    ]
    changes = {name: filled[widget] for name, widget in form.widgets.items() if widget in filled}
    asked = form.request(*values_of(form, **changes))
    assert asked.settings == settings
    assert asked.checkpoint == BUNDLED.stem


def test_a_chosen_controlnet_becomes_a_unit_with_its_image(form, photo):
    text = with_unit("", "canny", "canny", 0.8, 0, 1, "control", "crop", "")
    text = with_unit(text, "tile", "none", 1, 0, 0.5, "balanced", "fill", "")
    assert text == "canny:weight=0.8:preprocessor=canny:mode=control + tile:end=0.5:resize=fill"
    url = f"data:image/png;base64,{base64_of(photo)}"
    asked = form.request(*values_of(form, control=text, control_images=[url]))
    assert asked.settings.control == text
    assert len(asked.control_images) == 1
    with pytest.raises(UserError, match="choose one"):
        with_unit("", None, "none", 1, 0, 1, "balanced", "crop", "")


def test_the_chosen_preprocessor_has_its_numbers_and_may_need_no_controlnet():
    chosen = (1, 0, 1, "balanced", "crop", "")
    assert with_unit("", "canny", "canny", *chosen, 80.0, 200.0) == "canny:preprocessor=canny:a=80"
    text = with_unit("", None, "reference_only", *chosen, 0.8, None)
    assert with_unit(text, "canny", "reference_adain", *chosen, 0.5, None) == "reference_only:a=0.8 + reference_adain"
    low, high = sliders_of("canny")
    assert (low.label, low.value, low.visible, high.maximum) == ("Low threshold", 100, True, 255)
    fidelity, none = sliders_of("reference_only")
    assert (fidelity.label, fidelity.value, fidelity.maximum, none.visible) == ("Style fidelity", 0.5, 1, False)


def test_an_added_unit_empties_the_choices_and_what_is_left_out_is_said(tmp_path, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(gr, "Info", said.append)
    with gr.Blocks():
        builder = ControlBuilder(Models(*(tmp_path / name for name in ("weights", "loras", "embeddings"))))
    chosen = (1, 0, 1, "balanced", "crop", "")
    assert builder.add("", "canny", "none", *chosen) == ("canny", None, "none")
    assert said == unadded(None, "none") == []
    assert builder.add("canny", "tile", "reference_only", *chosen) == ("canny + reference_only", None, "none")
    assert said == ["The preprocessor &quot;Reference&quot; works without a ControlNet: tile is left out."]
    end = 'is chosen but not added: press "Add ControlNet" to use it.'
    assert unadded("tile", "canny") == [f"Under ControlNet tile {end}"]
    assert unadded(None, "reference_only") == [f'Under ControlNet the preprocessor "Reference" {end}']


def test_an_ip_adapter_shows_the_field_of_its_image_encoder(tmp_path):
    models = Models(tmp_path, tmp_path / "loras", tmp_path / "embeddings")
    (tmp_path / "controlnet").mkdir()
    tiny = tmp_path / "image_encoders" / "tiny"
    tiny.mkdir(parents=True)
    save_file(IPAdapterModel(ImageProjection(8, 8), 8, [8]).state_dict(), tmp_path / "controlnet" / "face.safetensors")
    save_file(T2IAdapter(widths=(8, 8)).state_dict(), tmp_path / "controlnet" / "lines.safetensors")
    (tiny / "config.json").write_text('{"model_type": "clip_vision_model"}')
    (tiny / "model.safetensors").touch()
    with gr.Blocks():
        builder = ControlBuilder(models)
    shown = builder.encoder_field("face")
    assert (shown.visible, [value for _, value in shown.choices]) == (True, ["", "tiny"])
    assert [builder.encoder_field(name).visible for name in ("lines", None)] == [False, False]
    assert builder.encoder.visible is False
    text = with_unit("", "face", "none", 1, 0, 1, "balanced", "crop", "tiny")
    assert text == "face:encoder=tiny"
    assert with_unit("", "face", "reference_only", 1, 0, 1, "balanced", "crop", "tiny") == "reference_only"


def test_all_settings_are_in_the_form(form):
    assert set(SETTINGS) <= set(form.widgets)


def test_every_slider_on_the_page_has_a_say(placed):
    page, form = placed
    sliders = {part for part in page.blocks.values() if isinstance(part, gr.Slider)}
    assert sliders == {part for part in form.inputs() if isinstance(part, gr.Slider)} | {
        *(form.addon_strength, form.control.weight, form.control.start, form.control.end, *form.control.numbers)
    }


def test_a_text_without_settings_is_one_sentence(form):
    with pytest.raises(UserError, match="no settings"):
        form.fill("a red apple")


def test_small_things():
    assert seed_of(" 12 ") == 12
    assert seed_of("") is None
    with pytest.raises(UserError, match="whole number"):
        seed_of("1.5")
    assert with_addon("a cat", "<lora:x:STRENGTH>", 0.8) == "a cat, <lora:x:0.8>"
    assert with_addon("", "(word:STRENGTH)", 1) == "(word:1)"
    with pytest.raises(UserError, match="nothing to add"):
        with_addon("a cat", None, 1)
    assert usual_size(BUNDLED) == 128
    assert usual_size(Path("no such file")) == 512


@pytest.mark.parametrize(
    ("image", "size"), [((300, 300), (512, 512)), ((4000, 1000), (1024, 256)), ((1, 9999), (8, 51200))]
)
def test_a_size_like_an_images(image, size):
    assert size_like(512, *image) == size


def test_one_unknown_sampler_is_named_and_the_rest_is_filled_in(form):
    text = "a fox\nSteps: 12, Sampler: Quantum 3000, CFG scale: 4, Seed: 9, Size: 64x96, Model: nowhere"
    filled, notes = form.fill(text)
    values = {name: filled[widget] for name, widget in form.widgets.items() if widget in filled}
    assert (values["prompt"], values["steps"], values["seed"], values["height"]) == ("a fox", 12, "9", 96)
    assert "sampler" not in values
    assert notes[0] == 'The sampler \'Quantum 3000\' does not exist here: set "Sampler", for example to "Euler".'
    assert values["rng"] == "gpu"  # the webui's default, where a text names no other
    assert "nowhere" in notes[1]
    assert len(notes) == 2


def test_words_for_a_lora():
    assert with_addon("a cat", "<lora:x:STRENGTH>", 1, "my-dog dog") == "a cat, my-dog dog, <lora:x:1>"
    assert with_addon("My-Dog dog runs", "<lora:x:STRENGTH>", 1, "my-dog dog") == "My-Dog dog runs, <lora:x:1>"


def test_a_title_stays_with_its_prompt():
    enhanced = ("a fox, oil painting", "A Fox")
    assert (
        title_of("a fox, oil painting", *enhanced) == title_of("a fox, oil painting, <lora:x:1>", *enhanced) == "A Fox"
    )
    assert title_of("a red apple", *enhanced) == title_of("a fox", "", "") == ""
    assert (
        title_of("a fox", "a fox", "half \ud83d") == "half ?"
    )  # it comes from the browser, and no job could be listed


def shown(job, show=generation_panel):
    return "".join(show([job], lambda job: 0).values())


def test_what_others_wrote_is_no_html():
    bad = '<img src=x onerror=alert(1)>"'
    job = Job("id", "draw", {}, Path(), "failed", error=bad)
    assert "<img" not in shown(job) + shown(job, training_panel)
    job = Job("id", "draw", {}, Path(), "done", started=0.0, ended=1.0)
    job.result = {"images": ["00000.png"], "infotexts": [bad], "notes": [bad]}
    assert "onerror=alert(1)&gt;&quot;" in shown(job)
    assert shown(job).count("<img") == 1, "the image itself"
    waiting = Job("id", "draw", {"settings": {"prompt": bad}}, Path())
    assert "<img" not in "".join(generation_panel([waiting, waiting], lambda job: 1).values())


def test_curves_stay_in_their_frame():
    event = {"steps": 4, "losses": [(1, 0.4), (2, 0.2), (4, 0.3)], "held_out": [(4, 0.35)]}
    plotted = curves(event)
    assert 'points="120.0,0.0 240.0,160.0 480.0,80.0"' in plotted
    assert 'points="480.0,40.0"' in plotted
    assert curves({"steps": 1, "losses": [(1, 0.5)], "held_out": []})
