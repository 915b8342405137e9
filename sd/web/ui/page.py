"""The page at /, with tabs to generate, to look inside and to train. All state is in the jobs' folders."""

import gradio as gr
from fastapi import FastAPI

from sd.web.jobs.model_index import Models
from sd.web.jobs.queue import Jobs
from sd.web.problems import add_error_handlers
from sd.web.ui.components import CSS, head
from sd.web.ui.follow import page_router
from sd.web.ui.gate import Page, PageGate
from sd.web.ui.generate_tab import GenerateTab
from sd.web.ui.keep import keep_images
from sd.web.ui.look_tab import LookTab
from sd.web.ui.train_tab import TrainTab

TITLE = "Stable Diffusion by hand"
HEADING = f"""
<h1>{TITLE}</h1>
<p>Generate images from text, start from an image of yours, or train a model on a few images.
<a href="docs" target="_blank" rel="noopener">HTTP API</a> · <a href="live">Generate in this browser</a></p>
"""
THEME = gr.themes.Base(
    primary_hue="orange",
    neutral_hue="stone",
    radius_size="lg",
    font=["system-ui", "sans-serif"],  # nothing is fetched from elsewhere
    font_mono=["ui-monospace", "monospace"],
)


def mount_page(app: FastAPI, jobs: Jobs, models: Models) -> FastAPI:
    """Mount the page into the app and return the app."""
    with Page(title=TITLE, analytics_enabled=False, fill_width=True) as page:
        gr.HTML(HEADING, elem_classes="heading")
        with gr.Tabs() as tabs:
            with gr.Tab("Generate", id="generate"):
                generate_tab = GenerateTab(jobs, models)
            with gr.Tab("Look inside", id="look") as look:
                look_tab = LookTab(jobs, models, generate_tab.form)
            with gr.Tab("Train", id="train"):
                train_tab = TrainTab(jobs, models, generate_tab.form)
        generate_tab.connect(page)
        look_tab.connect(look)
        train_tab.connect(page, tabs)
        keep_images(page.load, {"photos": train_tab.images})
    followed = [tab.followed for tab in (generate_tab, look_tab, train_tab)]
    app.include_router(page_router(jobs, followed, generate_tab.gallery.html))
    app = gr.mount_gradio_app(
        app,
        page,
        "/",
        theme=THEME,
        css_paths=CSS,
        head=head(),
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        max_file_size=1,  # byte: nothing is uploaded Gradio's way
    )
    mounted = app.routes[-1]  # the page takes every address that the API does not have
    add_error_handlers(mounted.app)
    mounted.app = PageGate(mounted.app, page)
    return app
