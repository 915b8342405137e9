"""docs/tour/tour.html: up to date, small, without a word to another host; and in Chromium at both widths."""

import json
import re

import pytest
from browser_page import chromium

from sd.utils.errors import UserError
from tour.html import MAX_BYTES, NAME, PATHS, PROMPTS, STEPS, read_html_data, render_html
from tour.pages import PAGES

PATH = PAGES / NAME


@pytest.fixture(scope="module")
def data():
    return json.loads(read_html_data())


def test_the_page_is_up_to_date_with_viewer_and_chapters():
    assert PATH.read_text(encoding="utf-8") == render_html(read_html_data()), "run python scripts/tour.py --text"


def test_it_is_small_and_asks_no_host_for_anything():
    text = PATH.read_text(encoding="utf-8")
    assert len(text.encode()) <= MAX_BYTES
    addresses = set(re.findall(r"""(?:src|href)=["']([^"']*)|\w+://[^\s"'`)]*""", text))
    assert not [one for one in addresses if one and not one.endswith(".md") and one != "data:,"]
    assert set(re.findall(r"https?://[^\s\"'`)]*", text)) <= {"http://www.w3.org/2000/svg"}  # a namespace's name


def test_its_data_are_two_traces_and_the_paths(data):
    assert [trace["title"] for trace in data["traces"]] == list(PROMPTS)
    for trace in data["traces"]:
        assert len(trace["steps"]) == STEPS
        assert trace["words"]["changed_steps"] == list(range(STEPS))
        distances = [step["distance"] for step in trace["steps"]]
        assert distances[0] > 3 * distances[-1]  # the estimates with and without the prompt come together
    series = data["samplers"]["series"]
    assert len(series) == len(PATHS)
    starts = {tuple(one["points"][0]) for one in series}
    assert len(starts) == 1 or max(abs(a - b) for one in starts for a, b in zip(one, series[0]["points"][0])) < 0.02


def test_a_page_that_was_never_made_is_said(tmp_path):
    with pytest.raises(UserError, match="has not been made"):
        read_html_data(tmp_path)


def test_data_cannot_end_the_script():
    assert "</script><b>" not in render_html('{"title": "</script><b>"}')


@pytest.fixture(scope="module")
def browser():
    with chromium(PATH.as_uri()) as browser:
        yield browser


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, False), (390, True)])
def test_in_a_browser(browser, width, dark):
    driver = browser.driver
    size = dict(width=width, height=900, deviceScaleFactor=1, mobile=width < 500)
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    driver.get(browser.url)
    browser.until(lambda: len(browser.find("//sd-inside//h3")) == 2, "two traces")
    assert driver.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    background = driver.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(20, 17, 15)" if dark else "rgb(255, 255, 255)")

    slider = browser.find("//input[@aria-label='Step']")[0]
    slider.send_keys("\ue010")  # the End key
    places = [one.text.partition(":")[0] for one in browser.find("//sd-inside//p[@role='status']")]
    assert places == [f"Step {STEPS} of {STEPS}"] * 2
    word = browser.find("//button[starts-with(normalize-space(), 'apple')]")[0]
    driver.execute_script("arguments[0].focus()", word)
    assert "Without “apple” x0 changes by" in browser.text()
    sampler = browser.find("//button[starts-with(normalize-space(), 'Heun')]")[0]
    driver.execute_script("arguments[0].focus()", sampler)
    assert len(driver.find_elements("css selector", ".sampler.faint")) == len(PATHS) - 1

    for part in ("input", "select", "canvas[role=img]", "svg", "button"):
        for element in driver.find_elements("css selector", f"sd-inside {part}"):
            assert element.accessible_name, f"{part} without a name"
    assert not [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]
