"""What the webui's clients find in answers: the keys of typed clients, no path of this machine, unfinished images."""

import base64
import io
import json
import re
import threading

import numpy as np
import pytest
import torch
from fake_jobs import job_events
from PIL import Image
from reference_models import randomize
from safetensors.torch import save_file
from web_client import base64_of, opened, post

from sd.pipeline.infotext import parse_infotext
from sd.pipeline.sampler_names import ALL_SAMPLERS
from sd.pipeline.stable_diffusion import BUNDLED
from sd.upscalers.rrdbnet import RRDBNet
from sd.upscalers.upscale import upscale
from sd.web.a1111.lists import describe_checkpoints
from sd.web.a1111.options import Options
from sd.web.jobs.job import Interrupted
from sd.web.jobs.model_index import Models

SMALL = {"prompt": "a red apple", "steps": 2, "seed": 7, "width": 64, "height": 64}
STATE = {"skipped", "interrupted", "stopping_generation", "job", "job_count", "job_timestamp", "job_no"}


def refused(web, **body):
    answer = web.client.post("/sdapi/v1/txt2img", json=SMALL | body)
    assert answer.status_code == 422, answer.text
    return answer.json()["detail"]


@pytest.mark.parametrize(
    ("path", "body", "status", "kind"),
    [
        ("/sdapi/v1/txt2img", SMALL | {"sampler_name": "Wrong"}, 422, "UserError"),
        ("/sdapi/v1/txt2img", SMALL | {"steps": "many"}, 422, "RequestValidationError"),
        ("/sdapi/v1/interrogate", {}, 404, "Missing"),
        ("/no/such/address", {}, 404, "HTTPException"),
        ("/jobs", {"prompt": "x", "steps": 0}, 422, "SettingError"),
    ],
)
def test_an_error_has_the_webuis_four_keys_and_one_line_on_the_console(web, path, body, status, kind, capsys):
    answer = web.client.post(path, json=body)
    assert answer.status_code == status
    assert answer.json().keys() == {"error", "detail", "body", "errors"}
    assert answer.json()["error"] == kind
    assert answer.json()["detail"] == answer.json()["errors"]
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"testclient POST {path} refused ({status}): {answer.json()['detail']}"]


def test_a_refusal_by_the_guard_has_them_too(web, capsys):
    answer = web.client.get("/sdapi/v1/samplers", headers={"Host": "evil.example"})
    assert answer.json().keys() == {"error", "detail", "body", "errors"}
    assert capsys.readouterr().err.count("\n") == 1


def test_no_request_writes_two_lines_or_moves_the_cursor(web, capsys):
    web.client.get("/x%0aforged%1b[2J")
    refused(web, sampler_name="a\nforged line\x1b[2J")
    printed = capsys.readouterr().err
    assert printed.count("\n") == 2
    assert "\x1b" not in printed


def test_progress_has_the_webuis_keys_and_no_other(web):
    answer = web.client.get("/sdapi/v1/progress").json()
    assert answer.keys() == {"progress", "eta_relative", "state", "current_image", "textinfo"}
    assert answer["state"].keys() == STATE | {"sampling_step", "sampling_steps"}


def test_no_answer_holds_a_path_of_this_machine(web, tmp_path, photo):
    """Whatever is asked for or refused."""
    paths = web.client.get("/openapi.json").json()["paths"]
    answers = [web.client.get(path) for path, ways in paths.items() if "get" in ways and "{" not in path]
    answers += [web.client.post(path, json={}) for path, ways in paths.items() if "post" in ways and "{" not in path]
    bodies = [{"override_settings": {"sd_model_checkpoint": name}} for name in ("none", "../x", "/etc/passwd")]
    bodies += [{"prompt": "<lora:none:1>"}, {"sampler_name": "x"}, {}, {"width": 3}, {"styles": ["none"]}]
    answers += [web.client.post("/sdapi/v1/txt2img", json=SMALL | body) for body in bodies]
    answers += [web.client.get("/jobs"), web.client.get("/sdapi/v1/cmd-flags"), web.client.get("/sdapi/v1/nothing")]
    answers.append(web.client.get(f"/jobs/{web.client.get('/jobs').json()[0]['id']}"))
    root = str(web.jobs.folder.parent)
    for answer in answers:
        assert root not in answer.text, answer.url
        assert not re.search("/(home|root)/", answer.text), answer.url
        assert str(web.models.folders["checkpoint"]) not in answer.text, answer.url


@pytest.mark.parametrize(
    "path",
    """memory sd-vae sd-models samplers schedulers upscalers latent-upscale-modes loras embeddings prompt-styles scripts
    script-info cmd-flags hypernetworks face-restorers realesrgan-models extensions options progress""".split(),
)
def test_what_clients_ask_at_first_is_answered(web, path):
    assert web.client.get(f"/sdapi/v1/{path}").status_code == 200


