"""Jobs over HTTP, run by a small model of random weights."""

import http.client
import io
import json
import os
import re
from pathlib import Path

import pytest
from fake_jobs import job_events
from PIL import Image
from web_client import Web, base64_of, listening

from sd.pipeline.infotext import read_infotext
from sd.web.jobs.api import GenerateBody
from sd.web.jobs.job import Job

SMALL = {"prompt": "a red apple", "steps": 2, "seed": 7}


def generated(web, **body) -> dict:
    answer = web.client.post("/jobs", json=SMALL | body)
    assert answer.status_code == 202, answer.text
    job = web.ended(answer.json())
    assert job["state"] == "done", job["error"]
    return job


def image_of(web, job, index=0) -> Image.Image:
    answer = web.client.get(f"/jobs/{job['id']}/files/{job['result']['images'][index]}")
    assert answer.headers["content-type"] == "image/png"
    return Image.open(io.BytesIO(answer.content))


def test_the_same_pixels_as_the_pipeline_alone(web, pipe):
    job = generated(web, num_images=2, sampler="DPM++ 2M Karras")
    alone = pipe(SMALL["prompt"], steps=2, seed=7, num_images=2, sampler="dpmpp_2m", schedule="karras")
    assert job["result"]["seeds"] == [7, 8]
    for i in range(2):
        assert image_of(web, job, i).tobytes() == alone.images[i].tobytes()


def test_an_image_says_its_settings(web):
    job = generated(web, negative_prompt="blurry")
    data = web.client.get(f"/jobs/{job['id']}/files/00000.png").content
    assert read_infotext(io.BytesIO(data)) == job["result"]["infotexts"][0]
    assert job["result"]["infotexts"][0].startswith("a red apple\nNegative prompt: blurry\nSteps: 2, Sampler: DDPM")
    assert job["result"]["settings"]["width"] == 64, "the model's own size"


@pytest.mark.parametrize("how", ["image", "mask"])
def test_from_an_image_as_the_pipeline_does(web, pipe, photo, how):
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 32, 64))
    given = {"image": base64_of(photo)} | ({"mask": base64_of(mask)} if how == "mask" else {})
    job = generated(web, strength=1.0, **given)
    alone = pipe(SMALL["prompt"], steps=2, seed=7, image=photo, mask=mask if how == "mask" else None, strength=1.0)
    assert image_of(web, job).tobytes() == alone.images[0].tobytes()


def test_a_seed_is_chosen_and_kept(web):
    job = generated(web, seed=None)
    again = generated(web, seed=job["result"]["seeds"][0])
    assert image_of(web, job).tobytes() == image_of(web, again).tobytes()


def test_every_setting_of_the_pipeline_is_to_be_had():
    beside = {"checkpoint", "vae", "prediction", "image", "mask", "control_images", "region_masks", "axes"}
    fields = set(GenerateBody.model_fields) - beside
    assert GenerateBody(prompt="x").to_request().settings.__dataclass_fields__.keys() == fields


def test_events_end_with_the_job(web):
    job = web.client.post("/jobs", json=SMALL).json()
    with web.client.stream("GET", f"/jobs/{job['id']}/events") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = [json.loads(line.removeprefix("data: ")) for line in answer.iter_lines() if line]
    assert events[-1]["state"] == "done"
    assert events[-1]["progress"] == 1


def test_cancelling(web):
    job = web.client.post("/jobs", json=SMALL | {"steps": 900, "num_images": 60}).json()
    for event in job_events(web.jobs, job["id"]):
        if event["event"]:
            break
    reached = web.client.delete(f"/jobs/{job['id']}").json()["event"]["step"]
    ended = web.ended(job)
    assert ended["state"] == "cancelled"
    # One more step may have been under way when the request came, and one when it was answered.
    assert ended["event"]["step"] <= reached + 2
    assert web.client.delete(f"/jobs/{job['id']}").json()["state"] == "cancelled"


def test_finished_images_of_a_cancelled_job_stay(web):
    job = web.client.post("/jobs", json=SMALL | {"steps": 20, "num_images": 60}).json()
    for event in job_events(web.jobs, job["id"]):
        if event["event"].get("step", 0) > 20:
            break
    web.client.delete(f"/jobs/{job['id']}")
    ended = web.ended(job)
    assert ended["state"] == "cancelled"
    assert ended["result"]["seeds"][0] == 7
    assert image_of(web, ended).size == (64, 64)


