"""The tab that looks inside, in Chromium, with a tiny model of random weights: at desktop and at phone width."""

import time
from types import SimpleNamespace

import pytest
from browser_page import chromium
from conftest import fresh_copy
from web_client import HERE, listening

from sd.pipeline.stable_diffusion import BUNDLED
from sd.web.jobs import look as looking
from sd.web.jobs.generate import ImageGenerator, StepReporter
from sd.web.jobs.job import Job
from sd.web.jobs.model_index import Models
from sd.web.jobs.queue import Jobs
from sd.web.jobs.worker import JobRunner
from sd.web.server import create_app
from sd.web.ui.look_tab import NOTHING, viewer

ENTER, RIGHT, HOME, CONTROL = "\ue007", "\ue014", "\ue011", "\ue009"  # as WebDriver writes them
SIZES = {"desktop": (1280, 1000), "phone": (390, 844)}


@pytest.fixture(scope="module")
def web(tmp_path_factory, made_once):
    folder = tmp_path_factory.mktemp("page")
    models = Models(*(folder / name for name in ("weights", "weights/loras", "weights/embeddings")))
    for path in models.folders.values():
        path.mkdir(parents=True, exist_ok=True)
    pipe = fresh_copy(made_once[4])
    pipe.path = BUNDLED  # as if it had been loaded from there, so that it stays
    jobs = Jobs(folder / "jobs", JobRunner(ImageGenerator(models, "cpu", pipe=pipe)))
    with listening(create_app(jobs, models)) as port:
        yield SimpleNamespace(jobs=jobs, url=f"{HERE}:{port}/")


@pytest.fixture(scope="module")
def one_browser(web):
    with chromium(web.url) as browser:
        yield browser


@pytest.fixture
def page(one_browser, request):
    """The tab as a newcomer finds it, at one width."""
    width, height = SIZES[getattr(request, "param", "desktop")]
    given = dict(width=width, height=height, deviceScaleFactor=1, mobile=width < 500)
    one_browser.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", given)
    one_browser.driver.get(one_browser.url + "docs")
    one_browser.driver.execute_script("sessionStorage.clear(); localStorage.clear()")
    one_browser.driver.get_log("browser")
    one_browser.open()
    one_browser.write(Steps=4)
    one_browser.tab("Look inside")
    return one_browser


def look(page, web, prompt):
    """Writes a prompt, presses the button, and waits for the viewer."""
    before = {job.id for job in web.jobs.list()}
    page.write(Prompt=prompt)
    page.press("Look inside")
    page.until(lambda: {job.id for job in web.jobs.list()} - before, "new job")
    page.until(lambda: web.jobs.list(1)[0].has_ended, "end of the job")
    page.until(lambda: [one for one in page.find("//sd-inside//h3") if one.text == prompt], "viewer of the prompt")
    return web.jobs.list(1)[0]


def step_of(page):
    return page.find("//sd-inside//p[@role='status']")[0].text.partition(":")[0]


def is_painted(page, label):
    """Whether the canvas whose label begins so has more than one color."""
    script = """
      const all = [...document.querySelectorAll("sd-inside canvas")];
      const canvas = all.find((one) => one.ariaLabel?.startsWith(arguments[0]));
      const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
      return new Set(data).size > 2;
    """
    return page.driver.execute_script(script, label)


def assert_no_error(page):
    severe = [entry for entry in page.driver.get_log("browser") if entry["level"] == "SEVERE"]
    assert not severe


