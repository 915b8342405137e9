"""Requests as other programs send them to a webui, and what the webui's own models would take from them.

Each body has what its client sends, at a size and number of steps that take no time.
"""

import json

import pytest
from web_client import base64_of, opened

SMALL = {"prompt": "a red apple", "steps": 2, "seed": 7, "width": 64, "height": 64}
PHOTOSHOP_DETAILER = {
    "ad_model": "face_yolov8n.pt",
    "ad_prompt": "",
    "ad_negative_prompt": "",
    "ad_confidence": 0.3,
    "ad_mask_min_ratio": 0.0,
    "ad_mask_max_ratio": 1.0,
    "ad_denoising_strength": 0.4,
    "ad_controlnet_model": "None",
    "ad_controlnet_module": None,
}
CONTROLNET_OFF = {
    "enabled": False,
    "input_image": "",
    "mask": "",
    "module": "none",
    "model": "None",
    "weight": 1,
    "resize_mode": "Crop and Resize",
    "lowvram": False,
    "processor_res": 512,
    "guidance_start": 0,
    "guidance_end": 1,
    "control_mode": "Balanced",
}
# The Photoshop plugin keeps its own settings in the body.
PHOTOSHOP = {
    "selection_info": {"left": 0, "right": 64, "top": 0, "bottom": 64, "width": 64, "height": 64},
    "alwayson_scripts": {
        "ADetailer": {"args": [False, PHOTOSHOP_DETAILER]},
        "controlnet": {"args": [CONTROLNET_OFF, CONTROLNET_OFF]},
    },
    "prompt": "a red apple",
    "negative_prompt": "",
    "original_prompt": "a red apple",
    "original_negative_prompt": "",
    "steps": 2,
    "width": 64,
    "height": 64,
    "denoising_strength": 0.7,
    "batch_size": 1,
    "cfg_scale": 7,
    "seed": "7",
    "mask_blur": 0,
    "use_sharp_mask": False,
    "use_prompt_shortcut": False,
    "prompt_shortcut_ui_dict": {},
    "uniqueDocumentId": "00000000-0000-0000-0000-000000000000",
    "mode": "txt2img",
    "restore_faces": False,
    "sampler_name": "Euler a",
    "backend_type": "Auto1111",
}
KOBOLDAI_LITE = {
    "prompt": "a red apple",
    "negative_prompt": "",
    "seed": 7,
    "steps": 2,
    "cfg_scale": 7,
    "sampler_name": "Euler a",
    "width": 64,
    "height": 64,
    "batch_size": 1,
    "n_iter": 1,
    "do_not_save_samples": True,
    "do_not_save_grid": True,
    "enable_hr": False,
    "eta": 0,
    "s_churn": 0,
    "s_tmax": 0,
    "s_tmin": 0,
    "s_noise": 1,
    "save_images": False,
    "override_settings": {
        "sd_model_checkpoint": "emoji.safetensors",
        "eta_noise_seed_delta": 0,
        "CLIP_stop_at_last_layers": 1.0,
        "ddim_discretize": "uniform",
        "img2img_fix_steps": False,
        "sd_hypernetwork": "None",
        "inpainting_mask_weight": 1.0,
        "initial_noise_multiplier": 1.0,
        "comma_padding_backtrack": 20,
    },
}
DIFY = {
    "prompt": "a red apple",
    "negative_prompt": "",
    "seed": 7,
    "subseed": -1,
    "subseed_strength": 0,
    "seed_resize_from_h": -1,
    "seed_resize_from_w": -1,
    "sampler_index": "DPM++ SDE Karras",
    "batch_size": 1,
    "n_iter": 1,
    "steps": 2,
    "cfg_scale": 7,
    "width": 64,
    "height": 64,
    "restore_faces": False,
    "do_not_save_samples": False,
    "do_not_save_grid": False,
    "eta": 0,
    "denoising_strength": 0,
    "s_min_uncond": 0,
    "s_churn": 0,
    "s_tmax": 0,
    "s_tmin": 0,
    "s_noise": 0,
    "override_settings": {},
    "override_settings_restore_afterwards": True,
    "refiner_switch_at": 0,
    "disable_extra_networks": False,
    "comments": {},
    "enable_hr": True,
    "firstphase_width": 0,
    "firstphase_height": 0,
    "hr_scale": 2,
    "hr_second_pass_steps": 0,
    "hr_resize_x": 0,
    "hr_resize_y": 0,
    "hr_prompt": "",
    "hr_negative_prompt": "",
    "script_args": [],
    "send_images": True,
    "save_images": False,
    "alwayson_scripts": {},
}
# With the options that others set for their own comfort.
SAVING = SMALL | {
    "override_settings": {
        "samples_save": False,
        "samples_format": "jpg",
        "samples_filename_pattern": "[seed]",
        "jpeg_quality": 95,
        "outdir_txt2img_samples": "/somewhere/else",
        "show_progress_every_n_steps": 1,
        "randn_source": "GPU",
        "sd_vae": "Automatic",
    }
}
# As the webui's own page sends it, which extensions show: built-in scripts that repeat the body.
BUILT_IN = SMALL | {
    "sampler_name": "DPM++ 2M",
    "scheduler": "Automatic",
    "alwayson_scripts": {
        "Sampler": {"args": [2, "DPM++ 2M", "Automatic"]},
        "Seed": {"args": [7, False, -1, 0, 0, 0]},
        "Refiner": {"args": [False, "", 0.8]},
        "Soft inpainting": {"args": [False, 1, 0.5, 4, 0, 0.5, 2]},
        "Soft Inpainting": {"args": ["False"]},
        "Extra options": {"args": []},
        "Comments": {"args": []},
        "Never OOM Integrated": {"args": [False, False]},
        "ControlNet": {"args": [{"enabled": False}, None, {}]},
        "ADetailer": {"args": [{"ad_model": None}]},
        "AnimateDiff": {"args": {"enable": False}},
        "Hypertile": {},
        "API payload": None,
    },
}
# Chat programs and bots: short bodies with their own default sizes and prompts.
LIBRECHAT = {"prompt": "an apple", "negative_prompt": "x", "cfg_scale": 4.5, "steps": 2, "width": 64, "height": 64}
TOP_LEVEL_MODEL = SMALL | {"sd_model_checkpoint": "anything.ckpt", "filter_nsfw": "true"}
# One body for both addresses: what belongs to img2img is there in txt2img.
BOTH = SMALL | {
    "denoising_strength": 0.5,
    "mask_blur": 4,
    "inpainting_fill": 1,
    "inpaint_full_res": True,
    "inpaint_full_res_padding": 32,
    "inpainting_mask_invert": 0,
    "initial_noise_multiplier": 0.5,
    "resize_mode": 3,
    "include_init_images": True,
}
BODIES = {
    "Auto-Photoshop": PHOTOSHOP,
    "KoboldAI Lite": KOBOLDAI_LITE,
    "Dify": DIFY,
    "saving": SAVING,
    "built-in scripts": BUILT_IN,
    "LibreChat": LIBRECHAT,
    "model beside the settings": TOP_LEVEL_MODEL,
    "one body for both": BOTH,
}
IMAGES = {  # as the add-on for Blender sends it, with its own names beside the webui's
    "Blender": {
        "prompt": "a red apple",
        "negative_prompt": "",
        "image_similarity": 0.3,
        "denoising_strength": 0.7,
        "sampler": "Euler a",
        "sampler_index": "Euler a",
        "width": 64,
        "height": 64,
        "cfg_scale": 7,
        "steps": 2,
        "seed": 7,
    },
    "Auto-Photoshop": PHOTOSHOP | {"mode": "img2img", "image_cfg_scale": 1.5, "inpaint_full_res": 0},
    "second pass of txt2img": SMALL | {"enable_hr": True, "hr_scale": 2, "hr_prompt": "another", "hr_upscaler": "x4"},
}


