"""The page, at /: a tab to draw and a tab to teach. It keeps nothing itself: jobs do, in their folders."""

import gradio as gr
from fastapi import FastAPI

from sd.web.jobs import Jobs
from sd.web.models import Models
from sd.web.page_draw import DrawTab
from sd.web.page_parts import CSS
from sd.web.page_teach import TeachTab

THEME = gr.themes.Base(
    primary_hue="orange",
    neutral_hue="stone",
    radius_size="lg",
    font=["system-ui", "sans-serif"],  # nothing is fetched from elsewhere
    font_mono=["ui-monospace", "monospace"],
)


def build_page(jobs: Jobs, models: Models) -> gr.Blocks:
    with gr.Blocks(title="Stable Diffusion by hand", analytics_enabled=False, fill_width=True) as page:
        with gr.Tab("Draw"):
            draw = DrawTab(jobs, models)
        with gr.Tab("Teach"):
            teach = TeachTab(jobs, models, draw.form)
        draw.connect(page)
        teach.connect(page)
    return page


def mount_page(app: FastAPI, jobs: Jobs, models: Models) -> FastAPI:
    """The app with the page in it, behind whatever stands before the app."""
    return gr.mount_gradio_app(
        app,
        build_page(jobs, models),
        "/",
        theme=THEME,
        css_paths=[CSS],
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        max_file_size=1,  # byte: nothing is uploaded Gradio's way
    )
