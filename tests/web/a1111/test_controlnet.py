"""The webui's ControlNet extension: units of its clients, its lists and /controlnet/detect."""

import base64
import io
import json
import shutil

import numpy as np
import pytest
import webuiapi
from PIL import Image
from small_models import save_control, save_image_encoder, save_ip_adapter
from web_client import Web, base64_of, listening, opened, post

from sd.control.preprocessors import preprocess

SMALL = {"prompt": "a red apple", "steps": 2, "seed": 7, "width": 64, "height": 64}
# As Auto-Photoshop sends it: all of its fields, numbers for the choices.
PHOTOSHOP = {
    "enabled": True,
    "input_image": "",
    "mask": "",
    "module": "canny",
    "model": "edges [d14c016b]",
    "weight": 0.9,
    "resize_mode": 1,
    "lowvram": True,
    "processor_res": 512,
    "threshold_a": 80,
    "threshold_b": 160,
    "guidance_start": 0,
    "guidance_end": 0.8,
    "control_mode": 2,
    "pixel_perfect": True,
}


def with_a_controlnet(web):
    path = web.models.folders["ControlNet"] / "edges.safetensors"
    if not path.exists():
        save_control(path)
        web.models.refresh()
    return web


@pytest.fixture
def nets(web):
    return with_a_controlnet(web)


def with_units(*units):
    return SMALL | {"alwayson_scripts": {"ControlNet": {"args": list(units)}}}


def info_of(answer):
    return json.loads(answer["info"])


def test_auto_photoshops_unit_generates(nets, photo):
    body = with_units(PHOTOSHOP | {"input_image": base64_of(photo)}, {"enabled": False}, {})
    answer = post(nets, "txt2img", **body)
    assert (
        'ControlNet 0: "Module: canny, Model: edges, Weight: 0.9, Resize Mode: Crop and Resize, Threshold A: 80, '
        "Threshold B: 160, Guidance Start: 0, Guidance End: 0.8, Control Mode: ControlNet is more important"
    ) in info_of(answer)["infotexts"][0]
    assert answer["images"] != post(nets, "txt2img", **SMALL)["images"]


def test_webuiapis_unit_generates_and_its_detect(tmp_path, pipe, photo):
    with listening(with_a_controlnet(Web(tmp_path, pipe)).app) as port:
        client = webuiapi.WebUIApi(port=port)
        assert client.controlnet_model_list() == ["edges", "emoji-edges"]
        assert client.controlnet_version() == 3
        assert "canny" in client.controlnet_module_list()
        unit = webuiapi.ControlNetUnit(photo, module="canny", model="edges", weight=0.7)
        made = client.txt2img(controlnet_units=[unit], **SMALL)
        assert "ControlNet 0" in made.info["infotexts"][0]
        found = client.controlnet_detect([photo], module="canny", processor_res=64, threshold_a=50, threshold_b=100)
    assert np.array_equal(np.array(found.images[0]), preprocess(photo, "canny", 50, 100))


def test_a_unit_without_a_model_takes_a_reference(nets, photo):
    """As the extension's clients send it: all of a unit's fields, with the model "None"."""
    unit = PHOTOSHOP | {"module": "reference_only", "model": "None", "control_mode": 0, "threshold_a": 0.7}
    unit |= {"image": base64_of(photo), "pixel_perfect": False}
    answer = post(nets, "txt2img", **with_units(unit))
    assert (
        'ControlNet 0: "Module: reference_only, Model: None, Weight: 0.9, Resize Mode: Crop and Resize, '
        "Threshold A: 0.7, Guidance Start: 0, Guidance End: 0.8, Control Mode: Balanced"
    ) in info_of(answer)["infotexts"][0]
    assert "ignored" not in info_of(answer)
    assert answer["images"] != post(nets, "txt2img", **SMALL)["images"]
    named = info_of(post(nets, "txt2img", **with_units(unit | {"model": "edges"})))
    assert named["ignored"] == ["controlnet.model"]
    out_of_bounds = info_of(post(nets, "txt2img", **with_units(unit | {"threshold_a": 64})))
    assert "Threshold A: 0.5" in out_of_bounds["infotexts"][0], "the extension takes the default"


