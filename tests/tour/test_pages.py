"""The tour's pages are what the chapters, the code and the figures' numbers make; no measured number is typed."""

import json
import re

import pytest
from PIL import Image

from sd.utils.errors import UserError
from tour.build import find_figures, stale_pages
from tour.pages import CHAPTERS, PAGES, PLACEHOLDER, Chapter, Page, figure_homes, read_chapters, render_pages

CHAPTER_LIST = read_chapters()
HOMES = figure_homes(CHAPTER_LIST)
# Decimal numbers that no figure measures: constants of the code and of papers, and arithmetic on them.
CONSTANTS = {
    "0.18215": "sd.vae.LATENT_SCALE",
    "0.13025": "SDXL's factor, in its own configuration",
    "14.6": "the largest sigma, a constant of the schedule",
    "5.49": "1 / 0.18215",
    "5.5": "1 / 0.18215",
    "4.5": "half of the difference of the two epsilons, in millionths",
    "1.5": "Stable Diffusion 1.5",
    "0.6": "the largest value of a figure's colors",
    "0.9": "a weight, rounded up in the text, that follows from the JSON file",
}


def prose(text: str) -> str:
    """A chapter's text without placeholders, code and links."""
    text = PLACEHOLDER.sub("", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    return re.sub(r"`[^`]*`|\]\([^)]*\)|section \d\.\d", "", text)


def test_no_page_is_stale():
    assert not stale_pages(), "run python scripts/tour.py --text"


def test_every_figure_of_the_code_is_shown_and_every_file_belongs_to_one():
    assert set(HOMES) == set(find_figures())
    files = {path.name for path in (PAGES / "figures").iterdir()}
    assert files == {f"{stem}.{ending}" for stem in HOMES.values() for ending in ("png", "json")}


@pytest.mark.parametrize("name", HOMES)
def test_a_figure_has_an_image_a_description_and_numbers(name):
    stored = json.loads((PAGES / "figures" / f"{HOMES[name]}.json").read_text(encoding="utf-8"))
    assert len(stored["alt"]) > 30
    assert stored["numbers"]
    with Image.open(PAGES / "figures" / f"{HOMES[name]}.png") as image:
        assert image.mode == "RGB"
        assert image.width <= 1000  # pixels: wider ones are reduced on GitHub, and their labels with them
        assert not image.info  # no time stamp, so that the same pixels are the same bytes


@pytest.mark.parametrize("chapter", CHAPTER_LIST, ids=lambda chapter: chapter.name)
def test_a_chapter_has_its_parts_and_is_short(chapter):
    assert chapter.title.endswith("?")
    assert chapter.text.index("**") < 200, "the answer comes first"
    for part in ("{{figure ", "{{code ", "## Change this and look", "{{exercise", "## Where to read on"):
        assert part in chapter.text
    assert 500 <= len(prose(chapter.text).split()) <= 1200


@pytest.mark.parametrize("chapter", CHAPTER_LIST[:6], ids=lambda chapter: chapter.name)
def test_measured_numbers_come_from_the_figures(chapter):
    assert set(re.findall(r"\d+\.\d+", prose(chapter.text))) <= set(CONSTANTS)


def test_placeholders_are_filled():
    for name, text in render_pages().items():
        assert "{{" not in text, name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{{figure nothing}}", "no chapter shows a figure nothing"),
        ("{{value one_step}}", "wrong parts"),
        ("{{value noisy_latents nothing .2f}}", "has no number nothing"),
        ("{{value noisy_latents sigmas[99] .2f}}", "has no number"),
        ("{{code sd/schedule.py nothing}}", "has no nothing"),
        ("{{code sd/nothing.py add_noise}}", "file not found"),
        ("{{picture one}}", "unknown placeholder"),
    ],
)
def test_a_wrong_placeholder_is_named(text, message):
    with pytest.raises(UserError, match=message):
        Page(CHAPTER_LIST).fill(text)


def test_values_are_formatted_and_indexed(tmp_path):
    (tmp_path / "figures").mkdir()
    numbers = {"one": 0.256, "rows": [[1.0, 2.5], [3.0]], "word": "apple"}
    (tmp_path / "figures" / "01-some.json").write_text(json.dumps({"alt": "An apple.", "numbers": numbers}))
    page = Page([Chapter(1, "01-x", "X?", "# X?\n{{figure some}}", ("some",))], tmp_path)
    text = "{{figure some}} {{value some one .0%}} {{value some rows[0][1] .1f}} {{value some word}}"
    assert page.fill(text) == "![An apple.](figures/01-some.png) 26% 2.5 apple"


def test_the_contents_list_every_chapter():
    contents = (PAGES / "README.md").read_text(encoding="utf-8")
    for chapter in CHAPTER_LIST:
        assert f"[{chapter.title}]({chapter.name}.md)" in contents
    assert {path.stem for path in CHAPTERS.glob("*.md")} == {"README", *(one.name for one in CHAPTER_LIST)}
