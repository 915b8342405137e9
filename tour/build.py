"""The builder: makes the figures of the chapters with the bundled model, and then all pages.

Each figure is drawn in one thread, so its bytes do not depend on the number of cores; several processes share the
chapters. `stale_pages` compares the pages with the chapters, the code and the figures' numbers without drawing.
"""

import json
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from pkgutil import iter_modules

from sd.utils.errors import UserError
from tour import figures
from tour.figure import Figure, FigureFunction, Models, reproducible
from tour.html import NAME, draw_html, read_html_data, render_html
from tour.pages import PAGES, Chapter, figure_homes, read_chapters, render_pages

MOST_PROCESSES = 4  # each loads the model, 0.5 GB


def find_figures() -> dict[str, FigureFunction]:
    """Return {name: function} of all modules in `tour/figures/`. Raises UserError for a name used twice."""
    found: dict[str, FigureFunction] = {}
    for module in iter_modules(figures.__path__, f"{figures.__name__}."):
        for name, function in getattr(import_module(module.name), "FIGURES", {}).items():
            if name in found:
                raise UserError(f"{module.name} has a second figure {name}: choose another name.")
            found[name] = function
    return found


def make_figure(name: str, models: Models) -> Figure:
    """Draw one figure, in one thread and without gradients. Raises UserError for an unknown name."""
    known = find_figures()
    if name not in known:
        raise UserError(f"no module of tour/figures has a figure {name}; choose from {', '.join(sorted(known))}.")
    with reproducible():
        return known[name](models)


def write_figure(figure: Figure, stem: str, folder: Path = PAGES) -> None:
    """Write a figure's PNG, of the smallest size that loses nothing, and its JSON, one key a line."""
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    figure.image.convert("RGB").save(folder / "figures" / f"{stem}.png", optimize=True)
    numbers = ",\n".join(f"  {json.dumps(key)}: {json.dumps(shorten(it))}" for key, it in figure.numbers.items())
    text = f'{{\n "alt": {json.dumps(figure.alt, ensure_ascii=False)},\n "numbers": {{\n{numbers}\n }}\n}}\n'
    (folder / "figures" / f"{stem}.json").write_text(text, encoding="utf-8")


def shorten(value):
    """Round a number, or the numbers of nested lists, to four digits, which differ less often between machines."""
    if isinstance(value, (list, tuple)):
        return [shorten(one) for one in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def draw_chapter(chapter: Chapter, homes: dict[str, str], folder: Path = PAGES) -> str:
    """Draw and write the figures that have their home in a chapter; return the chapter's name."""
    models = Models()
    for name in chapter.figures:
        if homes[name].startswith(f"{chapter.number:02}-"):
            write_figure(make_figure(name, models), homes[name], folder)
    return chapter.name


def draw_chapters(numbers: list[int], report: Callable[[str], None], folder: Path = PAGES) -> None:
    """Draw the figures of some chapters (all if empty). Raises UserError for a number without a chapter."""
    chapters = read_chapters()
    known = [chapter.number for chapter in chapters]
    if wrong := [number for number in numbers if number not in known]:
        raise UserError(f"there is no chapter {wrong[0]}; choose from {', '.join(map(str, known))}.")
    chosen = [one for one in chapters if one.figures and (not numbers or one.number in numbers)]
    homes = figure_homes(chapters)
    processes = min(len(chosen), os.cpu_count() or 1, MOST_PROCESSES)
    if processes <= 1:
        for chapter in chosen:
            report(draw_chapter(chapter, homes, folder))
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        html = [] if numbers else [pool.submit(draw_html, folder)]  # the page to play with, which takes the longest
        for done in [*html, *(pool.submit(draw_chapter, chapter, homes, folder) for chapter in chosen)]:
            report(done.result())


def all_pages(folder: Path = PAGES) -> dict[str, str]:
    """Return {file name: text} of all pages, the one to play with among them where it has been made."""
    html = {NAME: render_html(read_html_data(folder))} if (folder / NAME).is_file() else {}
    return {**render_pages(folder), **html}


def write_pages(folder: Path = PAGES) -> list[str]:
    """Write all pages; return the names of those that changed."""
    pages = all_pages(folder)
    changed = [name for name, text in pages.items() if current_text(folder / name) != text]
    for name in changed:
        (folder / name).write_text(pages[name], encoding="utf-8")
    return changed


def stale_pages(folder: Path = PAGES) -> list[str]:
    """Return the names of the pages that are missing or differ from what would be written now."""
    return [name for name, text in all_pages(folder).items() if current_text(folder / name) != text]


def current_text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None
