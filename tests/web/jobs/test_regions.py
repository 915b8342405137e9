"""Regions through both HTTP APIs: the pipeline's own images, and one sentence on what does not fit."""

import pytest
from PIL import Image
from web_client import base64_of, opened, post

PROMPT = "a garden ADDBASE a cat ADDCOL a dog"
SMALL = {"prompt": PROMPT, "steps": 2, "seed": 7, "width": 64, "height": 64}


def halves():
    masks = [Image.new("L", (64, 64)) for _ in range(2)]
    masks[0].paste(255, (0, 0, 20, 64))
    masks[1].paste(255, (20, 0, 64, 64))
    return masks


def test_masks_ratios_and_share_are_the_pipelines(web, pipe):
    for given in ({"region_ratios": "1,2", "region_base": 0.5}, {"region_masks": halves()}):
        body = given | {"region_masks": [base64_of(one) for one in given.get("region_masks", [])]}
        job = web.ended(web.client.post("/jobs", json=SMALL | body).json())
        assert job["state"] == "done", job["error"]
        made = Image.open(web.jobs.get(job["id"]).file(job["result"]["images"][0]))
        known = {"region_mask" if name == "region_masks" else name: value for name, value in given.items()}
        alone = pipe(**SMALL, **known)
        assert made.tobytes() == alone.images[0].tobytes()
        assert ("Region masks: 2" in job["result"]["infotexts"][0]) == ("region_masks" in given)


def test_the_webuis_api_takes_the_words_in_its_prompt(web):
    answer = post(web, "txt2img", **SMALL, sampler_name="Euler", cfg_scale=5)
    assert opened(answer["images"][0]).size == (64, 64)
    plain = post(web, "txt2img", **SMALL | {"prompt": "a garden"}, sampler_name="Euler", cfg_scale=5)
    assert answer["images"] != plain["images"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"region_masks": 1}, "2 regions and there is 1 region mask"),
        ({"region_ratios": "1,2,3"}, "do not fit"),
        ({"region_ratios": "x"}, "use numbers over 0"),
        ({"region_ratios": "5000,20000"}, "numbers over 0 and up to 10000"),
        ({"prompt": " ADDCOL ".join("a" * 17)}, "the prompt has 17 parts"),
        ({"prompt": " AND ".join("a" * 17)}, "the prompt has 17 parts"),
        ({"negative_prompt": "a ADDROW b"}, "one for the whole image"),
        ({"region_base": 2}, "region_base must be a number from 0 to 1, not 2"),
    ],
)
def test_what_does_not_fit_is_refused_before_it_waits(web, change, said):
    if "region_masks" in change:
        change = {"region_masks": [base64_of(one) for one in halves()[: change["region_masks"]]]}
    answer = web.client.post("/jobs", json=SMALL | change)
    assert answer.status_code == 422, answer.text
    assert said in answer.json()["detail"]
