"""The page in Chromium with jobs that only pretend: tabs, restarts, the keyboard, buttons pressed twice."""

import time
from types import SimpleNamespace

import fake_jobs
import numpy as np
import pytest
from browser_page import chromium
from conftest import UNET
from fake_jobs import fake_generate
from PIL import Image
from web_client import HERE, listening

from sd.control.controlnet import ControlNetModel
from sd.control.controlnet_files import save_controlnet
from sd.prompts.styles import find_style
from sd.web.jobs.model_index import Models
from sd.web.jobs.queue import Jobs
from sd.web.server import create_app

# As WebDriver writes them (W3C WebDriver, keyboard actions).
TAB, ENTER = "\ue004", "\ue007"
STYLE = "emoji noto"
# Once `armed`, the end of the feed of events reaches the page only when it is `released`, as on a slow network.
SLOW_END = """
const plain = window.fetch;
window.joins = 0;
window.fetch = async (resource, options) => {
  const path = String(resource.url || resource);
  const answer = await plain(resource, options);
  if (path.includes("queue/join")) window.joins++;
  if (!path.includes("queue/data")) return answer;
  const hold = async (chunk, out) => {
    window.held = window.armed && new TextDecoder().decode(chunk).includes("close_stream");
    while (window.held && !window.released) await new Promise((resume) => setTimeout(resume, 20));
    out.enqueue(chunk);
  };
  return new Response(answer.body.pipeThrough(new TransformStream({ transform: hold })), answer);
};
"""


def make_server(folder):
    """(jobs, app, models) over the folder, which a server before may have used."""
    models = Models(*(folder / name for name in ("weights", "weights/loras", "weights/embeddings")))
    for path in models.folders.values():
        path.mkdir(parents=True, exist_ok=True)
    jobs = Jobs(folder / "jobs", fake_generate)
    return jobs, create_app(jobs, models), models


@pytest.fixture(scope="module")
def web(tmp_path_factory):
    jobs, app, models = make_server(tmp_path_factory.mktemp("page"))
    with listening(app) as port:
        yield SimpleNamespace(jobs=jobs, models=models, url=f"{HERE}:{port}/")


@pytest.fixture(scope="module")
def one_browser(web):
    with chromium(web.url) as browser:
        yield browser


@pytest.fixture
def page(one_browser, web):
    """The page as a newcomer finds it."""
    one_browser.url = web.url
    one_browser.driver.get(web.url + "docs")
    one_browser.driver.execute_script("sessionStorage.clear(); localStorage.clear()")
    one_browser.open()
    return one_browser


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    Image.linear_gradient("L").resize((64, 64)).convert("RGB").save(path)
    return path


def generate(page, web, **fields):
    """The job, once its image is in the gallery."""
    before = {job.id for job in web.jobs.list()}
    page.write(**fields)
    page.press("Generate")
    page.until(lambda: {job.id for job in web.jobs.list()} - before, "new job")
    page.until(lambda: shown(page, "gallery")[:1] == [web.jobs.list(1)[0].id], "image in the gallery")
    return web.jobs.list(1)[0]


def shown(page, place):
    """The ids of the jobs whose images stand there."""
    return [button.get_attribute("data-image").split("/")[0] for button in page.images(place)]


def press_twice(page, name):
    page.press(name)
    page.press(name)


def painted(page):
    """How many pixels of the mask are painted."""
    return page.driver.execute_script(
        "const canvas = document.querySelector('canvas');"
        "const {data} = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);"
        "return data.filter((value, i) => i % 4 === 3 && value > 0).length"
    )


def open_image(page, photo):
    page.section("Start from an image")
    page.give("Image to start from", photo)
    page.until(lambda: page.find("//canvas"), "canvas")


def no_errors(page):
    return not page.find("//*[contains(@class, 'toast-body') and contains(@class, 'error')]")


def test_two_tabs_show_their_own_jobs_and_the_same_gallery(page, web):
    first = generate(page, web, Prompt="a first", Seed=1)
    driver, tab = page.driver, page.driver.current_window_handle
    driver.switch_to.new_window("tab")
    try:
        page.open()
        second = generate(page, web, Prompt="a second", Seed=2)
        page.until(lambda: shown(page, "made") == [second.id], "its own image")
        assert shown(page, "gallery")[:2] == [second.id, first.id]
        driver.close()
    finally:
        driver.switch_to.window(tab)
    assert shown(page, "made") == [first.id]
    page.open()  # a tab keeps its name over a reload
    page.until(lambda: shown(page, "made") == [first.id], "the first tab's image")
    assert page.value("Prompt") == "a first"


