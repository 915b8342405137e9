"""AUTOMATIC1111's API, as its clients use it: one of them, `webuiapi`, and the bodies that others send."""

import json
import threading

import numpy as np
import pytest
import webuiapi
from PIL import Image
from safetensors.torch import save_file
from web_client import Web, base64_of, listening, opened, post

from sd.adapters.embedding_files import save_embedding
from sd.pipeline.infotext import parse_infotext
from sd.prompts.styles import find_style

SMALL = {"prompt": "a red apple", "steps": 2, "seed": 7, "width": 64, "height": 64}

# As SillyTavern sends it before anything is chosen.
SILLY_TAVERN = {
    "url": "http://localhost:7860",
    "auth": "me:secret",
    "prompt": "a red apple",
    "negative_prompt": "",
    "sampler_name": "DDIM",
    "scheduler": "normal",
    "steps": 2,
    "cfg_scale": 7,
    "width": 64,
    "height": 64,
    "seed": 7,
    "restore_faces": False,
    "enable_hr": False,
    "hr_upscaler": "Latent",
    "hr_scale": 2,
    "hr_additional_modules": [],
    "denoising_strength": 0.7,
    "hr_second_pass_steps": 0,
    "override_settings": {"CLIP_stop_at_last_layers": 1, "forge_additional_modules": []},
    "clip_skip": 1,
    "override_settings_restore_afterwards": True,
    "save_images": True,
    "send_images": True,
    "do_not_save_grid": False,
    "do_not_save_samples": False,
}
# As Open WebUI sends it, without a sampler; and what the webui's own page of examples has.
OPEN_WEBUI = {"prompt": "a red apple", "batch_size": 1, "width": 64, "height": 64, "negative_prompt": "", "steps": 2}
EXAMPLE = {
    "prompt": "a red apple",
    "styles": [],
    "seed": 7,
    "subseed": -1,
    "subseed_strength": 0,
    "n_iter": 1,
    "steps": 2,
    "seed_resize_from_h": -1,
    "seed_resize_from_w": -1,
    "sampler_name": None,
    "batch_size": 1,
    "cfg_scale": 7,
    "width": 64,
    "height": 64,
    "tiling": False,
    "eta": 0,
    "s_min_uncond": 0,
    "s_churn": 0,
    "s_tmax": 0,
    "s_tmin": 0,
    "s_noise": 1,
    "refiner_checkpoint": "",
    "refiner_switch_at": 0,
    "disable_extra_networks": False,
    "comments": {},
    "enable_hr": False,
    "firstphase_width": 0,
    "hr_upscaler": None,
    "sampler_index": "Euler",
    "script_name": None,
    "script_args": [],
    "alwayson_scripts": {},
    "infotext": None,
    "force_task_id": None,
}
# As the bot aiyabot sends it.
AIYABOT = {
    "prompt": "a red apple",
    "negative_prompt": "",
    "steps": 2,
    "width": 64,
    "height": 64,
    "cfg_scale": "7.0",
    "sampler_index": "Euler a",
    "seed": 7,
    "seed_resize_from_h": 0,
    "seed_resize_from_w": 0,
    "denoising_strength": None,
    "n_iter": 1,
    "styles": ["None"],
    "override_settings": {"CLIP_stop_at_last_layers": 1},
}
# As the webui's extension that shows requests writes it, which people copy: every field, scripts that are switched off.
SHOWN = {
    "alwayson_scripts": {"API payload": {"args": []}, "Refiner": {"args": [False, "", 0.8]}},
    "batch_size": 1,
    "cfg_scale": 7,
    "comments": {},
    "denoising_strength": 0.75,
    "disable_extra_networks": False,
    "do_not_save_grid": False,
    "do_not_save_samples": False,
    "height": 64,
    "image_cfg_scale": 1.5,
    "initial_noise_multiplier": 1,
    "inpaint_full_res": 0,
    "inpaint_full_res_padding": 32,
    "inpainting_fill": 1,
    "inpainting_mask_invert": 0,
    "mask_blur": 4,
    "mask_blur_x": 4,
    "mask_blur_y": 4,
    "mask_round": True,
    "n_iter": 1,
    "negative_prompt": "",
    "override_settings": {"sd_model_checkpoint": "emoji.safetensors [0123456789]", "enable_pnginfo": True},
    "override_settings_restore_afterwards": True,
    "prompt": "a red apple",
    "resize_mode": 0,
    "restore_faces": False,
    "s_churn": 0,
    "s_min_uncond": 0,
    "s_noise": 1,
    "s_tmax": None,
    "s_tmin": 0,
    "sampler_name": "DPM++ 2M Karras",
    "scheduler": "Automatic",
    "script_args": [],
    "script_name": None,
    "seed": -1,
    "seed_enable_extras": True,
    "seed_resize_from_h": -1,
    "seed_resize_from_w": -1,
    "steps": 2,
    "styles": [],
    "subseed": -1,
    "subseed_strength": 0,
    "tiling": False,
    "width": 64,
}
# What stands for a second pass, sent though there is none, and what says the same as for the first.
HIRES_LEFT = {"hr_scale": 2, "hr_upscaler": "R-ESRGAN 4x+", "hr_resize_x": 512, "hr_prompt": "x", "hr_cfg": 3}
HIRES_SAME = {"enable_hr": True, "hr_scale": 1.5, "hr_prompt": "a red apple", "hr_sampler_name": "Euler"}