def images_of(web, path, body, headers=None):
    """(images, info)"""
    answer = web.client.post(f"/sdapi/v1/{path}", content=json.dumps(body), headers=headers)
    assert answer.status_code == 200, answer.text
    return [opened(text) for text in answer.json()["images"]], json.loads(answer.json()["info"])


@pytest.mark.parametrize("name", BODIES)
def test_a_client_gets_its_image(web, name):
    headers = {"Content-Type": "application/json"}
    images, _ = images_of(web, "txt2img", BODIES[name], headers if name != "Dify" else None)
    assert images[0].size == ((128, 128) if name == "Dify" else (64, 64))


@pytest.mark.parametrize("name", IMAGES)
def test_a_client_gets_its_image_from_an_image(web, photo, name):
    images, info = images_of(web, "img2img", IMAGES[name] | {"init_images": [base64_of(photo)]})
    assert images[0].size == (64, 64)
    assert info["ignored"], "each of them sends something that the webui does not have"


def test_what_is_ignored_is_listed_and_said_on_the_console(web, capsys):
    body = {key: value for key, value in PHOTOSHOP.items() if key != "alwayson_scripts"}
    images, info = images_of(web, "txt2img", body)
    expected = {"selection_info", "original_prompt", "uniqueDocumentId", "mode", "backend_type"}
    assert expected == set(info["ignored"]), "those with a value, and none of the webui's"
    assert "ignored unknown fields: selection_info" in capsys.readouterr().err
    plain, info = images_of(web, "txt2img", SMALL | {"sampler_name": "Euler a"})
    assert images[0].tobytes() == plain[0].tobytes(), "they change nothing"
    assert "ignored" not in info


