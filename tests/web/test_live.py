"""The page /live: its addresses, its sampler against ours, and its use in Chromium, with a tiny model.

Its weights are random. The networks in the browser are onnxruntime-web's, so that the last tests compare a whole image
with the pipeline's.
"""

import base64
import gzip
import hashlib
import io
import math
import os
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from browser_page import chromium
from fastapi import FastAPI
from fastapi.testclient import TestClient
from PIL import Image
from web_client import HERE, listening

from sd.checkpoints.checkpoint import save_checkpoint
from sd.pipeline.stable_diffusion import StableDiffusion
from sd.samplers import dpmpp_2m
from sd.schedule import SD1_SCHEDULE, sigma_list
from sd.web.live.model import LiveModel
from sd.web.live.routes import HERE as FOLDER
from sd.web.live.routes import RUNTIME, SCRIPTS, WASM, live_router
from sd.web.problems import add_error_handlers

pytest.importorskip("onnx", reason="onnx is not installed: make test installs it")
ENTER, ESCAPE = "\ue007", "\ue00c"  # as WebDriver writes them


def app_of(model: LiveModel) -> FastAPI:
    app = FastAPI()
    add_error_handlers(app)
    app.include_router(live_router(model))
    return app


@pytest.fixture(scope="module")
def live(tmp_path_factory, made_once):
    folder, pipe = tmp_path_factory.mktemp("live"), made_once[4]
    path = folder / "tiny.safetensors"
    save_checkpoint(path, pipe.clip, pipe.vae, pipe.unet, pipe.sizes)
    app = app_of(LiveModel(path, folder / "cache"))
    with listening(app) as port:
        yield SimpleNamespace(
            folder=folder, path=path, client=TestClient(app, base_url=HERE), url=f"{HERE}:{port}/live"
        )


@pytest.fixture(scope="module")
def browser(live):
    with chromium(live.url) as browser:
        browser.driver.set_script_timeout(browser.patience)
        yield browser


@pytest.fixture
def page(browser):
    browser.driver.get_log("browser")
    browser.driver.get(browser.url)
    return browser


def test_the_model_is_exported_once_and_anew_when_its_file_changes(live):
    first = live.client.get("/live/model.json").json()
    files = {path: path.stat().st_mtime_ns for path in (live.folder / "cache").glob("*/*")}
    assert live.client.get("/live/model.json").json() == first
    assert {path: path.stat().st_mtime_ns for path in (live.folder / "cache").glob("*/*")} == files
    for name, size in first["bytes"].items():
        answer = live.client.get(f"/live/model/{first['version']}/{name}.onnx")
        assert (answer.status_code, len(answer.content)) == (200, size)
        assert "immutable" in answer.headers["cache-control"]

    changed = live.path.stat().st_mtime_ns + 10**9
    os.utime(live.path, ns=(changed, changed))
    assert live.client.get(f"/live/model/{first['version']}/unet.onnx").status_code == 404
    assert live.client.get("/live/model.json").json()["version"] != first["version"]


def test_the_server_has_the_page(web):
    assert "Generate in this browser" in web.client.get("/live").text
    assert web.client.get("/live/sampler.js").status_code == 200


def test_old_exports_leave_the_cache(tmp_path):
    cache = tmp_path / "cache"
    for i in range(6):
        (cache / str(i)).mkdir(parents=True)
        os.utime(cache / str(i), (i, i))
    LiveModel(tmp_path / "model", cache).remove_others(cache / "0")
    assert {one.name for one in cache.iterdir()} == {"0", "3", "4", "5"}


def test_tokens_are_our_tokenizer_s_and_what_is_cut_off_is_counted(live, made_once):
    answer = live.client.post("/live/tokens", json={"prompt": "a red apple", "negative_prompt": "dark " * 80}).json()
    assert answer["ids"] == made_once[4].tokenizer(["dark " * 80, "a red apple"]).tolist()
    assert answer["cut"] == [5, 0]
    assert live.client.post("/live/tokens", json={"prompt": "a" * 10_001}).status_code == 422


def test_what_is_not_there_is_said_in_one_sentence(live, tmp_path):
    missing = TestClient(app_of(LiveModel(tmp_path / "gone.safetensors", tmp_path)), base_url=HERE)
    answer = missing.get("/live/model.json")
    assert answer.status_code == 422
    assert "gone.safetensors is missing: the page /live has no model to run." in answer.json()["detail"]
    for address in ("/live/other.js", "/live/LICENSE", "/live/model/0/unet.onnx", "/live/..%2Froutes.py"):
        assert live.client.get(address).status_code == 404, address


