"""The form over a reload, stored by the browser alone, and the page's id with each press."""

import json
from collections.abc import Callable

import gradio as gr

from sd.web.ui.follow import EVENT


def with_page(kind: str) -> str:
    """Return a script that puts the page's id in place of an event's first value."""
    return f"(_, ...values) => [sd.submitter('{kind}'), ...values]"


def keep_form(page: gr.Blocks, key: str, widgets: dict[str, gr.Component]) -> gr.events.Dependency:
    """Store each change of the widgets and restore them at each load. Returns the load event."""
    names, parts = json.dumps(list(widgets)), list(widgets.values())
    gr.on([part.change for part in parts], None, parts, js=f"(...v) => sd.save('{key}', {names}, v)", **EVENT)
    return page.load(None, parts, parts, js=f"(...v) => sd.restore('{key}', {names}, v)", **EVENT)


def open_used(after: gr.events.Dependency, folds: list[tuple[gr.Accordion, list[gr.Component]]]) -> None:
    """Open, after an event, each accordion with a widget that is not at its default: it takes part in what follows."""
    for accordion, parts in folds:
        defaults = json.dumps([part.value for part in parts])
        after.then(None, parts, accordion, js=f"(...v) => [sd.opened(v, {defaults})]", **EVENT)


def keep_images(restore: Callable[..., gr.events.Dependency], widgets: dict[str, gr.Component]) -> gr.events.Dependency:
    """Restore the images that the widgets' own scripts have stored in this tab, also those in closed sections.

    restore: the listener, such as a page's `load`. widgets: by the keys of their scripts. Returns the event.
    """
    keys, parts = json.dumps(list(widgets)), list(widgets.values())
    return restore(None, parts, parts, js=f"(...v) => {keys}.map((key, i) => sd.stored(key) ?? v[i])", **EVENT)
