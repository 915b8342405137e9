"""The page: in a headless Chromium, as a person uses it, and what it lets through of Gradio's own."""

import time
from types import SimpleNamespace

import pytest
from browser_page import chromium
from fake_jobs import count
from fastapi.testclient import TestClient
from PIL import Image
from web_client import HERE, listening, png

from sd.web.jobs import finetune as finetune_jobs
from sd.web.jobs.generate import ImageGenerator
from sd.web.jobs.model_index import Models
from sd.web.jobs.queue import Jobs
from sd.web.jobs.worker import JobRunner
from sd.web.server import create_app


class Keys:
    """As WebDriver writes them (W3C WebDriver, keyboard actions)."""

    CONTROL, ENTER, ESCAPE, ARROW_LEFT, ARROW_RIGHT = "\ue009", "\ue007", "\ue00c", "\ue012", "\ue014"


@pytest.fixture(scope="module")
def web(tmp_path_factory):
    """A server with the bundled model."""
    folder = tmp_path_factory.mktemp("page")
    models = Models(*(folder / name for name in ("weights", "weights/loras", "weights/embeddings")))
    for path in models.folders.values():
        path.mkdir(parents=True, exist_ok=True)
    jobs = Jobs(folder / "jobs", JobRunner(ImageGenerator(models, "cpu")))
    with listening(create_app(jobs, models)) as port:
        yield SimpleNamespace(folder=folder, models=models, jobs=jobs, url=f"{HERE}:{port}/")


@pytest.fixture(scope="module")
def one_browser(web):
    with chromium(web.url) as browser:
        yield browser


@pytest.fixture
def page(one_browser):
    """The page as a newcomer finds it: what the form kept of an earlier test is gone."""
    clear = "sessionStorage.clear(); localStorage.clear()"
    one_browser.driver.execute_script(f"if (location.protocol == 'http:') {{ {clear} }}")
    one_browser.open()
    return one_browser


@pytest.fixture
def photo_file(tmp_path):
    path = tmp_path / "photo.png"
    Image.linear_gradient("L").resize((128, 128)).convert("RGB").save(path)
    return path


def newest(web):
    return web.jobs.list(1)[0]


def generate(page, web, **fields):
    """The job, once the page says that it is done."""
    before = {job.id for job in web.jobs.list()}
    page.write(**fields)
    page.press("Generate")
    page.until(lambda: {job.id for job in web.jobs.list()} - before, "new job")
    page.until(lambda: newest(web).has_ended, "end of the job")
    page.state("done")
    job = newest(web)
    page.until(lambda: first_of_gallery(page).startswith(job.id), "image in the gallery")
    return job


def first_of_gallery(page):
    """ "job/file", or "" while there is none."""
    images = page.images("gallery")
    return images[0].get_attribute("data-image") if images else ""


def test_an_image_is_generated_and_the_page_finds_it_again(page, web):
    page.write(Prompt="a red apple", Steps=300, Seed=7)
    page.press("Generate")
    assert page.until(lambda: page.find("//progress[@aria-label='Progress']"), "progress")
    assert page.state("running", "done").startswith(("Getting", "Step", "Finish", "Done"))
    page.open()  # the browser goes away and comes back
    page.state("done")
    job = newest(web)
    assert job.request["settings"]["seed"] == 7
    assert job.request["settings"]["width"] == 128  # the model's own
    assert len(page.images("made")) == 1
    assert page.until(lambda: first_of_gallery(page), "gallery") == f"{job.id}/{job.result['images'][0]}"


def test_settings_come_back_from_the_gallery_and_from_a_file(page, web, tmp_path):
    job = generate(
        page, web, Prompt="a green tree", Negative_prompt="blue", Steps=2, Guidance=5.5, Seed=123456789012345678
    )
    page.write(Prompt="something else", Negative_prompt="", Steps=30, Guidance=7.5, Seed="")
    page.enlarge(0)
    page.until(lambda: "Steps: 2" in page.text(), "settings of the image")
    page.press("Use these settings")
    page.until(lambda: page.value("Prompt") == "a green tree", "prompt of the image")
    found = [page.value(name) for name in ("Negative prompt", "Steps", "Guidance", "Seed")]
    assert found == ["blue", "2", "5.5", "123456789012345678"]

    page.open()
    page.give("Settings from an image", job.file(job.result["images"][0]))
    page.until(lambda: page.value("Seed") == "123456789012345678", "settings of the file")
    assert page.value("Prompt") == "a green tree"