def refused(web, path="txt2img", status=422, **body):
    answer = web.client.post(f"/sdapi/v1/{path}", json=SMALL | body)
    assert answer.status_code == status, answer.text
    return answer.json()["detail"]


def test_the_answer_has_its_three_parts(web, pipe):
    answer = post(web, "txt2img", **SMALL, sampler_name="Euler a", batch_size=2, n_iter=2)
    assert answer.keys() == {"images", "parameters", "info"}
    info = json.loads(answer["info"])
    alone = pipe(
        "a red apple",
        steps=2,
        seed=7,
        width=64,
        height=64,
        guidance_scale=7.0,
        sampler="euler_a",
        schedule="normal",
        num_images=4,
    )
    assert info["all_seeds"] == [7, 8, 9, 10]
    for text, image in zip(answer["images"], alone.images):
        assert opened(text).tobytes() == image.tobytes()
    assert [opened(text).info["parameters"] for text in answer["images"]] == info["infotexts"]
    assert parse_infotext(info["infotexts"][3])["Seed"] == "10"
    facts = {"seed": 7, "width": 64, "height": 64, "steps": 2, "cfg_scale": 7.0, "sampler_name": "Euler a"}
    assert facts.items() <= info.items()
    assert info["all_prompts"] == ["a red apple"] * 4
    assert info["sd_model_name"] == "emoji"
    assert answer["parameters"]["batch_size"] == 2


def test_what_is_not_given(web):
    info = json.loads(post(web, "txt2img", prompt="x", steps=1)["info"])
    assert (info["width"], info["height"]) == (64, 64), "the model's own size"
    assert info["sampler_name"] == "Euler"
    assert info["cfg_scale"] == 7.0
    assert 0 <= info["seed"] < 2**32


@pytest.mark.parametrize(
    "body", [SILLY_TAVERN, OPEN_WEBUI, EXAMPLE, AIYABOT], ids=["SillyTavern", "Open WebUI", "example", "aiyabot"]
)
def test_other_clients_bodies(web, body):
    assert opened(post(web, "txt2img", **body)["images"][0]).size == (64, 64)


@pytest.mark.parametrize("prefix", ["", "data:image/png;base64,"])
def test_other_clients_bodies_with_an_image(web, photo, prefix):
    mask = Image.new("L", (64, 64))
    mask.paste(255, (8, 8, 40, 40))
    images = {"init_images": [prefix + base64_of(photo)], "mask": prefix + base64_of(mask)}
    assert opened(post(web, "img2img", **SHOWN, **images)["images"][0]).size == (64, 64)


def test_what_is_said_of_a_second_pass(web):
    plain = SMALL | {"sampler_name": "Euler"}
    once = post(web, "txt2img", **plain, **HIRES_LEFT)["images"]
    assert once == post(web, "txt2img", **plain)["images"]
    assert opened(post(web, "txt2img", **plain, **HIRES_SAME)["images"][0]).size == (96, 96)
    assert "hr_prompt" in refused(web, **HIRES_SAME | {"hr_prompt": "another"})


def test_clip_skip_as_sd_next_has_it(web):
    shallow = post(web, "txt2img", **SMALL, clip_skip=2)["images"]
    assert shallow == post(web, "txt2img", **SMALL, override_settings={"CLIP_stop_at_last_layers": 2})["images"]
    assert shallow != post(web, "txt2img", **SMALL)["images"]