@pytest.mark.parametrize(
    "path",
    "/internal/ping /internal/sysinfo /app_id /queue/status /login_check /user /token /docs /openapi.json".split(),
)
def test_what_clients_ask_to_see_whether_a_webui_answers(web, path):
    assert web.client.get(path).status_code == 200


@pytest.mark.parametrize("path", "unload-checkpoint reload-checkpoint refresh-vae refresh-checkpoints".split())
def test_what_clients_tell_it_to_do(web, path):
    assert web.client.post(f"/sdapi/v1/{path}").status_code == 200


def test_a_checkpoint_is_listed_by_names_alone_and_found_by_its_title(web):
    [found] = web.client.get("/sdapi/v1/sd-models").json()
    assert found.keys() == {"title", "model_name", "hash", "sha256", "filename", "config"}
    assert found["filename"] == "emoji.safetensors"
    for name in (found["title"], found["model_name"], "emoji.safetensors [0123456789]"):
        post(web, "txt2img", **SMALL, override_settings={"sd_model_checkpoint": name})


def test_the_labels_that_are_listed_are_those_that_a_refusal_names(web):
    sentence = refused(web, sampler_name="Wrong")
    assert all(one.label in sentence for one in ALL_SAMPLERS.values())
    assert "Karras" in refused(web, scheduler="Wrong")
    assert "choose from Latent, Lanczos" in refused(web, enable_hr=True, hr_upscaler="R-ESRGAN 4x+")
    for mode in web.client.get("/sdapi/v1/latent-upscale-modes").json():
        post(web, "txt2img", **SMALL, enable_hr=True, hr_scale=1.5, hr_upscaler=mode["name"])


@pytest.mark.parametrize(
    ("asked", "size"),
    [
        ({"hr_resize_x": 128, "hr_resize_y": 96}, (128, 96)),
        ({"hr_resize_x": 128}, (128, 96)),
        ({"hr_resize_y": 72}, (96, 72)),
        ({"hr_resize_x": 104, "hr_scale": 4}, (104, 72)),
    ],
)
def test_a_second_pass_to_a_size(web, asked, size):
    body = SMALL | {"width": 64, "height": 48, "enable_hr": True}
    assert opened(post(web, "txt2img", **body | asked)["images"][0]).size == size


def test_a_second_pass_of_another_shape_is_refused_with_one_that_fits(web):
    sentence = refused(web, enable_hr=True, hr_resize_x=128, hr_resize_y=96)
    assert "use 128 and 128, or let one of them be 0" in sentence
    assert "over 1" in refused(web, enable_hr=True, hr_scale=1)


def test_a_second_pass_of_its_own_number_of_steps(web):
    body = SMALL | {"enable_hr": True, "hr_scale": 1.5, "sampler_name": "Euler", "hr_sampler_name": "Use same sampler"}
    more = post(web, "txt2img", **body, hr_second_pass_steps=8)
    written = parse_infotext(json.loads(more["info"])["infotexts"][0])
    assert (written["Steps"], written["Hires steps"]) == ("2", "8")
    same = post(web, "txt2img", **body, hr_second_pass_steps=2)
    assert same["images"] != more["images"]
    alone = web.pipe(
        "a red apple", steps=2, seed=7, guidance_scale=7.0, sampler="euler", schedule="normal", width=64, height=64
    )
    large = web.pipe(
        *("a red apple",),
        **dict(steps=2, seed=7, guidance_scale=7.0, sampler="euler", schedule="normal", width=64, height=64),
        **dict(hires_scale=1.5, hires_strength=0.75, hires_steps=8),
    )
    assert opened(more["images"][0]).tobytes() == large.images[0].tobytes() != alone.images[0].tobytes()


def test_an_image_that_is_interrupted_comes_as_far_as_it_was(web):
    """Alone with its seed, so `images` would be empty."""
    answers = []
    body = SMALL | {"steps": 900, "force_task_id": "task(mine)"}
    asking = threading.Thread(target=lambda: answers.append(post(web, "txt2img", **body)))
    asking.start()
    while web.client.get("/sdapi/v1/progress").json()["state"]["sampling_step"] < 2:
        pass
    task = web.client.post("/internal/progress", json={"id_task": "task(mine)"}).json()
    assert (task["active"], task["queued"], task["completed"]) == (True, False, False)
    assert 0 < task["progress"] < 1
    web.client.post("/sdapi/v1/interrupt")
    asking.join(60)
    [image] = answers[0]["images"]
    assert opened(image).size == (64, 64)
    assert np.asarray(opened(image)).std() > 0
    info = json.loads(answers[0]["info"])
    assert info["all_seeds"] == [7]
    assert parse_infotext(info["infotexts"][0])["Interrupted at step"].endswith(" of 900")
    task = web.client.post("/internal/progress", json={"id_task": "task(mine)"}).json()
    assert (task["active"], task["completed"]) == (False, True)
    unknown = web.client.post("/internal/progress", json={"id_task": "task(other)"}).json()
    assert (unknown["active"], unknown["queued"], unknown["completed"]) == (False, False, False)