def fits(page):
    return page.driver.execute_script("return document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize("page", SIZES, indirect=True)
def test_a_prompt_is_looked_into_and_found_again(page, web):
    page.until(lambda: "see every step of it" in page.text(), "invitation")
    job = look(page, web, "a red apple")
    assert (job.kind, job.state) == ("look", "done")
    assert job.request["settings"]["steps"] == 4  # the form's
    assert step_of(page) == "Step 1 of 4"
    for label in ("x_t", "x0, guided", "x0, conditional", "x0, unconditional", "“red” has", "At s = 7.5", "Channel 4"):
        assert is_painted(page, label), label
    assert fits(page)
    page.driver.execute_script("scrollTo(0, document.body.scrollHeight)")
    slider = "return document.querySelector('sd-inside .steps').getBoundingClientRect().top"
    assert page.until(lambda: page.driver.execute_script(slider) < 60, "slider")
    assert page.driver.execute_script(slider) >= 0  # in sight while the parts below are read
    page.driver.execute_script("scrollTo(0, 0)")

    page.open()  # the browser goes away and comes back
    page.tab("Look inside")
    assert page.value("Prompt") == "a red apple"
    page.until(lambda: page.find("//sd-inside//h3"), "viewer")
    assert len(page.find("//sd-inside//section[@aria-label='a red apple']")) == 1
    page.tab("Generate")
    assert page.value("Prompt") == "a red apple"
    assert_no_error(page)


def test_the_keyboard_moves_steps_words_and_guidance(page, web):
    look(page, web, "a red apple")
    slider = page.find("//sd-inside//input[@aria-label='Step']")[0]
    slider.send_keys(RIGHT, RIGHT)
    assert step_of(page) == "Step 3 of 4"
    assert slider.get_attribute("aria-valuetext") == "3 of 4"
    word = page.find("//sd-inside//button[starts-with(normalize-space(), 'apple')]")[0]
    page.driver.execute_script("arguments[0].focus()", word)
    assert word.get_attribute("aria-pressed") == "true"
    assert "“apple” has" in page.text()
    assert "Without “apple” x0 changes by" in page.text()
    padding = page.find("//sd-inside//button[starts-with(normalize-space(), 'end token')]")[0]
    padding.send_keys(ENTER)
    assert "Only words can be taken out of a prompt." in page.text()
    scale = page.find("//sd-inside//label[contains(., 'Guidance scale s')]/input")[0]
    scale.send_keys(HOME)
    assert "At s = 0.0" in page.text()
    assert_no_error(page)


@pytest.mark.parametrize("page", SIZES, indirect=True)
def test_two_runs_stand_side_by_side(page, web):
    look(page, web, "a red apple")
    look(page, web, "a green tree")
    box = page.until(lambda: page.find("//label[normalize-space()='Compare with the run before']/input"), "box")[0]
    box.click()
    page.until(lambda: len(page.find("//sd-inside//h3")) == 2, "second trace")
    assert [one.text for one in page.find("//sd-inside//h3")] == ["a green tree", "a red apple"]
    assert fits(page)
    box.click()
    page.until(lambda: len(page.find("//sd-inside//h3")) == 1, "one trace")
    assert_no_error(page)


class SlowReporter(StepReporter):
    """As on a machine that takes its time."""

    def __call__(self, *step):
        time.sleep(0.2)
        super().__call__(*step)


def test_two_presses_make_one_job_and_cancel_ends_it(page, web, monkeypatch):
    monkeypatch.setattr(looking, "StepReporter", SlowReporter)
    page.tab("Generate")
    page.write(Steps=500)
    page.tab("Look inside")
    before = {job.id for job in web.jobs.list()}
    button = page.find("//button[@id='look']")[0]
    button.click()
    button.click()
    page.until(lambda: page.state("running").startswith("Step"), "first step")
    button.click()
    page.press("Cancel")
    page.state("cancelled")
    made = [job for job in web.jobs.list() if job.id not in before]
    assert [job.state for job in made] == ["cancelled"]
    assert not page.find("//sd-inside")
    assert_no_error(page)


def test_a_deleted_trace_is_said(page, web):
    job = look(page, web, "a red apple")
    (job.folder / job.result["trace"]).unlink()
    page.open()
    page.tab("Look inside")
    found = page.until(lambda: page.find("//sd-inside//p[@role='alert']"), "sentence")[0]
    assert found.text == "The trace cannot be shown: its file was deleted."


def test_the_viewer_is_told_where_the_traces_are(tmp_path):
    one, other = (Job(id, "look", {}, tmp_path, "done", result={"trace": "trace.json"}) for id in ("1", "2"))
    assert viewer(one, None) == '<sd-inside data-traces="jobs/1/files/trace.json"></sd-inside>'
    assert 'data-before="jobs/2/files/trace.json"' in viewer(one, other)
    assert "Look inside" in NOTHING