def test_listing(web):
    job = generated(web)
    newest = web.client.get("/jobs").json()
    assert newest[0]["id"] == job["id"]
    assert newest[0]["ahead"] == 0


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        ({}, 422, "prompt: Field required."),
        ({"prompt": "x", "stepz": 3}, 422, "unknown field 'stepz': /docs lists the fields of each address."),
        ({"prompt": "x", "steps": 0}, 422, "steps must be a whole number from 1 to 1000, not 0."),
        ({"prompt": "x", "width": 100}, 422, "multiple of 8"),
        ({"prompt": "x", "sampler": "magic"}, 422, "unknown sampler 'magic'"),
        ({"prompt": "x", "checkpoint": "../x"}, 422, "not the name of a checkpoint"),
        ({"prompt": "x", "checkpoint": "none"}, 422, "no checkpoint named none"),
        ({"prompt": "<lora:../../x:1>"}, 422, "not the name of a LoRA"),
        ({"prompt": "<lora:none:1>"}, 422, "no LoRA named none"),
        ({"prompt": "a\0b"}, 422, "NUL"),
        ({"prompt": "x", "mask": "AAAA"}, 422, "image"),
        ({"prompt": "x", "image": "AAAA"}, 422, "cannot be opened as an image"),
        ({"prompt": "x", "image": "A" * (17 << 20) * 2}, 413, "over 16 MB"),
        ({"prompt": "\ud800"}, 422, "prompt"),
        ({"prompt": "x", "\ud800": 1}, 422, "unicode"),
    ],
)
def test_a_mistake_is_one_sentence(web, body, status, sentence):
    answer = web.client.post("/jobs", content=json.dumps(body), headers={"Content-Type": "application/json"})
    assert answer.status_code == status
    assert sentence in answer.json()["detail"]
    assert "\n" not in answer.json()["detail"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'{"prompt": NaN}', b"[" * 100_000, b"\xff\xfe"])
def test_what_is_no_json(web, body):
    answer = web.client.post("/jobs", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 422)
    assert isinstance(answer.json()["detail"], str)


def test_a_body_that_is_not_utf_8_is_said_to_be_none(web):
    body = '{"prompt": "\u00fc"}'.encode("latin-1")
    answer = web.client.post("/jobs", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["detail"].startswith("the request's body is no JSON in UTF-8: ")


def test_a_web_form_of_another_site_starts_nothing(web):
    answer = web.client.post("/jobs", content=json.dumps(SMALL), headers={"Content-Type": "text/plain"})
    assert answer.status_code == 422


@pytest.mark.parametrize(
    "path",
    [
        "job.json",
        "image",
        "..%2f..%2fjobs",
        "%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "%2fetc%2fpasswd",
        "00000.png%00",
        ".",
        "x",
    ],
)
def test_no_other_file_is_reachable(web, path):
    job = generated(web)
    assert web.client.get(f"/jobs/{job['id']}/files/{path}").status_code in (404, 405)


def test_a_result_replaced_by_a_link_is_not_followed(web, tmp_path):
    job = generated(web)
    (tmp_path / "secret").write_text("secret")
    file = web.jobs.folder / job["id"] / "00000.png"
    file.unlink()
    os.symlink(tmp_path / "secret", file)
    assert web.client.get(f"/jobs/{job['id']}/files/00000.png").status_code == 404


@pytest.mark.parametrize("id", ["x", "..", "%2e%2e", "20260101-000000-000000-0000", "%00"])
def test_no_such_job(web, id):
    for answer in (web.client.get(f"/jobs/{id}/events"), web.client.delete(f"/jobs/{id}")):
        assert answer.status_code in (404, 405)


def test_busy(tmp_path, pipe):
    web = Web(tmp_path, pipe, limit=1)
    slow = SMALL | {"steps": 900, "num_images": 60}
    first = web.client.post("/jobs", json=slow).json()
    for event in job_events(web.jobs, first["id"]):
        if event["state"] == "running":
            break
    second = web.client.post("/jobs", json=slow).json()
    answer = web.client.post("/jobs", json=slow)
    assert answer.status_code == 503
    assert "busy" in answer.json()["detail"]
    assert "retry-after" in answer.headers
    for job in (second, first):
        web.client.delete(f"/jobs/{job['id']}")
    web.jobs.close()


def test_a_mistake_of_ours_is_a_500_and_the_server_goes_on(web, monkeypatch):
    monkeypatch.setattr(Job, "public", lambda _: 1 / 0)
    answer = web.client.get("/jobs")
    assert (answer.status_code, answer.json()["detail"]) == (500, "internal error: ZeroDivisionError.")
    monkeypatch.undo()
    assert web.client.get("/jobs").status_code == 200


def test_the_api_is_described(web):
    paths = web.client.get("/openapi.json").json()["paths"]
    assert {"/jobs", "/jobs/{id}", "/jobs/{id}/events", "/sdapi/v1/txt2img"} <= paths.keys()


def test_its_description_needs_no_other_host(web):
    page = web.client.get("/docs").text
    assert "//" not in page
    files = re.findall(r'(?:src|href)="(.+?)"', page)
    assert {Path(file).name for file in files} == {"swagger-ui-bundle.js", "swagger-ui.css", "favicon.png"}
    for file in files:
        assert web.client.get(file).status_code == 200, file
    assert web.client.get("/redoc").status_code == 404, "it fetches an image from elsewhere"


def test_a_client_that_goes_away_loses_no_job(tmp_path, pipe):
    web = Web(tmp_path, pipe)
    with listening(web.app) as port:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.request("POST", "/jobs", json.dumps(SMALL), {"Content-Type": "application/json"})
        job = json.loads(connection.getresponse().read())
        watching = http.client.HTTPConnection("127.0.0.1", port)
        watching.request("GET", f"/jobs/{job['id']}/events")
        watching.close()
        list(job_events(web.jobs, job["id"]))
        connection.request("GET", f"/jobs/{job['id']}")
        assert json.loads(connection.getresponse().read())["state"] == "done"
        connection.close()