def test_a_page_left_open_outlives_a_restart_of_the_server(one_browser, tmp_path):
    jobs, app, _ = make_server(tmp_path)
    with listening(app) as port:
        one_browser.url = f"{HERE}:{port}/"
        one_browser.open()
        first = generate(one_browser, SimpleNamespace(jobs=jobs), Prompt="a red apple", Seed=1)
        one_browser.write(Prompt="a green pear", Steps=30)
        one_browser.press("Generate")  # so that the page follows a job while the server ends
    jobs.close()
    one_browser.until(lambda: "The server does not answer" in one_browser.text(), "sentence about it")
    jobs, app, _ = make_server(tmp_path)
    with listening(app, port):
        one_browser.until(lambda: "The server does not answer" not in one_browser.text(), "the server again")
        one_browser.write(Seed=2)
        before = {job.id for job in jobs.list()}

        def press() -> bool:
            """Gradio now and then loses what is pressed while it connects again; a person presses once more."""
            one_browser.press("Generate")
            time.sleep(5)
            return bool({job.id for job in jobs.list()} - before)

        one_browser.until(press, "new job")
        last = jobs.list(1)[0]
        one_browser.until(lambda: shown(one_browser, "gallery")[:1] == [jobs.list(1)[0].id], "image in the gallery")
        assert last.request["settings"]["prompt"] == "a green pear", "the form is as it was"
        assert first.id in shown(one_browser, "gallery")
    jobs.close()


def test_the_tab_key_goes_from_the_prompt_to_generate_in_the_order_of_reading(page, web):
    before = len(web.jobs.list())
    page.field("Prompt").click()
    names = []
    for _ in range(3):
        page.driver.switch_to.active_element.send_keys(TAB)
        element = page.driver.switch_to.active_element
        names.append(element.text or element.get_attribute("placeholder"))
    assert names == ["what to avoid", "Generate", "Improve the prompt"]
    page.driver.switch_to.active_element.send_keys("\ue008" + TAB)  # Shift+Tab, back to Generate
    page.driver.switch_to.active_element.send_keys(ENTER)
    page.until(lambda: len(web.jobs.list()) == before + 1, "job")
    page.state("done")


def test_save_downloads_the_very_file(page, web, tmp_path):
    job = generate(page, web, Seed=3)
    place = {"behavior": "allow", "downloadPath": str(tmp_path)}
    page.driver.execute_cdp_cmd("Browser.setDownloadBehavior", place)
    page.enlarge(0)
    page.find("//dialog//a[normalize-space()='Save']")[0].click()
    name = f"{job.id}-{job.result['images'][0]}"
    saved = page.until(lambda: list(tmp_path.glob(name)), "saved file")[0]
    assert saved.read_bytes() == job.file(job.result["images"][0]).read_bytes()
    page.press("Close")


def test_dice_and_same_seed(page, web):
    job = generate(page, web, Seed=41)
    press_twice(page, "🎲 Random")
    page.until(lambda: page.value("Seed") == "", "a random seed")
    other = generate(page, web)
    assert other.result["seeds"] != job.result["seeds"]
    press_twice(page, "♻ Same seed")
    page.until(lambda: page.value("Seed") == str(other.result["seeds"][0]), "the seed again")


def test_a_style_from_the_list_is_applied(page, web):
    field = page.field("Styles")
    field.click()
    option = f"//*[@role='option' and contains(., '{STYLE}')]"
    page.until(lambda: page.find(option), "style in the list")[0].click()
    field.send_keys(TAB)
    job = generate(page, web, Prompt="a fox", Seed=5)
    assert job.request["settings"]["prompt"] == find_style(STYLE).apply("a fox", "")[0] != "a fox"


