"""The webui's selectable scripts: the arguments as clients send them, and the answers."""

import json

import numpy as np
import pytest
from PIL import Image
from web_client import base64_of, opened, post

from sd.pipeline.infotext import parse_infotext
from sd.pipeline.settings import GenerationSettings
from sd.utils.errors import UserError
from sd.web.a1111.scripts import TYPES, apply_script, label_of
from sd.web.jobs.submit import GenerateRequest

SMALL = {"prompt": "a red apple", "steps": 1, "seed": 7, "width": 64, "height": 64}
OFF = [True, False, False, False, False, False, False, 0, False]  # legend, lone images, sub grids, ..., csv mode


def axes_of(args, has_image=False, random_seed=False):
    request = GenerateRequest(GenerationSettings(prompt="a red apple", seed=7), image=b"x" if has_image else None)
    notes = apply_script(request, "x/y/z plot", args, has_image, random_seed)
    return request.axes, notes


def test_types_by_number_are_those_of_the_webui():
    assert [label_of(i, False) for i in (0, 1, 4, 6, 7, 9, 11, 22)] == [
        *("Nothing", "Seed", "Steps", "CFG Scale", "Prompt S/R", "Sampler", "Checkpoint name", "Clip skip"),
    ]
    assert [label_of(i, True) for i in (4, 5, 7, 9, 10)] == [
        *("Steps", "CFG Scale", "Prompt S/R", "Sampler", "Checkpoint name"),
    ]
    assert [len(TYPES[has_image].split("|")) for has_image in (False, True)] == [40, 39]


def test_axes_as_text_and_as_lists():
    axes, notes = axes_of([4, "10-30 (+10)", [], 9, "", ["Euler a", "DDIM"], 0, "", [], *OFF])
    assert axes == ["steps=10, 20, 30", "sampler=Euler a, DDIM", ""]
    assert notes == []
    axes, _ = axes_of(["Prompt S/R", 'red, "pale, green"', None, "Nothing", "", "", 23, "0.5", ""])
    assert axes == ['prompt_sr=red,"pale, green"', "", "hires_strength=0.5"]
    assert axes_of([22, "0.4, 0.6", [], 0, "", [], 0, "", []], has_image=True)[0][0] == "strength=0.4, 0.6"
    # With "Use text inputs instead of dropdowns" the text counts.
    assert axes_of([9, "DDIM", ["Euler"], 0, "", [], 0, "", [], *OFF[:-1], True])[0][0] == "sampler=DDIM"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ([], "9 in all"),
        ([0, "", [], 0, "", [], 99, "", []], "from 0 to 39"),
        ([8, "a, b", [], 0, "", [], 0, "", []], "unknown axis 'Prompt order'"),
        ([4, "many", [], 0, "", [], 0, "", []], None),
        ([4, "1", [], 0, "", [], 0, "", [], True, False, False, True, False, False, False, 0, False], "Keep -1"),
        ([4, "1", [], 0, "", [], 0, "", [], True, False, False, False, True, False, False, 0, False], "Vary seeds"),
    ],
)
def test_what_is_different_here_is_refused(args, said):
    if said is None:
        assert axes_of(args)[0][0] == "steps=many"  # the request as a whole refuses it
        return
    with pytest.raises(UserError, match=said):
        axes_of(args, random_seed=True)


def test_a_grid_is_the_first_image_and_the_others_on_demand(web):
    args = [4, "1, 2", [], 7, "red, green", [], 0, "", []]
    alone = post(web, "txt2img", **SMALL, script_name="X/Y/Z plot", script_args=[*args, *OFF])
    assert len(alone["images"]) == 1
    answer = post(web, "txt2img", **SMALL, script_name="x/y/z plot", script_args=[*args, True, True, *OFF[2:]])
    assert answer["images"][0] == alone["images"][0]
    sheet, *cells = map(opened, answer["images"])
    assert [one.size for one in cells] == [(64, 64)] * 4
    assert sheet.width > 128
    info = json.loads(answer["info"])
    texts = [parse_infotext(text) for text in info["infotexts"]]
    assert [(one["Steps"], one["Prompt"]) for one in texts[1:]] == [
        *(("1", "a red apple"), ("2", "a red apple"), ("1", "a green apple"), ("2", "a green apple")),
    ]
    assert texts[0]["X Values"] == "1, 2"
    assert info["index_of_first_image"] == 1
    plain = post(web, "txt2img", **SMALL | {"prompt": "a green apple", "steps": 2})
    assert np.array_equal(np.asarray(opened(plain["images"][0])), np.asarray(cells[3]))


