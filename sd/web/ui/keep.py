"""The form over a reload, kept by the browser alone; and the page's own name with each press."""

import json

import gradio as gr

from sd.web.ui.follow import EVENT


def with_page(kind: str) -> str:
    """A script that puts the page's own name in place of an event's first value."""
    return f"(_, ...values) => [sd.ask('{kind}'), ...values]"


def keep_form(page: gr.Blocks, key: str, widgets: dict[str, gr.Component]) -> gr.events.Dependency:
    """Each change of a widget is kept, each load fills them again. Returns the load, to be followed by more."""
    names, parts = json.dumps(list(widgets)), list(widgets.values())
    gr.on([part.change for part in parts], None, parts, js=f"(...v) => sd.keep('{key}', {names}, v)", **EVENT)
    return page.load(None, parts, parts, js=f"(...v) => sd.kept('{key}', {names}, v)", **EVENT)


def keep_images(page: gr.Blocks, key: str, widget: gr.HTML) -> None:
    """Each load fills in the images that the widget's own script has kept in this tab, without the server."""
    page.load(None, widget, widget, js=f"(value) => [sd.stored('{key}') ?? value]", **EVENT)