def test_a_job_cancelled_on_the_page_keeps_only_finished_images(web):
    job = web.client.post("/jobs", json=SMALL | {"steps": 900}).json()
    for event in job_events(web.jobs, job["id"]):
        if event["event"].get("step", 0) > 1:
            break
    web.client.delete(f"/jobs/{job['id']}")
    assert web.ended(job)["result"]["images"] == []
    assert issubclass(Interrupted, KeyboardInterrupt)


def extra(web, photo, **more):
    return post(web, "extra-single-image", image=base64_of(photo), **more)


def test_an_image_is_enlarged_without_a_model(web, photo):
    for name, how in (("Lanczos", Image.Resampling.LANCZOS), ("nearest", Image.Resampling.NEAREST)):
        answer = extra(web, photo, upscaler_1=name, upscaling_resize=2)
        assert opened(answer["image"]).tobytes() == photo.resize((128, 128), how).tobytes()
    nulls = dict.fromkeys(("upscaler_2", "upscaling_resize", "resize_mode", "gfpgan_visibility"))  # are left out
    assert opened(extra(web, photo, upscaler_1="Lanczos", **nulls)["image"]).size == (128, 128)
    assert opened(extra(web, photo, upscaler_1="None")["image"]).tobytes() == photo.tobytes()
    to_size = dict(resize_mode=1, upscaling_resize_w=100, upscaling_resize_h=50, upscaler_1="Lanczos")
    assert opened(extra(web, photo, **to_size)["image"]).size == (100, 50)
    assert opened(extra(web, photo, **to_size, upscaling_crop=False)["image"]).size == (100, 100)
    files = [{"data": base64_of(photo), "name": "a.png"}] * 2
    many = post(web, "extra-batch-images", imageList=files, upscaler_1="Lanczos")
    assert [opened(one).size for one in many["images"]] == [(128, 128)] * 2


@pytest.fixture
def models_of_upscalers(web):
    """Two ESRGAN models in the folder: the path and the network of each."""
    made = {}
    for name, doublings in (("sharp", 2), ("RealESRGAN_x2plus", 1)):
        network = randomize(RRDBNet(8, 1, 4, doublings=doublings), seed=5)
        path = web.models.folders["upscaler"] / f"{name}.pth"
        torch.save(network.state_dict(), path)
        made[name] = path
    web.models.refresh()
    yield made
    for path in made.values():
        path.unlink()
    web.models.refresh()


def test_an_image_is_enlarged_by_a_model_and_by_two(web, photo, models_of_upscalers):
    """Each image is what `upscale` makes of it in one piece, twice in a row, blended and cropped as in the webui."""
    sharp, soft = (upscale(photo, path, 128, 128) for path in models_of_upscalers.values())
    for _ in range(2):
        answer = extra(web, photo, upscaler_1="sharp", upscaling_resize=2)
        assert opened(answer["image"]).tobytes() == sharp.tobytes()
    assert answer["html_info"] == "<p>Postprocess upscale by: 2.0, Postprocess upscaler: sharp</p>"
    assert opened(answer["image"]).text["postprocessing"] == answer["html_info"][3:-4]
    both = dict(upscaler_1="sharp", upscaler_2="R-ESRGAN 2x+", extras_upscaler_2_visibility=0.25)
    blended = opened(extra(web, photo, **both, upscaling_resize=2)["image"])
    assert blended.tobytes() == Image.blend(sharp, soft, 0.25).tobytes() != sharp.tobytes()
    to_size = dict(resize_mode=1, upscaling_resize_w=128, upscaling_resize_h=64, upscaler_1="SHARP")
    assert opened(extra(web, photo, **to_size)["image"]).tobytes() == sharp.crop((0, 32, 128, 96)).tobytes()
    files = [{"data": base64_of(one), "name": "a.png"} for one in (photo, photo.rotate(90))]
    many = post(web, "extra-batch-images", imageList=files, upscaler_1="sharp", upscaling_resize=2)["images"]
    turned = upscale(photo.rotate(90), models_of_upscalers["sharp"], 128, 128)
    assert [opened(one).tobytes() for one in many] == [sharp.tobytes(), turned.tobytes()]
    assert [one["name"] for one in web.client.get("/sdapi/v1/upscalers").json()][3:] == ["RealESRGAN_x2plus", "sharp"]