@pytest.mark.parametrize(
    ("body", "sampler", "schedule"),
    [
        ({"sampler_name": "Euler a"}, "Euler a", "Normal"),
        ({"sampler_name": "DPM++ 3M SDE", "scheduler": "Automatic"}, "DPM++ 3M SDE", "Exponential"),
        ({"sampler_name": "Euler", "scheduler": "ldm"}, "Euler", "Uniform"),
        ({"sampler_index": "DDIM"}, "DDIM", "Uniform"),
        ({"sampler_name": "DPM++ 2M Karras"}, "DPM++ 2M", "Karras"),
        ({"sampler_name": "DPM++ 2M", "scheduler": "exponential"}, "DPM++ 2M", "Exponential"),
        ({"sampler_name": "DPM++ 2M", "scheduler": "uniform"}, "DPM++ 2M", "Normal"),
        ({"sampler_name": "DPM++ 2M", "scheduler": "Automatic"}, "DPM++ 2M", "Karras"),
        ({"sampler_name": "k_heun"}, "Heun", "Normal"),
        ({"sampler_name": "DDIM", "eta": 1}, "DDPM", "Uniform"),
        ({"sampler_name": "LCM"}, "LCM", "LCM"),
    ],
)
def test_samplers_in_the_webuis_spelling(web, body, sampler, schedule):
    text = json.loads(post(web, "txt2img", **SMALL, **body)["info"])["infotexts"][0]
    found = parse_infotext(text)
    assert (found["Sampler"], found["Schedule type"]) == (sampler, schedule)


def test_every_sampler_and_schedule_that_is_listed_is_taken(web):
    for sampler in web.client.get("/sdapi/v1/samplers").json():
        post(web, "txt2img", **SMALL | {"steps": 1}, sampler_name=sampler["name"])
    for schedule in web.client.get("/sdapi/v1/schedulers").json():
        for spelling in ("name", "label"):
            post(web, "txt2img", **SMALL | {"steps": 1}, scheduler=schedule[spelling])


def test_variations_and_hires(web, pipe):
    answer = post(web, "txt2img", **SMALL, subseed=3, subseed_strength=0.5, n_iter=2)
    info = json.loads(answer["info"])
    assert (info["all_seeds"], info["all_subseeds"]) == ([7, 7], [3, 4])
    hires = post(web, "txt2img", **SMALL, enable_hr=True, hr_scale=1.5, denoising_strength=0.5)
    assert opened(hires["images"][0]).size == (96, 96)
    alone = pipe(
        "a red apple",
        steps=2,
        seed=7,
        guidance_scale=7.0,
        sampler="euler",
        schedule="normal",
        hires_scale=1.5,
        hires_strength=0.5,
    )
    assert opened(hires["images"][0]).tobytes() == alone.images[0].tobytes()


def test_from_an_image(web, pipe, photo):
    answer = post(web, "img2img", **SMALL, init_images=[base64_of(photo)], denoising_strength=0.9)
    alone = pipe(
        "a red apple",
        steps=2,
        seed=7,
        image=photo,
        strength=0.9,
        guidance_scale=7.0,
        sampler="euler",
        schedule="normal",
    )
    assert opened(answer["images"][0]).tobytes() == alone.images[0].tobytes()
    assert answer["parameters"]["init_images"] is None, "they are not sent back"
    answer = post(web, "img2img", **SMALL, init_images=[base64_of(photo)], include_init_images=True)
    assert answer["parameters"]["init_images"] == [base64_of(photo)], "unless they are asked for"


@pytest.mark.parametrize(("mode", "expected"), [(0, "stretched"), (1, "cut")])
def test_an_image_of_another_shape(web, pipe, mode, expected):
    wide = Image.new("RGB", (128, 64), "red")
    wide.paste("blue", (0, 0, 64, 64))
    fitted = wide.resize((64, 64), Image.Resampling.LANCZOS) if expected == "stretched" else wide.crop((32, 0, 96, 64))
    answer = post(web, "img2img", **SMALL, init_images=[base64_of(wide)], resize_mode=mode, denoising_strength=0)
    alone = pipe("", steps=2, seed=7, image=fitted, strength=0, guidance_scale=7.0, sampler="euler", schedule="normal")
    assert opened(answer["images"][0]).tobytes() == alone.images[0].tobytes()