def test_strokes_are_erased_undone_and_cleared(page, web, photo):
    open_image(page, photo)
    page.paint((0.2, 0.5), (0.8, 0.5))
    whole = page.until(lambda: painted(page), "stroke")
    page.find("//input[@aria-label='Eraser']")[0].click()
    page.paint((0.5, 0.3), (0.5, 0.7))
    page.until(lambda: 0 < painted(page) < whole, "a gap in the stroke")
    page.press("Undo")
    page.until(lambda: painted(page) == whole, "the stroke as it was")
    page.press("Undo")
    page.until(lambda: painted(page) == 0, "no stroke")
    assert not page.find("//button[normalize-space()='Undo']")[0].is_enabled()
    page.find("//input[@aria-label='Eraser']")[0].click()
    page.paint((0.2, 0.5), (0.8, 0.5))
    press_twice(page, "Clear the mask")
    page.until(lambda: painted(page) == 0, "no stroke")
    page.press("Undo")
    page.open()  # the image is kept over a reload, and its section opens
    page.until(lambda: page.find("//canvas"), "canvas after the reload")
    job = generate(page, web, Seed=6)
    assert (job.folder / "image").read_bytes() == photo.read_bytes()
    assert not (job.folder / "mask").exists()
    page.press("Remove the image")
    page.until(lambda: not page.find("//canvas"), "no image")
    assert not (generate(page, web, Seed=7).folder / "image").exists()


def test_buttons_that_are_pressed_twice_do_no_harm(page, web, photo, monkeypatch):
    page.write(Width=64, Height=96)
    press_twice(page, "⇄ Swap")
    page.until(lambda: (page.value("Width"), page.value("Height")) == ("64", "96"), "the sizes as before")
    page.write(Prompt="x", Steps=9)
    press_twice(page, "a blue apple")
    page.until(lambda: page.value("Prompt") == "a blue apple", "example")
    page.section("Advanced")
    press_twice(page, "Reset the form")
    page.until(lambda: (page.value("Prompt"), page.value("Steps")) == ("a red apple", "25"), "the defaults")
    assert no_errors(page)
    monkeypatch.setattr(fake_jobs, "SECONDS", 0.3)
    page.press("Generate")
    page.until(lambda: page.find("//div[@data-part='stop']//button"), "Cancel")
    page.driver.execute_script("const b = document.querySelector('[data-part=stop] button'); b.click(); b.click()")
    page.state("cancelled")
    assert web.jobs.list(1)[0].state == "cancelled"
    monkeypatch.undo()
    job = generate(page, web, Seed=8, Batch_count=2)
    page.enlarge(0)
    press_twice(page, "Next →")
    press_twice(page, "Enlarge")
    press_twice(page, "← Previous")
    page.until(lambda: "1 of" in page.find("//dialog//p[contains(@class, 'count')]")[0].text, "the first image")
    page.driver.execute_script("const b = document.querySelector('dialog .use'); b.click(); b.click()")
    page.until(lambda: page.value("Seed") == "8", "its settings")
    assert len(job.result["images"]) == 2
    assert no_errors(page)


def test_a_press_while_the_last_answers_end_is_answered(page):
    """It was lost now and then: the page waited for its answer on a feed that the server had just ended."""
    run = page.driver.execute_script
    script = page.driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": SLOW_END})
    try:
        page.open()
    finally:
        page.driver.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", script)
    page.until(lambda: "tokens" in page.text(), "end of the events of loading")
    time.sleep(1)
    run("window.armed = true")
    page.press("Add")
    page.until(lambda: run("return window.held"), "end of the feed, held back")
    joins = run("return window.joins")
    page.press("♻ Same seed")
    page.until(lambda: run("return window.joins") > joins, "number of the event")
    time.sleep(0.2)  # until Gradio would have read it
    run("window.released = true")
    page.until(lambda: "There is no seed to use again yet" in page.text(), "answer to the second press")


def test_images_to_train_on_are_kept_over_a_reload(page, photo):
    page.tab("Train")
    page.give("Images to train on, 5 to 15", photo)
    page.until(lambda: page.find("//ul[@aria-label='Chosen images']/li"), "image")
    page.open()
    page.tab("Train")
    page.until(lambda: page.find("//ul[@aria-label='Chosen images']/li"), "image after the reload")
    page.press("Train")  # with a name missing
    page.until(lambda: "Invalid name" in page.text(), "sentence")
    page.find("//button[@aria-label='Remove image 1']")[0].click()
    page.until(lambda: not page.find("//ul[@aria-label='Chosen images']/li"), "no image")
    time.sleep(0.2)
    page.open()
    page.tab("Train")
    time.sleep(1)
    assert not page.find("//ul[@aria-label='Chosen images']/li")


def paint_one(page, accordion, *strokes):
    """Opens an accordion, paints strokes on its empty canvas and adds the painting to its list."""
    page.section(accordion)
    page.press("Paint one here")
    for stroke in strokes:
        page.paint(*stroke)
        page.press("Add the painting")