def test_a_missing_package_is_said(live, tmp_path, monkeypatch):
    monkeypatch.setattr("sd.pipeline.onnx_export.importlib.util.find_spec", lambda name: None)
    client = TestClient(app_of(LiveModel(live.path, tmp_path)), base_url=HERE)
    assert "pip install -r requirements-live.txt" in client.get("/live/model.json").json()["detail"]


def test_the_runtime_is_the_one_that_its_readme_names_and_no_file_names_another_host(live):
    packed = (FOLDER / "onnxruntime" / f"{WASM}.gz").read_bytes()
    readme = (FOLDER / "onnxruntime" / "README.md").read_text()
    assert hashlib.sha256(gzip.decompress(packed)).hexdigest() in readme
    answer = live.client.get(f"/live/{WASM}")
    assert (answer.headers["content-type"], answer.headers["content-encoding"]) == ("application/wasm", "gzip")
    assert "MIT License" in (FOLDER / "onnxruntime" / "LICENSE").read_text()
    texts = [live.client.get("/live").text, *(live.client.get(f"/live/{name}").text for name in SCRIPTS)]
    assert not [text for text in texts if re.search(r"\w+://", text)]
    own = "https://web.dev/cross-origin-isolation-guide/"  # in a warning of the runtime's
    scripts = [live.client.get(f"/live/{name}").text for name in RUNTIME if name != WASM]
    assert {found for text in scripts for found in re.findall(r"https?://[^\s\"'`.]+\.[^\s\"'`]+", text)} <= {own}


def evaluate(browser, code: str, *values: object) -> object:
    """What a function body with the page's modules `sampler` and `noise` returns; `given` holds the values."""
    script = f"""
      const done = arguments[arguments.length - 1];
      const given = [...arguments].slice(0, -1);
      Promise.all(["sampler", "noise"].map((name) => import(`/live/${{name}}.js`)))
        .then(async ([sampler, noise]) => done(await (async () => {{ {code} }})()), (error) => done(String(error)));
    """
    return browser.driver.execute_async_script(script, *values)


def test_the_levels_are_those_of_the_schedule_ldm(page):
    table = SD1_SCHEDULE.sigmas.tolist()
    for steps in (1, 7, 20, 1000):
        found = evaluate(page, "return sampler.sigmaList(given[0], given[1]);", steps, table)
        assert found == sigma_list(steps)  # the very entries of the table
    sigmas = [0.001, table[0], 0.3, 1.0, table[500], 14.0, 99.0]
    found = evaluate(page, "return given[0].map((one) => sampler.timeOf(one, given[1]));", sigmas, table)
    assert found == pytest.approx([SD1_SCHEDULE.t_of(sigma) for sigma in sigmas], abs=1e-9)  # float64 in both


@pytest.mark.parametrize(("count", "seed"), [(16, 0), (1024, 1), (1023, 2**32 - 1)])
def test_noise_is_torch_s(page, count, seed):
    found = evaluate(page, "return [...noise.randn(given[0], given[1])];", count, seed)
    expected = torch.randn(count, generator=torch.Generator().manual_seed(seed))
    # torch computes log, sin and cos in fp32, with errors of some 1e-7 times the largest number, about 4.
    assert np.abs(np.array(found) - expected.numpy()).max() < 3e-6


def test_the_sampler_is_dpmpp_2m(page):
    start, sigmas = torch.randn(1, 1, 1, 64, generator=torch.Generator().manual_seed(3)), sigma_list(8)

    def denoise(x, sigma):
        return torch.tanh(x / (1 + sigma)) + 0.1 * sigma

    run = list(dpmpp_2m(denoise, start * math.sqrt(1 + sigmas[0] ** 2), sigmas, lambda: None))
    code = """
      const denoise = async (x, sigma) => x.map((one) => Math.tanh(one / (1 + sigma)) + 0.1 * sigma);
      const run = [];
      const start = sampler.startFrom(Float32Array.from(given[0]), given[1]);
      for await (const { x, x0 } of sampler.dpmpp2m(denoise, start, given[1])) run.push([[...x], [...x0]]);
      return run;
    """
    found = np.array(evaluate(page, code, start.flatten().tolist(), sigmas))
    expected = np.stack([np.stack([x.flatten(), x0.flatten()]) for x, x0 in run])
    # fp32 values up to 50 in both, rounded after each step; the order of two operations is another.
    assert np.abs(found - expected).max() < 2e-5


