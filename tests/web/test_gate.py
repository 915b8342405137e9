"""The gate before Gradio: what the page uses is there, everything else is shut, and no event is an internal error."""

import json
import time

import pytest
from conftest import fresh_copy
from fake_jobs import count
from fastapi.testclient import TestClient
from PIL import Image
from web_client import HERE, Web, base64_of

from sd.web.jobs.queue import Jobs
from sd.web.server import create_app
from sd.web.ui.follow import INVALID, sentence

API = "/gradio_api"
SHUT = [
    ("GET", f"{API}/file=https://127.0.0.1:1/x"),
    ("GET", f"{API}/file=/etc/passwd"),
    ("GET", f"{API}/proxy=https://huggingface.co/x"),
    ("POST", f"{API}/upload"),
    ("GET", f"{API}/upload_progress?upload_id=x"),
    ("POST", f"{API}/run/predict"),
    ("POST", f"{API}/run/x"),
    ("POST", f"{API}/api/predict"),
    ("POST", f"{API}/call/x"),
    ("GET", f"{API}/call/x/y"),
    ("POST", f"{API}/component_server"),
    ("POST", f"{API}/stream/x"),
    ("GET", f"{API}/dev/reload"),
    ("GET", f"{API}/deep_link?session_hash=x"),
    ("POST", f"{API}/vibe-edit/"),
    ("POST", f"{API}/process_recording"),
    ("GET", f"{API}/heartbeat/abcdef"),
    ("GET", "/monitoring"),
    ("POST", "/login"),
    ("GET", "/logout"),
    ("GET", "/static/" + "a" * 5000),
    ("GET", "/custom_component/x/y/z/w"),
]


@pytest.fixture(scope="module")
def site(tmp_path_factory, made_once):
    folder = tmp_path_factory.mktemp("gate")
    web = Web(folder, fresh_copy(made_once[4]))
    jobs = Jobs(folder / "page", count)
    with TestClient(create_app(jobs, web.models), base_url=HERE, raise_server_exceptions=False) as client:
        client.jobs = jobs
        yield client
    web.jobs.close()


@pytest.mark.parametrize(("method", "path"), SHUT)
def test_what_the_page_does_not_use_is_shut(site, method, path):
    answer = site.request(method, path, json={} if method == "POST" else None)
    assert answer.status_code == 404, answer.text
    assert answer.json()["detail"].startswith("unknown address: ")


@pytest.mark.parametrize("path", ["/", "/config", "/theme.css", f"{API}/info", f"{API}/app_id", "/robots.txt"])
def test_what_it_uses_is_there(site, path):
    assert site.get(path).status_code == 200


def test_an_open_page_keeps_no_connection(site):
    """A browser has six to a server: with a heartbeat for each page, six open pages were the last that it answered."""
    assert site.get("/config").json()["connect_heartbeat"] is False


def join(site, values, function, **more):
    body = {"data": values, "fn_index": function, "session_hash": "abcdef", "event_data": None, "trigger_id": 1} | more
    headers = {"Content-Type": "application/json"}
    return site.post(f"{API}/queue/join", content=json.dumps(body), headers=headers).status_code


@pytest.fixture(scope="module")
def functions(site):
    return [one for one in site.get("/config").json()["dependencies"] if one["backend_fn"]]


@pytest.mark.parametrize(
    "event",
    [
        {"fn_index": 99_999},
        {"fn_index": -1},
        {"fn_index": "0"},
        {"fn_index": None},
        {"data": "x"},
        {"data": None},
        {"data": [1] * 500},
        {"session_hash": ""},
        {"session_hash": "x" * 5000},
        {"session_hash": 5},
    ],
)
def test_events_that_no_page_sends_are_refused(site, functions, event):
    first = functions[0]
    assert join(site, [None] * len(first["inputs"]), first["id"], **event) == 422


@pytest.mark.parametrize("data", ["a red apple", [1], 5, {"index": 1}, None, {"image": 5}, {"name": ["x"]}])
def test_what_an_event_carries_is_any_value(site, functions, data, capfd):
    """Gradio sends a textbox's text with its input event, for example. What a script of ours sends is checked."""
    reading = [functions[0], *functions[1:3]]  # the gallery's, which read what their event carries
    for function in reading:
        session = f"carried{function['id']}"
        values = [f"data:image/png;base64,{base64_of(Image.new('RGB', (8, 8)))}"] * len(function["inputs"])
        assert join(site, values, function["id"], event_data=data, session_hash=session) == 200
        feed = site.get(f"{API}/queue/data?session_hash={session}").text
        ended = next(json.loads(line[6:]) for line in feed.splitlines() if "process_completed" in line)
        assert ended["output"]["error"] == sentence(INVALID)
    assert "page event failed" not in "".join(capfd.readouterr())


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"[" * 100_000, b"\xff", b"null"])
def test_bodies_that_are_no_events_are_refused(site, body):
    assert site.post(f"{API}/queue/join", content=body).status_code == 422


@pytest.mark.parametrize("session", ["", "?session_hash=", "?session_hash=a%00", "?session_hash=" + "a" * 100])
def test_a_feed_without_a_session_is_refused(site, session):
    assert site.get(f"{API}/queue/data{session}").status_code == 422


def test_odd_values_are_one_line_on_the_console_each(site, functions, capfd):
    sent = 0
    for function in functions:
        for value in (None, {}, "\ud800", [1], 1e300):
            sent += join(site, [value] * len(function["inputs"]), function["id"]) == 200
    assert sent == 5 * len(functions)
    time.sleep(2)  # the queue's workers; what comes later is only not looked at
    out = "".join(capfd.readouterr())
    assert "Traceback" not in out
    assert out.count("page event failed") > 10
    assert site.get("/jobs").status_code == 200


def test_half_an_emoji_on_the_page_never_reaches_the_list(site, functions):
    """It was stored as a job, and no list with it could be answered any more."""
    submit = max((one for one in functions if not one["outputs"]), key=lambda one: len(one["inputs"]))
    parts = {part["id"]: part["props"] for part in site.get("/config").json()["components"]}
    for prompt in ("half \ud83d", "whole \U0001f34e"):
        values = [prompt if parts[id].get("label") == "Prompt" else parts[id].get("value") for id in submit["inputs"]]
        assert join(site, ["abcdefgh1234", *values[1:]], submit["id"]) == 200
    end = time.monotonic() + 20
    while not (listed := site.get("/jobs").json()) and time.monotonic() < end:
        time.sleep(0.1)
    assert [job["request"]["settings"]["prompt"] for job in listed] == ["whole \U0001f34e"]