def test_switches_as_texts_are_read_as_what_they_say(web):
    """As the README of `webuiapi` writes them: "False" is off, and an open seed is fixed for all cells."""
    plain = [4, "1,2", "", 9, "Euler a, LMS", "", 0, "", ""]
    axes, notes = axes_of([*plain, "True", "False", "False", "False", 0], random_seed=True)
    assert axes == ["steps=1, 2", "sampler=Euler a, LMS", ""]
    assert notes == []
    assert axes_of([*plain, "False"])[1] == ["The sheet of a grid always has labels here."]
    with pytest.raises(UserError, match="Keep -1"):
        axes_of([*plain, "True", "False", "False", "True", 0], random_seed=True)
    with pytest.raises(UserError, match="Vary seeds"):
        axes_of([*plain, "True", "False", "False", "False", "False", "True", "False", 0, "False"])
    shared = dict(script_name="X/Y/Z Plot", seed=7)
    for lone, count in (("False", 1), ("True", 5)):
        answer = post(web, "txt2img", **SMALL | shared, script_args=[*plain, "True", lone, "False", "False", 0])
        assert len(answer["images"]) == count


def test_outpainting(web, photo):
    body = {**SMALL, "init_images": [base64_of(photo)], "script_name": "Poor man's outpainting"}
    answer = post(web, "img2img", **body, script_args=[16, 2, 0, ["left", "down"]])
    assert opened(answer["images"][0]).size == (80, 80)
    text = parse_infotext(json.loads(answer["info"])["infotexts"][0])
    found = {label: text[label] for label in ("Outpainting pixels", "Outpainting sides", "Mask blur", "Masked content")}
    assert list(found.values()) == ["16", "left, down", "2", "fill"]


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("txt2img", {"script_name": "X/Y/Z plot", "script_args": [4, "0", [], 0, "", [], 0, "", []]}, "steps"),
        ("txt2img", {"script_name": "X/Y/Z plot", "script_args": [1, "1-65", [], 0, "", [], 0, "", []]}, "64"),
        ("txt2img", {"script_name": "X/Y/Z plot", "script_args": [11, "", ["no"], 0, "", [], 0, "", []]}, "no"),
        (
            "txt2img",
            {"n_iter": 2, "script_name": "X/Y/Z plot", "script_args": [4, "1", [], 0, "", [], 0, "", []]},
            "one image",
        ),
        ("txt2img", {"script_name": "Prompt matrix"}, "use X/Y/Z plot"),
        ("txt2img", {"script_name": "Poor man's outpainting", "script_args": [16]}, "send the request to img2img"),
        ("img2img", {"script_name": "Poor man's outpainting", "script_args": [10]}, "multiple of 8"),
        ("img2img", {"script_name": "Poor man's outpainting", "script_args": [16, 4, 9]}, "from 0 to 3"),
        ("img2img", {"script_name": "Poor man's outpainting", "script_args": [16, 4, 0, ["top"]]}, "'top'"),
        ("img2img", {"script_name": "Poor man's outpainting", "script_args": [16, 4, 0, "left"]}, "give a list"),
        ("img2img", {"script_name": "Poor man's outpainting", "script_args": ["x"]}, "whole number"),
    ],
)
def test_mistakes_are_refused(web, photo, path, body, said):
    images = {"init_images": [base64_of(photo)]} if path == "img2img" else {}
    answer = web.client.post(f"/sdapi/v1/{path}", json={**SMALL, **images, **body})
    assert answer.status_code == 422, answer.text
    assert said in answer.json()["detail"]


def test_a_script_named_none_is_none(web):
    assert len(post(web, "txt2img", **SMALL, script_name="None", script_args=[])["images"]) == 1


def test_the_scripts_are_listed(web):
    assert web.client.get("/sdapi/v1/scripts").json()["txt2img"] == ["x/y/z plot"]


def test_grids_and_outpainting_in_the_own_api(web, photo):
    given = {"prompt": "a red apple", "steps": 1, "seed": 7, "width": 64, "height": 64}
    job = web.ended(web.client.post("/jobs", json={**given, "axes": ["", "seed=3, 4"]}).json())
    assert job["state"] == "done", job["error"]
    assert job["result"]["seeds"] == [3, 3, 4]
    assert job["result"]["images"][0] == job["result"]["sheet"] == "xyz-00000.png"
    answer = web.client.post("/jobs", json={**given, "axes": ["seed=x"]})
    assert (answer.status_code, "whole number" in answer.json()["detail"]) == (422, True)
    image = base64_of(photo)
    job = web.ended(web.client.post("/jobs", json={**given, "image": image, "outpaint": 16}).json())
    with Image.open(web.jobs.folder / job["id"] / job["result"]["images"][0]) as made:
        assert made.size == (96, 96)
    answer = web.client.post("/jobs", json={**given, "outpaint": 16})
    assert (answer.status_code, "extends an image" in answer.json()["detail"]) == (422, True)
