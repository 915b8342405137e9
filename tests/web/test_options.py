"""The table of options on the page and in both HTTP APIs."""

import gradio as gr
import pytest

from sd.pipeline.settings import OPTIONS
from sd.web.a1111.schema import TextToImage
from sd.web.jobs.api import GenerateBody
from sd.web.jobs.model_index import Models
from sd.web.ui.form import Form

IDS = [row.name for row in OPTIONS]


@pytest.fixture(scope="module")
def form(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    with gr.Blocks():
        return Form(Models(*(folder / name for name in ("weights", "loras", "embeddings"))))


@pytest.mark.parametrize("row", OPTIONS, ids=IDS)
def test_a_widget_has_the_rows_label_and_stays_within_its_bounds(form, row):
    widget = form.widgets[row.name]
    assert widget.label == row.widget.label
    if isinstance(widget, gr.Slider):
        assert row.low is None or widget.minimum >= row.low
        assert row.high is None or widget.maximum <= row.high


@pytest.mark.parametrize("row", OPTIONS, ids=IDS)
def test_our_api_has_the_field_with_its_default(row):
    field = GenerateBody.model_fields[row.name]
    assert field.is_required() if row.name == "prompt" else field.default == row.default


@pytest.mark.parametrize("row", [row for row in OPTIONS if row.a1111], ids=lambda row: row.name)
def test_the_webuis_api_has_the_field_under_its_name(row):
    field = TextToImage.model_fields[row.a1111]
    assert field.default == (row.default if row.a1111_default is None else row.a1111_default)