@pytest.mark.parametrize("only_masked", [False, True])
@pytest.mark.parametrize("fill", [0, 1])
def test_inpainting_keeps_what_is_black(web, photo, only_masked, fill):
    mask = Image.new("L", (64, 64))
    mask.paste(255, (8, 8, 24, 24))
    body = dict(init_images=[base64_of(photo)], mask=base64_of(mask), mask_blur=0, inpainting_fill=fill)
    answer = post(web, "img2img", **SMALL, **body, inpaint_full_res=only_masked, inpaint_full_res_padding=4)
    generated, kept = np.asarray(opened(answer["images"][0])), np.asarray(mask) == 0
    assert (generated[kept] == np.asarray(photo)[kept]).all()
    assert (generated[~kept] != np.asarray(photo)[~kept]).any()


@pytest.mark.parametrize(
    ("blurs", "blur"),
    [({}, 4), ({"mask_blur_x": 8, "mask_blur_y": 8}, 8), ({"mask_blur": 0, "mask_blur_x": 4, "mask_blur_y": 4}, 0)],
)
def test_the_blur_of_a_mask(web, photo, blurs, blur):
    mask = Image.new("L", (64, 64))
    mask.paste(255, (8, 8, 40, 40))
    body = SMALL | {"init_images": [base64_of(photo)], "mask": base64_of(mask), "inpaint_full_res": False}
    images = [post(web, "img2img", **body, mask_blur=value)["images"] for value in (blur, blur + 1)]
    assert post(web, "img2img", **body, **blurs)["images"] == images[0] != images[1]


def test_only_masked_gives_the_whole_image_back(web, photo):
    large = photo.resize((256, 192))
    mask = Image.new("L", (256, 192))
    mask.paste(255, (100, 50, 140, 90))
    body = dict(init_images=[base64_of(large)], mask=base64_of(mask), inpaint_full_res=True)
    assert opened(post(web, "img2img", **SMALL, **body)["images"][0]).size == (256, 192)


def test_every_fill_and_soft_inpainting_reach_the_settings(web, photo):
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 32, 64))
    body = SMALL | dict(init_images=[base64_of(photo)], mask=base64_of(mask), inpaint_full_res=False, mask_blur=8)
    scripts = {"soft inpainting": {"args": [{"Soft inpainting": True, "Schedule bias": 1}]}}
    texts = [
        json.loads(post(web, "img2img", **body, inpainting_fill=fill)["info"])["infotexts"][0] for fill in range(4)
    ]
    contents = [parse_infotext(text).get("Masked content", "original") for text in texts]
    assert contents == ["fill", "original", "latent noise", "latent nothing"]
    soft = json.loads(post(web, "img2img", **body, alwayson_scripts=scripts)["info"])["infotexts"][0]
    assert parse_infotext(soft)["Soft inpainting enabled"] == "True"
    assert parse_infotext(soft)["Mask blur"] == "8"


def test_styles(web):
    style = web.client.get("/sdapi/v1/prompt-styles").json()[0]
    info = json.loads(post(web, "txt2img", **SMALL, styles=[style["name"]])["info"])
    assert info["prompt"] == find_style(style["name"]).apply("a red apple")[0] != "a red apple"
    assert info["negative_prompt"] == style["negative_prompt"]
    assert info["styles"] == [style["name"]]


def test_images_are_left_out_when_not_wanted(web):
    answer = post(web, "txt2img", **SMALL, send_images=False)
    assert answer["images"] == []
    assert json.loads(answer["info"])["all_seeds"] == [7]