@pytest.mark.parametrize("upscaler", ["Lanczos", "sharp"])
def test_an_animation_is_enlarged_with_a_note(web, photo, models_of_upscalers, upscaler):
    file = io.BytesIO()
    photo.save(file, "GIF", save_all=True, append_images=[photo.rotate(90)])
    both = [{"data": base64.b64encode(file.getvalue()).decode(), "name": "a.gif"}] * 2
    answer = post(web, "extra-batch-images", imageList=both, upscaler_1=upscaler)
    note = "<p>The file of the image has several frames or pages, of which only the first is used.</p>"
    assert answer["html_info"] == f"<p>Postprocess upscale by: 2.0, Postprocess upscaler: {upscaler}</p>{note}"
    assert len(answer["images"]) == 2


def test_a_job_of_enlarging_can_be_interrupted(web, photo, models_of_upscalers, monkeypatch):
    ran = []

    def run(network, image, device, on_tile):
        ran.append(image)
        if len(ran) == 2:
            web.client.post("/sdapi/v1/interrupt")
        on_tile()
        return image.resize((256, 256))

    monkeypatch.setattr("sd.upscalers.upscale.run_network", run)
    body = {"imageList": [{"data": base64_of(photo)}] * 3, "upscaler_1": "sharp"}
    answer = web.client.post("/sdapi/v1/extra-batch-images", json=body)
    assert (answer.status_code, "was cancelled" in answer.json()["detail"]) == (503, True)
    assert (len(ran), web.jobs.list(1)[0].result["images"]) == (2, ["00000.png"])


def test_a_broken_upscaler_is_a_sentence(web, photo):
    path = web.models.folders["upscaler"] / "odd.safetensors"
    save_file({"layers.0.residual_group.blocks.0.weight": torch.zeros(1)}, path)
    web.models.refresh()
    answer = web.client.post("/sdapi/v1/extra-single-image", json={"image": base64_of(photo), "upscaler_1": "odd"})
    path.unlink()
    web.models.refresh()
    assert (answer.status_code, "of another kind" in answer.json()["detail"]) == (422, True), answer.text


def test_settings_survive_being_enlarged(web):
    made = post(web, "txt2img", **SMALL)["images"][0]
    larger = post(web, "extra-single-image", image=made, upscaler_1="Lanczos")["image"]
    assert post(web, "png-info", image=larger)["parameters"]["Seed"] == "7"


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"upscaler_1": "R-ESRGAN 4x+"}, "choose from None, Lanczos, Nearest."),
        ({"upscaler_1": "Lanczos", "upscaler_2": "x", "extras_upscaler_2_visibility": 1}, "unknown upscaler 'x'"),
        ({"upscaler_1": "../weights/emoji"}, "unknown upscaler '../weights/emoji'"),
        ({"codeformer_visibility": 1}, "restoring faces"),
        ({"upscaler_1": "Lanczos", "upscaling_resize": 64, "resize_mode": 0}, "too large"),
    ],
)
def test_what_needs_a_model_or_too_much_is_refused(web, photo, more, sentence):
    large = photo.resize((512, 512))
    answer = web.client.post("/sdapi/v1/extra-single-image", json={"image": base64_of(large)} | more)
    assert answer.status_code in (413, 422)
    assert sentence in answer.json()["detail"]


def test_checkpoints_of_one_name_in_several_folders_are_told_apart(tmp_path):
    models = Models(tmp_path, tmp_path / "loras", tmp_path / "embeddings")
    for place in ("dreamy", "anime/dreamy", "photo/dreamy", "photo/real"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        save_file({"x": torch.zeros(1)}, tmp_path / f"{place}.safetensors")
    listed = {one["filename"]: one["model_name"] for one in describe_checkpoints(models)}
    assert listed == {
        "emoji.safetensors": "emoji",
        "dreamy.safetensors": "dreamy",
        "anime/dreamy.safetensors": "anime_dreamy",
        "photo/dreamy.safetensors": "photo_dreamy",
        "photo/real.safetensors": "photo_real",
    }
    options = Options(models)
    for title, model_name in listed.items():
        for name in (title, model_name, title.replace("/", "\\")):
            assert options.choose_checkpoint(name) == title
            path = models.folders["checkpoint"] / title if title != "emoji.safetensors" else BUNDLED
            assert models.checkpoint(title) == path
    assert options.choose_checkpoint("real") == "photo/real.safetensors"