@pytest.fixture
def prompted(nets):
    """A server that has an IP-Adapter too, for as long as the test runs."""
    folder = nets.models.folders["ControlNet"]
    save_ip_adapter(folder / "ip-adapter_sd15.safetensors")
    nets.models.refresh()
    yield nets
    (folder / "ip-adapter_sd15.safetensors").unlink()
    shutil.rmtree(folder / "image_encoder")
    nets.models.refresh()


def test_a_unit_with_an_ip_adapter_needs_its_image_encoder(prompted, photo):
    """As the extension's clients send it; the path of an encoder is no name, and no request reads it."""
    assert "ip-adapter_sd15" in prompted.client.get("/controlnet/model_list").json()["model_list"]
    unit = {"module": "ip-adapter-auto", "model": "ip-adapter_sd15 [6a3f6166]", "weight": 0.7}
    unit["image"] = base64_of(photo)
    answer = prompted.client.post("/sdapi/v1/txt2img", json=with_units(unit))
    assert (answer.status_code, "needs the image encoder" in answer.json()["detail"]) == (422, True), answer.text
    save_image_encoder(prompted.models.folders["ControlNet"] / "image_encoder")
    prompted.models.refresh()
    answer = post(prompted, "txt2img", **with_units(unit | {"processor_res": 512}))
    assert "Module: ip-adapter_clip_sd15, Model: ip-adapter_sd15, Weight: 0.7" in info_of(answer)["infotexts"][0]
    assert "ignored" not in info_of(answer)
    assert answer["images"] != post(prompted, "txt2img", **SMALL)["images"]
    body = SMALL | {"control": "ip-adapter_sd15:encoder=/etc/passwd", "control_images": [base64_of(photo)]}
    refused = prompted.client.post("/jobs", json=body)
    assert refused.status_code in (404, 422)
    assert "not the name of an image encoder" in refused.json()["detail"]


def test_img2imgs_own_image_is_the_control_image(nets, photo):
    given = SMALL | {"init_images": [base64_of(photo)], "denoising_strength": 1.0}
    unit = {"model": "edges", "module": "none"}
    own = post(nets, "img2img", **given, alwayson_scripts={"controlnet": {"args": [unit]}})
    unit["image"] = base64_of(photo)
    same = post(nets, "img2img", **given, alwayson_scripts={"controlnet": {"args": [unit]}})
    assert own["images"] == same["images"]


def test_a_units_image_may_be_of_any_kind(nets, photo):
    gray = photo.convert("L")
    deep = Image.fromarray(np.array(gray).astype(np.uint16) * 257)
    unit = {"model": "edges", "module": "none"}
    made = [
        post(nets, "txt2img", **with_units(unit | {"image": base64_of(one)}))["images"]
        for one in (gray, gray, gray.convert("RGB"), gray.convert("P"), gray.convert("RGBA"), deep)
    ]
    assert all(one == made[0] for one in made)
    for broken in ("data:image/png;base64,", "AAAA", "no base64!"):
        answer = nets.client.post("/sdapi/v1/txt2img", json=with_units(unit | {"image": broken}))
        assert answer.status_code == 422, answer.text
        assert answer.json()["detail"].endswith(".")


def test_a_job_with_a_unit_is_cancelled_and_drawn_again(nets, photo):
    body = SMALL | {"control": "edges:0.5", "control_images": [base64_of(photo)]}
    job = nets.client.post("/jobs", json=body | {"steps": 900, "num_images": 60}).json()
    assert nets.client.delete(f"/jobs/{job['id']}").status_code == 200
    assert nets.ended(job)["state"] == "cancelled"
    assert nets.ended(nets.client.post("/jobs", json=body).json())["state"] == "done"


def test_a_units_mask_is_where_to_regenerate(nets, photo):
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 32, 64))
    unit = {"model": "edges", "module": "inpaint_only", "image": {"image": base64_of(photo), "mask": base64_of(mask)}}
    answer = post(nets, "txt2img", **with_units(unit))
    unit["image"] = {"image": base64_of(photo), "mask": base64_of(mask.rotate(180))}
    assert answer["images"] != post(nets, "txt2img", **with_units(unit))["images"]


def test_what_is_left_out_is_listed(nets, photo):
    unit = {"model": "edges", "module": "canny", "image": base64_of(photo), "processor_res": 256, "new_field": 3}
    answer = post(nets, "txt2img", **with_units(unit))
    assert info_of(answer)["ignored"] == ["controlnet.new_field", "controlnet.processor_res"]