@pytest.mark.parametrize(
    "body",
    [
        {"script_name": "X/Y/Z plot"},
        {"alwayson_scripts": {"controlnet": {"args": [{"image": ""}]}}},
        {"restore_faces": True},
        {"refiner_checkpoint": "sd_xl_refiner"},
        {"styles": ["no such style"]},
        {"s_churn": 1},
        {"eta": 1.5, "sampler_name": "DDIM"},
        {"sampler_name": "Wrong"},
        {"scheduler": "Wrong"},
        {"enable_hr": True, "hr_upscaler": "R-ESRGAN 4x+"},
        {"enable_hr": True, "hr_prompt": "another"},
        {"override_settings": {"sd_model_checkpoint": "../x"}},
        {"override_settings": {"CLIP_stop_at_last_layers": 0}},
        {"override_settings": {"eta_noise_seed_delta": -1}},
        {"override_settings": {"unheard_of": 1}},
        {"override_settings": {"CLIP_stop_at_last_layers": [1]}},
        {"batch_size": -2, "n_iter": -2},
        {"batch_size": 64, "n_iter": 64},
        {"steps": 10**30},
        {"width": 8192},
        {"prompt": "<lora:../../x:1>"},
        {"prompt": "an apple <hypernet:fruit:1>"},
        {"negative_prompt": "<lyco:fruit:1>"},
        {"clip_skip": 99},
        {"alwayson_scripts": {"ADetailer": {"args": [True]}}},
        {"alwayson_scripts": {"ADetailer": 3}},
        {"alwayson_scripts": []},
        {"prompt": "a\0b"},
        {"cfg_scale": "seven"},
    ],
    ids=lambda body: next(iter(body)),
)
def test_what_is_not_supported_is_said(web, body):
    assert refused(web, **body)


def test_a_value_out_of_bounds_is_said_with_the_fields_own_name(web):
    assert refused(web, cfg_scale=1000) == "cfg_scale must be a number from 0 to 100, not 1000.0."
    assert refused(web, denoising_strength=2) == "denoising_strength must be a number from 0 to 1, not 2.0."
    assert refused(web, batch_size=50, n_iter=50).startswith("num_images must be a whole number from 1 to ")


@pytest.mark.parametrize(
    "body",
    [
        {"init_images": []},
        {"init_images": ["AAAA"]},
        {"init_images": ["http://127.0.0.1:1/x.png"]},
        {"init_images": ["/etc/passwd"]},
        {"resize_mode": 2},
        {"mask": "AAAA"},
        {"inpainting_fill": 4, "mask": "photo"},
        {"mask_blur_x": 3, "mask": "photo"},
        {"mask_blur": 100, "mask": "photo"},
        {"latent_mask": "AAAA"},
        {"init_images": [None]},
    ],
    ids=lambda body: next(iter(body)),
)
def test_images_that_are_refused(web, photo, body):
    body = {"init_images": [base64_of(photo)]} | body
    if body.get("mask") == "photo":
        body["mask"] = base64_of(photo)
    assert refused(web, "img2img", **body)


def test_a_checkpoint_that_cannot_generate_is_said(web):
    save_file({}, web.models.folders["checkpoint"] / "broken.safetensors")
    web.models.refresh()
    pipe, web.generator.pipe = web.generator.pipe, None
    detail = refused(web, override_settings={"sd_model_checkpoint": "broken.safetensors [0123456789]"})
    web.generator.pipe, web.generator.files = pipe, ()
    (web.models.folders["checkpoint"] / "broken.safetensors").unlink()
    web.models.refresh()
    assert "checkpoint" in detail


def test_an_embedding_is_used_by_its_word_and_leaves_no_trace(web, pipe):
    vectors = pipe.clip.embeddings.token_embedding.weight[[320, 1125]] * 3
    save_embedding(web.models.folders["embedding"] / "zorgle.safetensors", "<w>", vectors)
    web.models.refresh()
    body = SMALL | {"prompt": "a zorgle apple"}
    with_it = post(web, "txt2img", **body)
    plain = post(web, "txt2img", **SMALL)
    pipe.load_embedding(web.models.folders["embedding"] / "zorgle.safetensors", "zorgle")
    alone = pipe("a zorgle apple", steps=2, seed=7, guidance_scale=7.0, sampler="euler", schedule="normal")
    pipe.unload()
    plain_alone = pipe("a red apple", steps=2, seed=7, guidance_scale=7.0, sampler="euler", schedule="normal")
    assert opened(with_it["images"][0]).tobytes() == alone.images[0].tobytes()
    assert opened(plain["images"][0]).tobytes() == plain_alone.images[0].tobytes()
    # The prompt names it, so "Adapters" need not: that is for what was loaded by hand, and `--resume` compares texts.
    assert json.loads(with_it["info"])["infotexts"][0].startswith("a zorgle apple\n")
    assert web.client.get("/sdapi/v1/embeddings").json()["loaded"]["zorgle"]["vectors"] == 2