def test_cancel_acts_within_a_step(page, web, monkeypatch):
    stopped_at = []

    def cancel(id):
        stopped_at.append(web.jobs.get(id).event["step"])
        return Jobs.cancel(web.jobs, id)

    monkeypatch.setattr(web.jobs, "cancel", cancel)
    page.write(Steps=400)
    page.press("Generate")
    page.until(lambda: page.state("running").startswith("Step"), "first step")
    page.press("Cancel")
    page.state("cancelled")
    assert newest(web).state == "cancelled"
    assert newest(web).event["step"] <= stopped_at[0] + 1 < 400


def test_a_mask_is_painted_and_only_there_it_is_generated_again(page, web, photo_file):
    page.section("Start from an image")
    page.give("Image to start from", photo_file)
    page.paint((0.1, 0.2), (0.5, 0.2), (0.9, 0.2))
    job = generate(page, web, Prompt="a red apple", Steps=4, Mask_blur=0, Seed=3)
    mask = Image.open(job.folder / "mask").getchannel("A")
    assert mask.size == (128, 128)
    assert mask.getpixel((64, 26)) == 255
    assert mask.crop((0, 64, 128, 128)).getextrema() == (0, 0)

    def change(box):
        pair = (Image.open(path).convert("L").crop(box) for path in (photo_file, job.folder / job.result["images"][0]))
        one, other = (list(image.getdata()) for image in pair)
        return sum(abs(a - b) for a, b in zip(one, other)) / len(one)

    # The autoencoder changes the kept part a little; what is generated again has nothing to do with it.
    assert change((16, 16, 112, 36)) > 4 * change((0, 80, 128, 128))


def test_a_word_is_trained_and_stands_in_the_list(page, web, tmp_path, monkeypatch):
    quick = dict(preview_steps=2, prompts=("{}",), saves=1, batch=2)
    real = finetune_jobs.recipe_for
    monkeypatch.setattr(finetune_jobs, "recipe_for", lambda *names, **given: real(*names, **given | quick))
    files = [tmp_path / f"{i}.jpg" for i in range(5)]
    for i, file in enumerate(files):
        Image.radial_gradient("L").rotate(20 * i).convert("RGB").save(file)
    page.tab("Train")
    page.give("Images to train on, 5 to 15", *files)
    page.until(lambda: len(page.find("//ul[@aria-label='Chosen images']/li")) == 5, "five images")
    page.write(Name="my-moon", What_it_is="moon", Training_steps=3)
    page.choose("Embedding")
    page.press("Train")
    page.until(lambda: page.find("//*[name()='svg' and starts-with(@aria-label, 'Loss')]"), "curve")
    page.state("done")
    assert page.until(lambda: "Trained: use “my-moon” in a prompt." in page.text(), "what to say")
    assert "The weights after step 3 of 3 were taken" in page.text()
    assert page.until(lambda: page.find("//img[@alt='Contact sheet, step by step']"), "contact sheet")
    assert (web.folder / "weights" / "embeddings" / "my-moon.safetensors").is_file()

    page.tab("Generate")
    page.field("LoRA or embedding").click()
    page.until(lambda: page.find("//*[@role='option' and contains(., 'my-moon')]"), "the word in the list")[0].click()
    page.press("Add")
    page.until(lambda: "(my-moon:1)" in page.value("Prompt"), "the word in the prompt")