def test_guidance_weighs_the_negative_prompt_s_estimate_first(page):
    code = """
      const unet = async (inputs, t) => inputs.map((one, i) => (i < 2 ? 1 : 3) + one + t);
      return [...await sampler.guided(unet, 7.5, given[0])(Float32Array.of(1, -2), given[0][600])];
    """
    table = SD1_SCHEDULE.sigmas.tolist()
    sigma, x = table[600], np.array([1.0, -2.0])
    uncond, cond = (x - sigma * (eps + x / math.sqrt(1 + sigma**2) + 600) for eps in (1, 3))
    found = evaluate(page, code, table)
    assert found == pytest.approx(uncond + 7.5 * (cond - uncond), rel=1e-6)  # fp32


def status(page) -> str:
    return page.driver.find_element("id", "status").text


def finished(page) -> str:
    return page.until(lambda: re.match(r"Done|Stopped|Nothing", status(page)) and status(page), "end of the run")


def fill(page, **values: object) -> None:
    for name, value in values.items():
        field = page.driver.find_element("name", name)
        field.clear()
        field.send_keys(str(value))


def shown(page) -> np.ndarray:
    url = page.driver.find_element("id", "save").get_attribute("href")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB")).astype(int)


def show_at(page, width: int, dark: bool) -> None:
    size = dict(width=width, height=900, deviceScaleFactor=1, mobile=width < 500)
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def test_the_image_is_the_pipeline_s_for_the_same_seed(page, live):
    pipe = StableDiffusion.from_pretrained(live.path, device="cpu")
    for width, dark, prompt, seed in ((1200, False, "a red apple", 4), (390, True, "a dog", 2**32 - 1)):
        show_at(page, width, dark)
        fill(page, prompt=prompt, negative="blue", steps=3, scale=3, seed=seed)
        page.driver.find_element("name", "seed").send_keys(ENTER)
        page.until(lambda: not status(page).startswith("Done"), "start")
        assert finished(page).startswith("Done in ")
        expected = pipe(prompt, negative_prompt="blue", steps=3, guidance_scale=3, seed=seed, sampler="dpmpp_2m")
        difference = np.abs(shown(page) - np.asarray(expected.images[0]).astype(int))
        # Two orders of summation in fp32 differ by a share of 1e-6, which moves few values over a border of rounding.
        assert difference.max() <= 1
        assert difference.mean() < 0.05
        assert page.driver.execute_script("return document.documentElement.scrollWidth <= innerWidth")
        background = page.driver.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert background == ("rgb(20, 17, 15)" if dark else "rgb(255, 255, 255)")
        film = page.driver.find_elements("css selector", "#film canvas")
        assert [one.accessible_name for one in film] == [f"Estimate after step {i}" for i in (1, 2, 3)]
        assert page.driver.find_element("id", "image").accessible_name == prompt
    for part in ("input", "button", "canvas", "progress"):
        for element in page.driver.find_elements("css selector", part):
            assert element.accessible_name, f"{part} without a name"
    addresses = page.driver.execute_script("return performance.getEntriesByType('resource').map((one) => one.name)")
    assert not [one for one in addresses if not one.startswith((live.url, "data:"))]
    assert not [entry for entry in page.driver.get_log("browser") if entry["level"] == "SEVERE"]


def test_escape_stops_and_the_next_run_is_whole(page):
    fill(page, prompt="a dog " * 60, steps=100)
    page.press("Generate")
    page.until(lambda: page.find("//ol[@id='film']/li"), "first step")
    assert "The prompt is too long: its last 45 tokens are left out." in page.text()
    page.driver.find_element("name", "prompt").send_keys(ESCAPE)
    assert re.fullmatch(r"Stopped after step \d+ of 100\.", finished(page))
    fill(page, prompt="a dog", steps=2)
    page.press("Generate")
    page.until(lambda: status(page).startswith("Done"), "end")
    assert len(page.find("//ol[@id='film']/li")) == 2
    assert not page.find("//*[@role='alert']")


def test_a_model_that_is_gone_is_said_and_the_next_press_tries_again(page, live):
    away = live.path.with_suffix(".away")
    live.path.rename(away)
    try:
        page.press("Generate")
        assert finished(page) == "Nothing was generated."
        assert "is missing: the page /live has no model to run." in page.find("//*[@role='alert']")[0].text
    finally:
        away.rename(live.path)
    fill(page, steps=1)
    page.press("Generate")
    assert page.until(lambda: status(page).startswith("Done"), "end")