@pytest.mark.parametrize(
    ("unit", "said"),
    [
        ({"model": "depth"}, "there is no ControlNet named depth"),
        ({"model": "../edges"}, "that is not the name of a ControlNet"),
        ({"model": "edges", "module": "openpose"}, "unknown preprocessor 'openpose'"),
        ({"model": "edges", "control_mode": 7}, "unknown control_mode '7'"),
        ({"model": "edges", "weight": "much"}, "weight of a ControlNet unit is 'much'"),
        ({"model": "edges", "effective_region_mask": "x"}, "effective_region_mask of a ControlNet unit is not"),
        ({"model": "edges", "mask": 3}, "the mask of a ControlNet unit is no base64"),
        ({"model": "edges:0.5"}, "the ControlNet 'edges:0.5' is no name"),
        ({}, "no model"),
    ],
)
def test_a_unit_that_cannot_be_used_is_one_sentence(nets, photo, unit, said):
    answer = nets.client.post("/sdapi/v1/txt2img", json=with_units({"image": base64_of(photo)} | unit))
    assert answer.status_code in (404, 422), answer.text
    assert said in answer.json()["detail"]


def test_units_of_older_clients_generate_the_same(nets, photo):
    """Fields that are null, numbers as texts, and the switches that once stood before the units."""
    unit = {"model": "edges", "module": "canny", "image": base64_of(photo), "threshold_a": 5, "threshold_b": 9}
    unit |= {"weight": 0.5, "guidance_end": 0.8}
    expected = post(nets, "txt2img", **with_units(unit))["images"]
    assert expected != post(nets, "txt2img", **with_units(unit | {"weight": 1}))["images"]
    nulls = dict.fromkeys(("mask", "resize_mode", "control_mode", "guidance_start", "processor_res", "hr_option"))
    texts = {"weight": "0.5", "guidance_end": "0.8", "threshold_a": "5"}
    for units in ([unit | nulls], [unit | texts], [True, False, unit], [True, unit | {"hr_option": "High res only"}]):
        answer = post(nets, "txt2img", **with_units(*units))
        assert answer["images"] == expected
        assert "ignored" not in info_of(answer)


def test_a_unit_in_one_pass_alone_is_refused_where_there_are_two(nets, photo):
    body = with_units({"model": "edges", "image": base64_of(photo), "hr_option": "High res only"})
    answer = nets.client.post("/sdapi/v1/txt2img", json=body | {"enable_hr": True, "hr_scale": 1.5})
    assert (answer.status_code, "hr_option" in answer.json()["detail"]) == (422, True)


@pytest.mark.parametrize("unit", ["edges", 5, [{"model": "edges"}]])
def test_what_is_no_unit_is_one_sentence(nets, photo, unit):
    body = with_units({"model": "edges", "image": base64_of(photo)}, unit)
    answer = nets.client.post("/sdapi/v1/txt2img", json=body)
    assert (answer.status_code, "send its fields as an object" in answer.json()["detail"]) == (422, True)


@pytest.mark.parametrize("module", ["none", "reference_only"])
def test_a_mask_makes_no_hole_for_a_preprocessor_that_reads_none(nets, photo, module):
    unit = {"model": "edges" if module == "none" else "None", "module": module, "image": base64_of(photo)}
    plain = post(nets, "txt2img", **with_units(unit))
    masked = post(nets, "txt2img", **with_units(unit | {"mask": base64_of(Image.new("L", (64, 64), 255))}))
    assert masked["images"] == plain["images"]
    assert (info_of(masked)["ignored"], "ignored" in info_of(plain)) == (["controlnet.mask"], False)


def test_a_mask_alone_is_for_the_image_of_img2img(nets, photo):
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 32, 64))
    given = SMALL | {"init_images": [base64_of(photo)], "denoising_strength": 1.0}
    unit = {"model": "edges", "module": "inpaint_only", "mask": base64_of(mask)}
    alone = post(nets, "img2img", **given, alwayson_scripts={"controlnet": {"args": [unit]}})
    unit["image"] = base64_of(photo)
    whole = post(nets, "img2img", **given, alwayson_scripts={"controlnet": {"args": [unit]}})
    assert whole["images"] == alone["images"]


