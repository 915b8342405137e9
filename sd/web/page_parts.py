"""The parts of the page that Gradio has not: each a gr.HTML with a script of ours. Pictures go to the server as data:
URLs inside an event, where `limits.decode_picture` judges them; nothing is uploaded Gradio's way.
"""

from pathlib import Path

import gradio as gr

BROWSER = Path(__file__).parent / "browser"
CSS = BROWSER / "page.css"
NOTHING_PAINTED = {"picture": "", "mask": ""}

DROP = """
<label class="drop">LABEL<input type="file" accept="image/*" aria-label="LABEL" MANY></label>
<p class="refused" role="alert"></p>
"""
BOARD = """
<div class="board" hidden>
  <div class="layers">
    <img alt="The picture to start from">
    <canvas aria-label="Paint over what is to be drawn anew"></canvas>
  </div>
  <div class="tools">
    <label>Brush <input type="range" min="1" max="40" value="10" aria-label="Brush"></label>
    <button type="button" class="clear">Clear the mask</button>
    <button type="button" class="remove">Remove the picture</button>
  </div>
  <p class="hint">Paint over what is to be drawn anew, or draw over all of it.</p>
</div>
"""


def script(name: str) -> str:
    return (BROWSER / f"{name}.js").read_text(encoding="utf-8")


def drop(label: str, many: bool = False) -> str:
    return DROP.replace("LABEL", label).replace("MANY", "multiple" if many else "")


def painter() -> gr.HTML:
    """Value: {"picture", "mask"}, data: URLs or "". `upload` tells the picture's width and height."""
    return gr.HTML(
        NOTHING_PAINTED,
        html_template=drop("Picture to start from") + BOARD,
        js_on_load=script("read_picture") + script("painter"),
        elem_classes="painter",
    )


def pictures(label: str) -> gr.HTML:
    """Value: a list of data: URLs."""
    return gr.HTML(
        [],
        html_template=drop(label, many=True) + '<ul class="thumbs" aria-label="Pictures given"></ul>',
        js_on_load=script("read_picture") + script("pictures"),
        elem_classes="pictures",
    )


def settings_file() -> gr.HTML:
    """Value: a data: URL, told by `upload`."""
    return gr.HTML(
        "",
        html_template=drop("Settings from a picture"),
        js_on_load=script("read_picture") + script("settings_file"),
        elem_classes="settings-file",
    )


def shown(name: str) -> gr.HTML:
    """Value: HTML. `select` tells the `picture`, "job/file", of a button in it that was pressed."""
    return gr.HTML(js_on_load=script("pick"), elem_classes=name)
