"""The pages of the tour: from a chapter's text with placeholders to Markdown with figures, numbers and code.

    {{figure NAME}}                     the image of the figure, with its description
    {{value NAME KEY .2f}}              a number of the figure; KEY may end in [0] or [2][1]; the format is optional
    {{code sd/denoiser.py Guidance}}    the source of a function, class or constant, with a link to its lines
    {{exercise 04}}                     links to the exercise of chapter 4 and to its test, and the command that runs it
    {{chapters}}                        on the contents page: the list of all chapters

A page needs the figures' JSON files and not their images, so it is made again in a moment.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from sd.utils.errors import UserError
from tour.source import ROOT, source_of

CHAPTERS = Path(__file__).resolve().parent / "chapters"
PAGES = ROOT / "docs" / "tour"
EXERCISES = PAGES / "exercises"
PLACEHOLDER = re.compile(r"\{\{(\w+)((?: [^{}]+)?)\}\}")
FIGURE = re.compile(r"\{\{figure (\w+)\}\}")


class Chapter(NamedTuple):
    """A chapter: its number (1 …), its name ("01-noise"), its title, its text, and the figures that it shows."""

    number: int
    name: str
    title: str
    text: str
    figures: tuple[str, ...]


def read_chapters() -> list[Chapter]:
    """Read all chapters, in their order. Raises UserError for one without a title or with a number used twice."""
    chapters = []
    for path in sorted(CHAPTERS.glob("[0-9][0-9]-*.md")):
        text = path.read_text(encoding="utf-8")
        if not text.startswith("# "):
            raise UserError(f"{path.name} has no title: begin it with a line such as # What is a noisy image?")
        title, number = text.split("\n", 1)[0].removeprefix("# "), int(path.name[:2])
        if chapters and chapters[-1].number == number:
            raise UserError(f"{path.name} and {chapters[-1].name}.md have the same number: rename one of them.")
        chapters.append(Chapter(number, path.stem, title, text, tuple(dict.fromkeys(FIGURE.findall(text)))))
    return chapters


def figure_homes(chapters: list[Chapter]) -> dict[str, str]:
    """Return {figure: the stem of its files}: "02-one_step" for the figure that chapter 2 is the first to show."""
    homes: dict[str, str] = {}
    for chapter in chapters:
        for name in chapter.figures:
            homes.setdefault(name, f"{chapter.number:02}-{name}")
    return homes


def read_figure(stem: str, folder: Path = PAGES) -> dict[str, Any]:
    """Read a figure's JSON: {"alt": description, "numbers": {key: number}}. Raises UserError where it is missing."""
    path = folder / "figures" / f"{stem}.json"
    if not path.is_file():
        raise UserError(f"the figure {stem} has not been made: run python scripts/tour.py --chapters {int(stem[:2])}.")
    return json.loads(path.read_text(encoding="utf-8"))


class Page:
    """Fills the placeholders of one text. homes: see `figure_homes`. folder: where the figures' JSON files are."""

    def __init__(self, chapters: list[Chapter], folder: Path = PAGES):
        self.chapters, self.homes, self.folder = chapters, figure_homes(chapters), folder

    def fill(self, text: str) -> str:
        """Return the text with all placeholders filled. Raises UserError for one that cannot be."""
        return PLACEHOLDER.sub(lambda found: self.replacement(found[1], found[2].split()), text)

    def replacement(self, kind: str, words: list[str]) -> str:
        makers: dict[str, Callable[..., str]] = {
            "figure": self.figure,
            "value": self.value,
            "code": self.code,
            "exercise": self.exercise,
            "chapters": self.contents,
        }
        if kind not in makers:
            raise UserError(f"unknown placeholder {{{{{kind}}}}}; choose from {', '.join(makers)}.")
        try:
            return makers[kind](*words)
        except TypeError as error:
            raise UserError(
                f"the placeholder {{{{{' '.join([kind, *words])}}}}} has the wrong parts: {error}."
            ) from error

    def stem_of(self, name: str) -> str:
        if name not in self.homes:
            raise UserError(f"no chapter shows a figure {name}: write {{{{figure {name}}}}} where it belongs.")
        return self.homes[name]

    def figure(self, name: str) -> str:
        stem = self.stem_of(name)
        return f"![{read_figure(stem, self.folder)['alt']}](figures/{stem}.png)"

    def value(self, name: str, key: str, form: str = "") -> str:
        numbers = read_figure(self.stem_of(name), self.folder)["numbers"]
        first, *places = re.findall(r"[^\[\]]+", key)
        try:
            value = numbers[first]
            for place in places:
                value = value[int(place)]
            return format(value, form)
        except (KeyError, IndexError, ValueError) as error:
            known = ", ".join(numbers)
            raise UserError(f"the figure {name} has no number {key} for {form or 'text'}: it has {known}.") from error

    def code(self, path: str, name: str) -> str:
        text, first, last = source_of(path, name)
        return f"```python\n{text}\n```\n\n[{path}, lines {first} to {last}](../../{path}#L{first}-L{last})"

    def exercise(self, number: str) -> str:
        """Return the sentence on a chapter's exercise; a chapter whose exercise is not written says so."""
        found = sorted(EXERCISES.glob(f"{number}_*.py"))
        if not found:
            return "This chapter has no exercise yet."
        name, test = found[0].name, f"test_{found[0].name}"
        return (
            f"Fill in [exercises/{name}](exercises/{name}) and run its [test](exercises/{test}):\n\n"
            f"```\npython -m pytest docs/tour/exercises -k {number}\n```"
        )

    def contents(self) -> str:
        return "\n".join(f"{one.number}. [{one.title}]({one.name}.md)" for one in self.chapters)

    def chapter(self, chapter: Chapter) -> str:
        """Return a chapter's page, with its number in the title and links to its neighbors at the end."""
        text = chapter.text.replace("# ", f"# {chapter.number}. ", 1).rstrip("\n")
        place = self.chapters.index(chapter)
        links = ["[Contents](README.md)"]
        if place > 0:
            links.insert(0, f"[Back: {self.chapters[place - 1].title}]({self.chapters[place - 1].name}.md)")
        if place + 1 < len(self.chapters):
            links.append(f"[Next: {self.chapters[place + 1].title}]({self.chapters[place + 1].name}.md)")
        made = f"<!-- Made by scripts/tour.py from tour/chapters/{chapter.name}.md: change that file. -->"
        return f"{made}\n{self.fill(text)}\n\n---\n\n{' | '.join(links)}\n"


def render_pages(folder: Path = PAGES) -> dict[str, str]:
    """Return {file name: text} of all pages in `docs/tour/`, from the chapters, the code and the figures' numbers."""
    chapters = read_chapters()
    page = Page(chapters, folder)
    pages = {f"{chapter.name}.md": page.chapter(chapter) for chapter in chapters}
    made = "<!-- Made by scripts/tour.py from tour/chapters/README.md: change that file. -->"
    contents = (CHAPTERS / "README.md").read_text(encoding="utf-8")
    return {"README.md": f"{made}\n{page.fill(contents)}", **pages}