@pytest.mark.parametrize("pause", [0.15, 2])
def test_generate_pressed_twice_makes_two_jobs_and_cancel_stops_the_one_shown(page, web, pause):
    before = {job.id for job in web.jobs.list()}
    page.write(Steps=150)
    page.press("Generate")
    time.sleep(pause)
    page.press("Generate")
    page.until(lambda: page.find("//ol[@aria-label='Waiting']/li"), "the job that waits")
    assert "In the queue: 1 job is before it" in page.text()
    second, first = (job for job in web.jobs.list(2) if job.id not in before)
    page.open()  # in the middle: both are found again
    page.until(lambda: page.find("//ol[@aria-label='Waiting']/li"), "the job that waits")
    page.find("//div[@data-part='stop']//button[normalize-space()='Cancel']")[0].click()
    page.until(lambda: web.jobs.get(first.id).state == "cancelled", "end of the first")
    page.until(lambda: page.find(f"//div[@data-part='stop']//button[@data-cancel='{second.id}']"), "the second")
    page.find("//div[@data-part='stop']//button[normalize-space()='Cancel']")[0].click()
    page.until(lambda: web.jobs.get(second.id).state == "cancelled", "end of the second")


def test_train_with_every_default_pressed_twice_makes_one_job(page, web, tmp_path, monkeypatch):
    quick = dict(steps=2, preview_steps=1, prompts=("{}",), saves=1, batch=1)
    real = finetune_jobs.recipe_for
    monkeypatch.setattr(finetune_jobs, "recipe_for", lambda *names, **given: real(*names, **given | quick))
    files = [tmp_path / f"{i}.png" for i in range(5)]
    for i, file in enumerate(files):
        Image.radial_gradient("L").rotate(20 * i).resize((64, 64)).convert("RGB").save(file)
    page.driver.execute_script("sessionStorage.clear(); localStorage.clear()")
    page.open()
    page.tab("Train")
    page.give("Images to train on, 5 to 15", *files)
    page.until(lambda: len(page.find("//ul[@aria-label='Chosen images']/li")) == 5, "five images")
    page.write(Name="my-sun")
    page.press("Train")
    page.press("Train")
    page.until(lambda: "My-sun is being trained already" in page.text(), "sentence about the second")
    page.state("done")
    assert [job.request["steps"] for job in web.jobs.list() if job.request.get("name") == "my-sun"] == [None]
    page.press("Try it")
    page.until(lambda: page.find("//textarea") and page.value("Prompt") == "my-sun <lora:my-sun:1>", "prompt")


def test_the_form_is_kept_over_a_reload_and_ctrl_enter_generates(page, web):
    before = {job.id for job in web.jobs.list()}
    page.write(Prompt="a blue car", Steps=2, Seed=11)
    page.open()
    page.until(lambda: page.value("Prompt") == "a blue car", "prompt after the reload")
    assert (page.value("Steps"), page.value("Seed")) == ("2", "11")
    page.field("Prompt").send_keys(Keys.CONTROL, Keys.ENTER)
    page.until(lambda: {job.id for job in web.jobs.list()} - before, "job")
    page.until(lambda: newest(web).has_ended, "its end")
    assert newest(web).request["settings"]["prompt"] == "a blue car"


def test_an_image_is_enlarged_looked_through_and_deleted(page, web):
    generate(page, web, Prompt="a red apple", Steps=1, Batch_count=2)
    page.enlarge(0)
    shown = page.driver.find_element("css selector", "dialog img")
    first = shown.get_attribute("src")
    page.driver.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    page.until(lambda: shown.get_attribute("src") != first, "next image")
    page.driver.switch_to.active_element.send_keys(Keys.ARROW_LEFT)
    page.until(lambda: shown.get_attribute("src") == first, "previous image")
    page.press("Delete")
    page.driver.switch_to.alert.accept()
    page.until(lambda: len(newest(web).result["images"]) == 1, "one image fewer")
    page.driver.switch_to.active_element.send_keys(Keys.ESCAPE)
    page.until(lambda: not page.find("//dialog[@open]"), "closed")


def test_on_a_telephone_nothing_is_cut_off_and_generate_shows_its_progress(page):
    size = page.driver.get_window_size()
    page.driver.set_window_size(390, 844)
    try:
        page.open()
        page.section("Start from an image")
        page.until(lambda: page.find("//input[@aria-label='number input for Denoising strength']"), "slider")
        assert page.driver.execute_script("return document.documentElement.scrollWidth <= innerWidth")
        slider = page.field("Denoising strength").rect
        assert slider["x"] + slider["width"] <= 390
        page.write(Steps=1)
        page.press("Generate")
        on_screen = (
            "const box = document.querySelector('.stage').getBoundingClientRect(); return box.top < innerHeight / 2"
        )
        page.until(lambda: page.driver.execute_script(on_screen), "the image's place on the screen")
        page.state("done")
    finally:
        page.driver.set_window_size(size["width"], size["height"])


