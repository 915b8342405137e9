"""Components that Gradio does not have, each a gr.HTML with a script of ours.

Images go to the server as data: URLs inside an event and are checked by `limits.decode_image`; Gradio's own upload is
not used.
"""

from pathlib import Path

import gradio as gr

BROWSER = Path(__file__).parent / "browser"
CSS = [BROWSER / "page.css", BROWSER / "inside.css"]
NOTHING_PAINTED = {"image": "", "mask": ""}

DROP = """
<label class="drop">LABEL<input type="file" accept="image/*" aria-label="LABEL" MULTIPLE></label>
<p class="refused" role="alert"></p>
"""
TOOLBAR = """
  <div class="tools" role="toolbar" aria-label="LABEL">
    <label>Brush size <input type="range" min="1" max="40" value="SIZE" aria-label="Brush size"></label>
    <label><input type="checkbox" class="eraser" aria-label="Eraser"> Eraser</label>
    <button type="button" class="undo">Undo</button>
    <button type="button" class="clear">Clear the WHAT</button>
    LAST
  </div>
"""
BOARD = """
<div class="board" hidden>
  <div class="layers">
    <img alt="The image to start from">
    <canvas aria-label="Paint over the part to generate again" role="img"></canvas>
  </div>
  TOOLBAR
  <p class="hint">Paint over the part to change. Without a mask the whole image changes.</p>
</div>
"""
SKETCH = """
<div class="tools"><button type="button" class="paint" aria-expanded="false">Paint one here</button></div>
<div class="board sketch" hidden>
  <div class="layers"><canvas aria-label="CANVAS" role="img"></canvas></div>
  TOOLBAR
  <p class="hint">HINT</p>
</div>
"""

STAGE = """
<div class="stage">
  <p class="lost" role="alert" hidden>The server does not answer. The page tries again until it does.</p>
  <div class="now"><div data-part="head"></div><div data-part="stop"></div></div>
  <div data-part="body"></div>
  <div data-part="queue"></div>
  <div data-part="made"></div>
</div>
"""
GALLERY = """
<div class="gallery" role="group" aria-label="Gallery"></div>
<dialog class="viewer" aria-label="Image">
  <div class="whole"><img alt=""></div>
  <div class="about">
    <p class="count" aria-live="polite"></p>
    <div class="tools">
      <button type="button" class="previous">← Previous</button>
      <button type="button" class="next">Next →</button>
      <button type="button" class="enlarge" aria-pressed="false">Enlarge</button>
      <a class="save" download>Save</a>
      <button type="button" class="delete">Delete</button>
    </div>
    <pre class="settings" tabindex="0" aria-label="Settings of this image"></pre>
    <div class="tools">
      <button type="button" class="use">Use these settings</button>
      <button type="button" class="start">Start from this image</button>
      <button type="button" class="close">Close</button>
    </div>
  </div>
</dialog>
"""


def script(name: str) -> str:
    return (BROWSER / f"{name}.js").read_text(encoding="utf-8")


def head() -> str:
    """Return the HTML for the page's head."""
    return f"<script>{script('feed')}{script('page')}{script('inside')}</script>"


def drop(label: str, multiple: bool = False) -> str:
    return DROP.replace("LABEL", label).replace("MULTIPLE", "multiple" if multiple else "")


def with_toolbar(template: str, label: str, size: int, what: str, last: str) -> str:
    """Return a template with the tools of painting. size: of the brush, in percent. what: is cleared."""
    toolbar = TOOLBAR.strip().replace("LABEL", label).replace("SIZE", str(size)).replace("WHAT", what)
    return template.replace("TOOLBAR", toolbar.replace("LAST", last))


def painter() -> gr.HTML:
    """Return an image input with a mask brush.

    Value: {"image", "mask"}, data: URLs or "". Its `upload` event has the image's width and height, 0 for none.
    """
    remove = '<button type="button" class="remove">Remove the image</button>'
    return gr.HTML(
        NOTHING_PAINTED,
        html_template=drop("Image to start from") + with_toolbar(BOARD, "Mask", 10, "mask", remove),
        js_on_load=script("image_input") + script("brush") + script("painter"),
        elem_classes="painter",
    )


def image_list(label: str, store: str = "photos", sketch: str = "") -> gr.HTML:
    """Return an input for several images. Value: a list of data: URLs. store: where the browser keeps them.

    sketch: the HTML of a board to paint one on, see `paintable_list`.
    """
    scripts = ("image_input", "training_images", *(("brush", "sketch") if sketch else ()))
    return gr.HTML(
        [],
        html_template=drop(label, multiple=True) + sketch + '<ul class="thumbs" aria-label="Chosen images"></ul>',
        js_on_load="".join(map(script, scripts)),
        elem_classes="image-list",
        store=store,
    )


def paintable_list(label: str, store: str, canvas: str, hint: str, size: int) -> gr.HTML:
    """Return an `image_list` to which a person can also add a painting, white on black, of the form's size.

    canvas: the label of the painting. hint: a sentence below it. size: the brush's first width, in percent.
    """
    take = '<button type="button" class="take">Add the painting</button>'
    board = with_toolbar(SKETCH, "Painting", size, "painting", take)
    return image_list(label, store, board.replace("CANVAS", canvas).replace("HINT", hint))


def settings_file() -> gr.HTML:
    """Return an input for an image with settings. Value: a data: URL; its `upload` event has the file's name."""
    return gr.HTML(
        "",
        html_template=drop("Settings from an image"),
        js_on_load=script("image_input") + script("settings_file"),
        elem_classes="settings-file",
    )


def followed(kind: str) -> gr.HTML:
    """Return the panel that follows the page's jobs of a kind, see `sd.web.ui.follow`.

    Its `input` event has the `jobs` that have just ended; `select` has the `job` whose result to try.
    """
    return gr.HTML(html_template=STAGE, js_on_load=script("stage"), elem_classes="followed", kind=kind)


def gallery() -> gr.HTML:
    """Return the gallery.

    Its `select` event has an `image`, "job/file", whose settings to use; `edit` has one to start from.
    """
    return gr.HTML(html_template=GALLERY, js_on_load=script("gallery"), elem_classes="images")


def examples(html: str) -> gr.HTML:
    """Return a text with buttons; its `select` event has the `prompt` on the button that was pressed."""
    return gr.HTML(html, js_on_load=script("examples"), elem_classes="examples")