def test_options_are_kept_and_one_request_may_differ(web):
    got = web.client.get("/sdapi/v1/options").json()
    assert got["sd_model_checkpoint"] == "emoji.safetensors"
    post(web, "options", **got)  # clients send all of them back
    post(web, "options", CLIP_stop_at_last_layers=2)
    assert "Clip skip: 2" in json.loads(post(web, "txt2img", **SMALL)["info"])["infotexts"][0]
    over = {"CLIP_stop_at_last_layers": 1}
    assert "Clip skip" not in json.loads(post(web, "txt2img", **SMALL, override_settings=over)["info"])["infotexts"][0]
    assert web.client.get("/sdapi/v1/options").json()["CLIP_stop_at_last_layers"] == 2
    post(web, "txt2img", **SMALL, override_settings=over, override_settings_restore_afterwards=False)
    assert web.client.get("/sdapi/v1/options").json()["CLIP_stop_at_last_layers"] == 1
    assert refused(web, "options", unheard_of=1)
    nothing = dict.fromkeys(["sd_model_checkpoint", "CLIP_stop_at_last_layers", "unheard_of"])
    post(web, "options", **nothing)
    assert web.client.get("/sdapi/v1/options").json()["CLIP_stop_at_last_layers"] == 1


@pytest.mark.parametrize(
    "sent", ["", "{", "[]", '"x"', json.dumps(SMALL)], ids=["none", "half", "list", "text", "form"]
)
def test_what_is_no_json_is_said(web, sent):
    kind = "application/x-www-form-urlencoded" if sent.startswith('{"') else "application/json"  # the former is curl's
    answer = web.client.post("/sdapi/v1/txt2img", content=sent, headers={"Content-Type": kind})
    assert answer.status_code == 422
    assert "with Content-Type: application/json" in answer.json()["detail"]


def test_settings_read_from_an_image(web, photo):
    answer = post(web, "txt2img", **SMALL)
    read = post(web, "png-info", image=answer["images"][0])
    assert read["info"] == json.loads(answer["info"])["infotexts"][0] == read["items"]["parameters"]
    assert read["parameters"]["Seed"] == "7"
    assert post(web, "png-info", image=base64_of(photo)) == {"info": "", "items": {}, "parameters": {}}
    assert web.client.post("/sdapi/v1/png-info", json={"image": "AAAA"}).status_code == 422


@pytest.mark.parametrize("path", ["interrogate", "server-kill", "..%2fjobs"])
def test_what_else_the_webui_does_is_said_to_be_missing(web, path):
    answer = web.client.post(f"/sdapi/v1/{path}", json={})
    assert answer.status_code == 404
    assert answer.json()["detail"]
    assert web.client.get("/sdapi/v1/txt2img").json()["detail"] == "GET /sdapi/v1/txt2img is not supported here."


@pytest.fixture
def client(tmp_path, pipe):
    """A third party's client, on a real socket."""
    web = Web(tmp_path, pipe)
    with listening(web.app) as port:
        client = webuiapi.WebUIApi(port=port, sampler="Euler a", steps=2)
        client.web = web
        yield client


def test_webuiapi_generates(client, pipe):
    result = client.txt2img(prompt="a red apple", seed=7, width=64, height=64, batch_size=2)
    alone = pipe("a red apple", steps=2, seed=7, guidance_scale=7.0, sampler="euler_a", schedule="normal", num_images=2)
    assert [image.tobytes() for image in result.images] == [image.tobytes() for image in alone.images]
    assert result.info["all_seeds"] == [7, 8]
    assert result.parameters["prompt"] == "a red apple"
    info = client.png_info(result.image)
    assert info.info == result.info["infotexts"][0]
    mask = Image.new("L", (64, 64), 255)
    for more in ({}, {"mask_image": mask}, {"mask_image": mask, "inpaint_full_res": False, "inpainting_fill": 1}):
        assert client.img2img([result.image], prompt="a red apple", width=64, height=64, **more).image.size == (64, 64)


def test_webuiapi_plots_as_its_readme_does(client):
    """The call of its README at a small size, twice, and its enlarging of the result."""
    nothing, steps, sampler = 0, 4, 9
    args = [steps, "1,2", "", sampler, "Euler a, LMS", "", nothing, "", "", "True", "False", "False", "False", 0]
    given = dict(prompt="a red apple", seed=1003, width=64, height=64, script_name="X/Y/Z Plot", script_args=args)
    first, second = client.txt2img(**given), client.txt2img(**given)
    assert len(first.images) == 1
    assert first.image.tobytes() == second.image.tobytes()
    assert first.info["infotexts"][0].count("Values") == 2
    larger = client.extra_single_image(first.image, upscaler_1="Lanczos", upscaling_resize=2)
    assert larger.image.size == (first.image.width * 2, first.image.height * 2)