def test_a_file_without_settings_is_called_by_its_name(page, photo_file):
    page.give("Settings from an image", photo_file)
    page.until(lambda: "Photo.png holds no settings" in page.text(), "sentence")


def test_a_mistake_is_one_sentence(page):
    page.write(Seed="seven")
    page.press("Generate")
    page.until(lambda: "The seed is 'seven'" in page.text(), "sentence")


def test_a_prompt_is_written_without_a_chat_model_and_its_title_names_the_file(page, web, monkeypatch):
    for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY", "OPENAI_MODEL"):
        monkeypatch.delenv(name, raising=False)
    page.write(Prompt="a fox", Seed=5)
    page.press("Improve the prompt")
    page.until(lambda: page.value("Prompt") != "a fox" and "a fox" in page.value("Prompt"), "longer prompt")
    job = generate(page, web, Steps=1)
    assert job.result["files"] == ["a-fox-00000.png"], "the title names the file"
    assert generate(page, web, Prompt="a red apple").result["files"] == ["00000.png"], "another's title does not"


@pytest.mark.parametrize(("path", "shown"), [("", "Generate"), ("docs", "/sdapi/v1/txt2img")])
def test_nothing_is_fetched_from_elsewhere(page, web, path, shown):
    page.driver.get(web.url + path)
    page.until(lambda: shown in page.text(), shown)
    names = page.driver.execute_script("return performance.getEntriesByType('resource').map((one) => one.name)")
    assert names
    assert [name for name in names if not name.startswith((web.url, "data:", "blob:"))] == []


@pytest.fixture
def closed(tmp_path):
    """A server with a password; its jobs only count."""
    jobs = Jobs(tmp_path / "jobs", count)
    app = create_app(jobs, Models(), auth=("me", "secret"))
    with TestClient(app, base_url=HERE, raise_server_exceptions=False) as client:
        yield client


GRADIO = (
    "/",
    "/config",
    "/theme.css",
    "/gradio_api/file=README.md",
    "/gradio_api/heartbeat/x",
    "/gradio_api/queue/data",
)


@pytest.mark.parametrize("path", GRADIO)
def test_gradios_own_addresses_want_the_password_and_the_host(closed, path):
    assert closed.get(path).status_code == 401
    assert closed.get(path, auth=("me", "secret"), headers={"Host": "elsewhere.example"}).status_code == 403
    headers = {"Origin": "http://elsewhere.example"}
    assert closed.post("/gradio_api/queue/join", json={}, auth=("me", "secret"), headers=headers).status_code == 403


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("path", ["/controlnet/no_such_list", "/sdapi/v2/txt2img", "/no/such/address"])
def test_an_unknown_address_is_one_sentence_with_the_page_too(closed, method, path):
    answer = closed.request(method, path, auth=("me", "secret"))
    sentence = f"unknown address: {method} {path}; /docs lists the addresses of this server."
    assert answer.status_code == 404
    assert answer.json() == {"error": "HTTPException", "detail": sentence, "body": "", "errors": sentence}
    answer = closed.put("/config", auth=("me", "secret"))
    assert (answer.status_code, answer.json()["error"]) == (405, "HTTPException")


def test_gradio_hands_out_and_takes_no_files(closed, tmp_path):
    closed.auth = ("me", "secret")
    assert closed.get("/config").status_code == 200
    secret = tmp_path / "secret.txt"
    secret.write_text("x")
    for place in (secret, "/etc/passwd", tmp_path / "jobs", "../README.md", "http://127.0.0.1:1/x"):
        assert closed.get(f"/gradio_api/file={place}").status_code in (403, 404), place
    image = png(Image.new("RGB", (8, 8)))
    assert closed.post("/gradio_api/upload", files={"files": ("a.png", image)}).status_code == 404