def test_with_only_masked_a_units_image_is_cut_as_the_image_is(nets, photo):
    mask = Image.new("L", (64, 64))
    mask.paste(255, (4, 4, 12, 12))
    given = SMALL | {"init_images": [base64_of(photo)], "mask": base64_of(mask), "inpaint_full_res_padding": 4}
    unit = {"model": "edges", "module": "none", "inpaint_crop_input_image": False}
    own = post(nets, "img2img", **given, alwayson_scripts={"controlnet": {"args": [{"model": "edges"}]}})
    unit["image"] = base64_of(photo)
    same = post(nets, "img2img", **given, alwayson_scripts={"controlnet": {"args": [unit]}})
    assert same["images"] == own["images"]
    assert (info_of(same)["ignored"], "ignored" in info_of(own)) == (["controlnet.inpaint_crop_input_image"], False)


def test_a_unit_without_an_image_is_refused_in_txt2img(nets):
    answer = nets.client.post("/sdapi/v1/txt2img", json=with_units({"model": "edges"}))
    assert (answer.status_code, "has no image" in answer.json()["detail"]) == (422, True)


def test_the_lists_describe_the_preprocessors(nets):
    found = nets.client.get("/controlnet/module_list").json()
    assert found["module_detail"]["canny"]["sliders"][0] == {
        "name": "Low threshold",
        "value": 100,
        "min": 1,
        "max": 255,
    }
    assert not found["module_detail"]["canny"]["model_free"]
    assert found["module_detail"]["reference_only"] == {
        "model_free": True,
        "sliders": [{"name": "Style fidelity", "value": 0.5, "min": 0, "max": 1}],
    }
    types = nets.client.get("/controlnet/control_types").json()["control_types"]
    assert types["All"]["model_list"] == ["None", "edges", "emoji-edges"]
    assert types["Canny"]["module_list"] == ["none", "canny", "invert"]
    assert nets.client.get("/controlnet/settings").json() == {"control_net_unit_count": 10}
    empty = nets.client.post("/controlnet/detect", json={"controlnet_module": "canny"})
    assert (empty.status_code, "is empty" in empty.json()["detail"]) == (422, True)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_detect_says_that_it_reads_the_first_frame_of_an_animation(nets, photo, kind):
    file = io.BytesIO()
    photo.save(file, kind, save_all=True, append_images=[photo.rotate(90)])
    animated, plain = base64.b64encode(file.getvalue()).decode(), base64_of(photo)

    def detected(*images):
        body = {"controlnet_module": "canny", "controlnet_input_images": list(images)}
        return nets.client.post("/controlnet/detect", json=body).json()

    answer = detected(animated, plain, animated)
    assert answer["notes"] == [
        "The file of the control image has several frames or pages, of which only the first is used."
    ]
    assert (len(answer["images"]), answer["info"]) == (3, "Success")
    assert "notes" not in detected(plain)


def test_detect_takes_a_null_for_a_field_that_is_left_out(nets, photo):
    body = {"controlnet_input_images": [base64_of(photo)]}
    nulls = dict.fromkeys(("controlnet_module", "controlnet_processor_res", "controlnet_threshold_a"))
    plain, answer = (nets.client.post("/controlnet/detect", json=one) for one in (body, body | nulls))
    assert (answer.status_code, answer.json()) == (200, plain.json())


def test_our_own_api_takes_units_and_images(nets, photo):
    body = SMALL | {"control": "edges:0.5", "control_images": [base64_of(photo)]}
    job = nets.ended(nets.client.post("/jobs", json=body).json())
    assert job["state"] == "done", job["error"]
    assert "Weight: 0.5" in job["result"]["infotexts"][0]
    assert opened(base64_of(Image.open(nets.jobs.get(job["id"]).file(job["result"]["images"][0])))).size == (64, 64)
    body["control"] = "reference_only:a=1"
    job = nets.ended(nets.client.post("/jobs", json=body).json())
    assert job["state"] == "done", job["error"]
    assert "Module: reference_only" in job["result"]["infotexts"][0]
    refused = nets.client.post("/jobs", json=SMALL | {"control": "edges"})
    assert (refused.status_code, "needs an image" in refused.json()["detail"]) == (422, True)