def test_an_image_in_the_body_of_txt2img_is_ignored_aloud(web, photo):
    _, info = images_of(web, "txt2img", BOTH | {"init_images": [base64_of(photo)]})
    assert info["ignored"] == ["init_images"]


def test_what_is_png_here_is_noted(web):
    _, info = images_of(web, "txt2img", SAVING)
    assert [note.split()[0] for note in info["notes"]] == ["Images"]


@pytest.mark.parametrize(
    ("scripts", "sentence"),
    [
        ({"controlnet": {"args": [{"enabled": False}, {"model": "canny"}]}}, "a ControlNet unit has no image"),
        ({"ControlNet": {"args": {"enabled": True}}}, "set enabled to false"),
        ({"ADetailer": {"args": [True, {"ad_model": "face_yolov8n.pt"}]}}, "let its first argument be false"),
        ({"ADetailer": {"args": [{"ad_model": "face_yolov8n.pt"}]}}, "let its first argument be false"),
        ({"Sampler": {"args": [30, "Euler", "Automatic"]}}, "its values differ from those of the request"),
        ({"Sampler": {"args": [2, "Heun", "Automatic"]}}, "its values differ"),
        ({"Seed": {"args": [8, False]}}, "its values differ"),
        ({"Seed": {"args": [7, True, 3, 0.5, 0, 0]}}, "its values differ"),
        ({"Refiner": {"args": [True, "x", 0.8]}}, "leave it out of alwayson_scripts"),
        ({"Extra options": {"args": ["x"]}}, "leave it out of alwayson_scripts"),
        ({"Tiled Diffusion": {"args": ["True"]}}, "leave it out of alwayson_scripts"),
        ({"ControlNet": 3}, "not supported here"),
    ],
)
def test_a_script_that_would_do_something_is_refused(web, scripts, sentence):
    answer = web.client.post("/sdapi/v1/txt2img", json=SMALL | {"sampler_name": "Euler", "alwayson_scripts": scripts})
    assert answer.status_code == 422
    assert sentence in answer.json()["detail"]


@pytest.mark.parametrize(
    "options",
    [
        {"sd_hypernetwork": "fruit"},
        {"inpainting_mask_weight": 0.5},
        {"comma_padding_backtrack": 75},
        {"token_merging_ratio": 0.5},
        {"randn_source": "dice"},
        {"compat": "another"},
        {"eta_noise_seed_delta": -1},
        {"uni_pc_order": 2},
        {"face_restoration": True},
        {"no_such_option": 1},
        {"sd_vae": "no such VAE"},
        {"tiling": True},
    ],
    ids=lambda options: next(iter(options)),
)
def test_an_option_that_would_change_the_image_is_refused_and_nothing_is_half_chosen(web, options):
    name = next(iter(options))
    for path, body in (("txt2img", SMALL | {"override_settings": options}), ("options", options)):
        answer = web.client.post(f"/sdapi/v1/{path}", json=body)
        assert answer.status_code == 422
        assert name.removeprefix("sd_vae") in answer.json()["detail"]
    web.client.post("/sdapi/v1/options", json={"CLIP_stop_at_last_layers": 2} | options)
    assert web.client.get("/sdapi/v1/options").json()["CLIP_stop_at_last_layers"] == 1


def test_options_go_back_as_they_came(web):
    options = web.client.get("/sdapi/v1/options").json()
    assert {"sd_model_checkpoint", "sd_vae", "samples_save", "CLIP_stop_at_last_layers", "randn_source"} <= set(options)
    assert web.client.post("/sdapi/v1/options", json=options).status_code == 200
    assert web.client.get("/sdapi/v1/options").json() == options
    images_of(web, "txt2img", SMALL | {"override_settings": options})


def test_json_needs_no_content_type_but_a_page_of_another_site_stays_out(web):
    """A form or a script of another site can send a body of any type without being asked, but never without Origin."""
    for kind in (None, "text/plain", "application/json", "application/x-www-form-urlencoded"):
        headers = {"Origin": "https://evil.example"} | ({"Content-Type": kind} if kind else {})
        answer = web.client.post("/sdapi/v1/txt2img", content=json.dumps(SMALL), headers=headers)
        assert answer.status_code == 403, kind
    assert web.client.post("/jobs", content=json.dumps(SMALL)).status_code == 202
