"""The webui's Regional Prompter: a client's arguments give the image of the words that they stand for."""

import json

import pytest
from web_client import post

SMALL = {"steps": 2, "seed": 7, "width": 64, "height": 64}
# As the extension's documentation has a request, with all of its arguments.
ARGS = [True, False, "Matrix", "Columns", "Mask", "Prompt", "1,2", "", False, False, False, "Attention", False, "0"]
ARGS += ["0", "0", "", "0", "0", False]


def body_of(prompt, **changes):
    args = [changes.get(f"at_{i}", value) for i, value in enumerate(ARGS)]
    return SMALL | {"prompt": prompt, "alwayson_scripts": {"Regional Prompter": {"args": args}}}


@pytest.mark.parametrize(
    ("prompt", "changes", "expected"),
    [
        ("a cat BREAK a dog", {}, "a cat ADDCOL a dog"),
        ("a cat BREAK\na dog", {"at_3": "Vertical"}, "a cat ADDROW a dog"),
        ("g BREAK a BREAK b", {"at_8": True, "at_7": "0.4,0.4"}, "g ADDBASE a ADDCOL b"),
        ("g BREAK c BREAK a BREAK b", {"at_8": True, "at_9": True}, "g ADDBASE c ADDCOMM a ADDCOL b"),
        ("a ADDROW b", {}, "a ADDROW b"),
        ("a BREAK b", {"at_0": False}, "a BREAK b"),
    ],
)
def test_its_arguments_become_words(web, prompt, changes, expected):
    info = json.loads(post(web, "txt2img", **body_of(prompt, **changes))["info"])
    assert info["infotexts"][0].split("\nSteps")[0] == expected
    assert ('Region ratios: "1,2"' in info["infotexts"][0]) == (changes.get("at_0", True))
    assert ("Region base ratio: 0.4" in info["infotexts"][0]) == ("at_7" in changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"at_2": "Mask"}, "the mode 'Mask' of the Regional Prompter"),
        ({"at_3": "Random"}, "the division 'Random'"),
        ({"at_6": "1,2,3"}, "do not fit"),
        ({"at_6": "x"}, "use numbers over 0"),
        ({"at_7": "0.2,0.5"}, "use one number"),
    ],
)
def test_what_it_has_and_this_server_has_not_is_refused(web, changes, said):
    answer = web.client.post("/sdapi/v1/txt2img", json=body_of("a cat BREAK a dog", **changes))
    assert answer.status_code == 422, answer.text
    assert said in answer.json()["detail"]