def thumbs(page):
    return page.find("//ul[@aria-label='Chosen images']/li")


def stored(job, name):
    return np.array(Image.open(job.folder / name).convert("L"))


def test_a_painted_control_image_is_white_on_black_and_of_the_forms_shape(page, web):
    folder = web.models.folders["ControlNet"]
    save_controlnet(folder / "scribble.safetensors", ControlNetModel(**UNET), {})
    web.models.refresh()
    page.write(Width=64, Height=128)
    paint_one(page, "ControlNet")
    page.press("Add the painting")
    page.until(lambda: "Nothing is painted yet" in page.text(), "sentence")
    page.paint((0.2, 0.25), (0.8, 0.25))
    page.press("Undo")
    page.paint((0.2, 0.75), (0.8, 0.75))
    page.press("Add the painting")
    page.until(lambda: len(thumbs(page)) == 1, "painting in the list")
    job = generate(page, web, ControlNets="scribble", Seed=11)
    painted = stored(job, "control-0")
    assert painted.shape == (512, 256)
    assert painted[384, 128] == 255
    assert painted[128, 128] == 0, "undone"
    page.find("//button[@aria-label='Remove image 1']")[0].click()
    page.until(lambda: not thumbs(page), "no image")


def test_painted_region_masks_are_those_of_the_job(page, web):
    paint_one(page, "Regions", [(0.1, 0.2), (0.1, 0.8)], [(0.9, 0.2), (0.9, 0.8)])
    page.until(lambda: len(thumbs(page)) == 2, "two masks")
    job = generate(page, web, Prompt="a cat ADDCOL a dog", Seed=12)
    left, right = stored(job, "region-00"), stored(job, "region-01")
    middle, side = left.shape[0] // 2, left.shape[1]
    assert (left[middle, side // 10], left[middle, side * 9 // 10]) == (255, 0)
    assert (right[middle, side // 10], right[middle, side * 9 // 10]) == (0, 255)
    page.open()
    job = generate(page, web, Seed=14)
    assert np.array_equal(stored(job, "region-01"), right), "kept over a reload"
    page.write(Prompt="a cat")
    page.press("Generate")
    page.until(lambda: "1 region and there are 2 region masks" in page.text(), "sentence on what does not fit")


def test_what_is_not_added_is_said_and_what_takes_part_is_open_after_a_reload(page, web):
    paint_one(page, "ControlNet")
    page.paint((0.2, 0.2), (0.8, 0.2))
    field = page.field("Preprocessor")
    field.click()
    page.until(lambda: page.find("//*[@role='option' and contains(., 'Reference')]"), "list")[0].click()
    field.send_keys(TAB)
    generate(page, web, Seed=13)
    page.until(lambda: 'the preprocessor "Reference" is chosen but not added' in page.text(), "sentence on the choice")
    assert "This painting is not added yet and takes no part" in page.text()
    page.press("Add the painting")
    page.press("Add ControlNet")
    page.until(lambda: page.value("ControlNets") == "reference_only", "unit")
    page.until(lambda: page.value("Preprocessor") == "None", "empty choice")
    page.open()
    page.until(lambda: thumbs(page), "control image in the open section")
    assert page.value("ControlNets") == "reference_only"
    assert not page.find("//label[.//span[normalize-space()='Region ratios']]"), "regions take no part"
    page.section("Advanced")
    page.press("Reset the form")
    page.until(lambda: not thumbs(page), "no image")
    page.open()
    page.section("ControlNet")
    time.sleep(1)
    assert not thumbs(page), "nor after a reload"


def test_a_large_control_image_stays_transparent_where_it_is_a_mask(page, web, tmp_path):
    image = Image.new("RGBA", (2048, 2048), "red")
    image.paste((0, 0, 0, 0), (0, 0, 1024, 2048))
    image.save(tmp_path / "hole.png")
    page.section("ControlNet")
    page.give("Control images, one for each ControlNet or one for all", tmp_path / "hole.png")
    page.until(lambda: thumbs(page), "control image")
    job = generate(page, web, ControlNets="reference_only", Seed=15)
    kept = np.array(Image.open(job.folder / "control-0").convert("RGBA"))
    assert kept.shape == (1024, 1024, 4)
    assert tuple(kept[512, [256, 768], 3]) == (0, 255)