def test_webuiapi_asks_for_everything(client):
    # With its hash, as the webui writes it, once that is known.
    assert [name.split(" [")[0] for name in client.util_get_model_names()] == ["emoji.safetensors"]
    client.util_set_model("emoji")
    assert client.util_get_current_model().split(" [")[0] == "emoji.safetensors"
    assert "DPM++ 2M" in client.util_get_sampler_names()
    assert "karras" in client.util_get_scheduler_names()
    client.util_wait_for_ready(check_interval=0.01)
    assert [one["name"] for one in client.get_loras()] == ["emoji-turbo"]
    assert client.get_sd_vae() == []
    assert [one["name"] for one in client.get_upscalers()] == ["None", "Lanczos", "Nearest"]
    assert client.get_embeddings() == {"loaded": {}, "skipped": {}}
    assert client.get_scripts() == {"txt2img": ["x/y/z plot"], "img2img": ["poor man's outpainting", "x/y/z plot"]}
    assert client.get_latent_upscale_modes()[0] == {"name": "Latent"}
    client.refresh_checkpoints()
    assert {"name", "prompt", "negative_prompt"} == client.get_prompt_styles()[0].keys()
    assert client.get_cmd_flags()
    assert client.get_hypernetworks() == client.get_face_restorers() == client.get_realesrgan_models() == []


def test_webuiapi_asks_for_what_is_not_to_be_had(client, photo):
    for ask in (
        lambda: client.interrogate(photo),
        lambda: client.prompt_gen(text="an apple"),
    ):
        with pytest.raises(RuntimeError, match="404"):
            ask()
    detailer = {"adetailer": [webuiapi.ADetailer(ad_model="face_yolov8n.pt")]}
    with pytest.raises(RuntimeError, match=r"422.*the script \w+ is not supported here"):
        client.txt2img(prompt="a red apple", width=64, height=64, alwayson_scripts={}, **detailer)
    for ask in (client.get_artists, client.get_artist_categories):
        assert "is not supported here" in ask()["detail"]


def test_webuiapi_follows_and_interrupts(client):
    results = []
    asking = threading.Thread(
        target=lambda: results.append(client.txt2img(prompt="a red apple", steps=300, n_iter=50, width=64, height=64))
    )
    asking.start()
    seen = []
    while asking.is_alive() and not (seen and seen[-1]["progress"] > 0):
        seen.append(client.get_progress())
    assert seen[-1]["state"]["job_count"] == 1
    assert 0 < seen[-1]["progress"] < 1
    assert seen[-1]["eta_relative"] >= 0
    assert seen[-1]["state"]["sampling_steps"] == 300 * 50
    client.skip()
    client.interrupt()
    asking.join(60)
    assert len(results[0].images) < 50
    assert client.get_progress()["progress"] == 0


def test_noise_eta_and_the_webuis_manner_are_options(web):
    """Each changes the image, and the text in it says so; eta is a field of the body as well."""
    body = SMALL | {"sampler_name": "Euler a", "steps": 2}
    plain = post(web, "txt2img", **body)
    for change, said in (
        ({"override_settings": {"randn_source": "NV"}}, "RNG: NV"),
        ({"override_settings": {"eta_noise_seed_delta": 31337}}, "ENSD: 31337"),
        ({"override_settings": {"eta_ancestral": 0.5}}, "Eta: 0.5"),
        ({"prompt": "a (red:1.4) apple", "override_settings": {"emphasis": "Ignore"}}, "Emphasis: Ignore"),
        ({"override_settings": {"compat": "webui"}}, "Compatibility: webui"),
        ({"eta": 0.25}, "Eta: 0.25"),
        ({"s_min_uncond": 15}, "NGMS: 15"),
        ({"override_settings": {"s_min_uncond": 14.5}}, "NGMS: 14.5"),
    ):
        answer = post(web, "txt2img", **body | change)
        assert said in json.loads(answer["info"])["infotexts"][0]
        assert answer["images"] != plain["images"]
    ignored = post(web, "txt2img", **body | {"sampler_name": "Euler", "eta": 0.25})
    assert json.loads(ignored["info"])["ignored"] == ["eta"]
