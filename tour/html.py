"""docs/tour/tour.html: the tour's page to play with, one file that asks no other host for anything.

Its viewer is that of the web page's tab "Look inside" (sd/web/ui/browser/inside.js and inside.css); its data are two
traces and the paths of some samplers, made with the bundled model. `render_html` keeps the data and writes the rest
anew, so that a change of the viewer or of a chapter's title needs no model.
"""

import json
import math
import re
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from sd.pipeline.sampler_names import ALL_SAMPLERS
from sd.pipeline.settings import GenerationSettings
from sd.pipeline.trace import Trace
from sd.pipeline.tracing.document import plane, trace_document
from sd.utils.errors import UserError
from tour.figure import GUIDANCE, Models, reproducible
from tour.pages import PAGES, read_chapters

NAME = "tour.html"
PROMPTS = ("a red apple, fluent 3d emoji", "a cat face, noto emoji")
SEED, STEPS = 7, 20
PATHS = {"euler": 40, "dpmpp_2m": 10, "heun": 10, "ddpm": 10, "euler_a": 10, "lcm": 4}  # sampler: steps
DATA = re.compile(r'<script type="application/json" id="data">(.*?)</script>', re.DOTALL)
MAX_BYTES = 3_000_000
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>The guided tour: a run of Stable Diffusion, step by step</title>
<link rel="icon" href="data:,">
<style>
:root { color-scheme: light dark; --background-fill-primary: #fff; --body-text-color: #1c1917; }
:root.dark {
  --background-fill-primary: #14110f; --body-text-color: #f5f5f4; --border-color-primary: #44403c;
}
body {
  max-width: 1180px; margin: 0 auto; padding: 16px; font: 16px/1.5 system-ui, sans-serif;
  background: var(--background-fill-primary); color: var(--body-text-color);
}
a { color: inherit; }
VIEWER_CSS
</style>
<script>
const dark = matchMedia("(prefers-color-scheme: dark)");
const follow = () => document.documentElement.classList.toggle("dark", dark.matches);
dark.addEventListener("change", follow);
follow();
</script>
</head>
<body>
<main>
<h1>A run of Stable Diffusion, step by step</h1>
<p>Two prompts, generated from the same noise by this project's code and its bundled model. Move the slider, hover over
a word, change the guidance. The tab “Look inside” of the web page (<code>make app</code>) shows the same of your own
prompt, and <a href="README.md">the chapters</a> say why it is so:</p>
<ol>CHAPTERS</ol>
<sd-inside data-inline="data"></sd-inside>
</main>
<script type="application/json" id="data">DATA</script>
<script>VIEWER_JS</script>
</body>
</html>
"""


def make_html_data(models: Models) -> dict[str, Any]:
    """Return {"traces", "samplers"}: what the page shows."""
    with reproducible():
        return {"traces": [trace_of(models, prompt) for prompt in PROMPTS], "samplers": sampler_paths(models)}


def trace_of(models: Models, prompt: str) -> dict[str, Any]:
    """Return the document of a trace of the bundled model, with what words change at every step."""
    trace = Trace(extra_share=math.inf)
    settings = GenerationSettings(prompt, seed=SEED, steps=STEPS, sampler="dpmpp_2m", guidance_scale=GUIDANCE)
    output = models.pipe.generate(settings, trace=trace)
    return trace_document(trace, output.latents, output.images[0], prompt, output.infotexts[0])


def sampler_paths(models: Models) -> dict[str, Any]:
    """Return the paths of x_t, scaled to unit variance, of several samplers from the same noise, in one plane."""
    paths = {}
    for name, steps in PATHS.items():
        latent, taken = models.steps(models.denoiser(PROMPTS[0]), SEED, steps, name)
        paths[name] = torch.cat([*(one.x / math.sqrt(1 + one.sigma**2) for one in taken), latent])
    points = plane(list(paths.values()))
    series = [
        {"name": f"{ALL_SAMPLERS[name].label}, {PATHS[name]} steps", "points": one} for name, one in zip(paths, points)
    ]
    hint = (
        f"The latents of “{PROMPTS[0]}” from one noise, in the plane in which they lie furthest apart. The many small "
        "steps of the first one follow the true path closely. Samplers that add noise leave it and end elsewhere."
    )
    return {"title": "The paths of samplers", "hint": hint, "series": series}


def render_html(data: str) -> str:
    """Return the page around its data, a JSON text."""
    browser = files("sd.web.ui.browser")
    links = [f'<li><a href="{one.name}.md">{escape(one.title)}</a></li>' for one in read_chapters()]
    parts = {
        "VIEWER_CSS": browser.joinpath("inside.css").read_text(encoding="utf-8"),
        "CHAPTERS": "\n".join(links),
        "VIEWER_JS": browser.joinpath("inside.js").read_text(encoding="utf-8"),
        "DATA": data.replace("<", "\\u003c"),  # no text of a prompt ends the script
    }
    return re.sub("|".join(parts), lambda found: parts[found[0]], PAGE)


def read_html_data(folder: Path = PAGES) -> str:
    """Return the JSON text in the page as it is. Raises UserError where there is none."""
    path = folder / NAME
    found = DATA.search(path.read_text(encoding="utf-8")) if path.is_file() else None
    if found is None:
        raise UserError(f"{NAME} has not been made: run python scripts/tour.py without --text.")
    return found[1]


def draw_html(folder: Path = PAGES) -> str:
    """Make the data with the bundled model and write the page; return its name. Raises UserError if it is too large."""
    text = render_html(json.dumps(make_html_data(Models()), ensure_ascii=False, separators=(",", ":")))
    if len(text.encode()) > MAX_BYTES:
        raise UserError(f"{NAME} has over {MAX_BYTES} bytes: use fewer steps.")
    (folder / NAME).write_text(text, encoding="utf-8")
    return NAME
