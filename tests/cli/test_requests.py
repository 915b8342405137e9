from itertools import pairwise

import pytest

from sd.cli.requests import GenerationRequest, expand_request
from sd.pipeline.infotext import parse_infotext, with_setting, write_infotext
from sd.pipeline.settings import GenerationSettings
from sd.prompts.enhance import EnhancedPrompt
from sd.prompts.wildcards import expand_wildcards
from sd.utils.errors import UserError
from sd.utils.files import read_prompts


def test_prompts_from_a_file(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("a cat\n\n  a dög \n", encoding="utf-8")
    assert read_prompts(file) == read_prompts(str(file)) == ["a cat", "a dög"]
    for content in (b"", b" \n\n"):
        file.write_bytes(content)
        with pytest.raises(UserError, match="holds no prompts"):
            read_prompts(file)
    file.write_bytes(b"\x81\xff")
    for path in (file, tmp_path, tmp_path / "nothing.txt"):
        with pytest.raises(UserError, match="cannot read prompts"):
            read_prompts(path)


def test_plain_words_stay_one_request():
    asked = GenerationSettings("a cat", num_images=3, seed=5)
    (request,) = expand_request(asked)
    assert request.settings.seeds() == asked.seeds()
    assert request == GenerationRequest(asked.replace(variation_seed=asked.variation_seed))


def test_each_image_chooses_by_its_own_seed():
    asked = GenerationSettings("a __animal__", "no __color__", num_images=4, seed=5)
    requests = expand_request(asked)
    images = [(seed, one) for one in requests for seed in one.settings.seeds()]
    assert [seed for seed, _ in images] == [5, 6, 7, 8]
    for seed, one in images:
        assert one.settings.prompt == expand_wildcards("a __animal__", seed)
        assert one.settings.negative_prompt == expand_wildcards("no __color__", seed)
        assert one.template == "a __animal__"
        assert one.title == ""
    alone = expand_request(asked.replace(seed=7, num_images=1))
    assert alone[0].settings.prompt == images[2][1].settings.prompt


def test_neighbors_with_equal_words_are_generated_together():
    requests = expand_request(GenerationSettings("{a|b}", num_images=12, seed=1))
    prompts = [one.settings.prompt for one in requests]
    assert all(here != there for here, there in pairwise(prompts))
    assert sum(one.settings.num_images for one in requests) == 12
    assert len(requests) < 12


def test_variations_of_one_seed_are_of_one_prompt():
    asked = GenerationSettings("{a|b|c|d|e}", num_images=4, seed=1, variation_seed=9, variation_strength=0.2)
    (request,) = expand_request(asked)
    assert request.settings.seeds() == [1] * 4
    assert request.settings.variation_seeds() == [9, 10, 11, 12]


def test_a_writer_gets_the_chosen_words_and_adds_to_the_negative_prompt():
    asked = GenerationSettings("a {red} __animal__", "blur", num_images=1, seed=3)
    (request,) = expand_request(asked, lambda idea, seed: EnhancedPrompt(f"{idea}, {seed}", "dogs", "Title", "note."))
    assert request.settings.prompt == expand_wildcards("a {red} __animal__", 3) + ", 3"
    assert request.settings.negative_prompt == "blur, dogs"
    assert (request.title, request.note, request.template) == ("Title", "note.", "a {red} __animal__")


def test_an_unknown_wildcard_in_either_prompt():
    for settings in (GenerationSettings("__nobody__"), GenerationSettings("a cat", "__nobody__")):
        with pytest.raises(UserError, match="__nobody__"):
            expand_request(settings)


@pytest.mark.parametrize("template", ["a __animal__", 'a "b", c: {d|e}', "two\nlines, and: more\\", "語"])
def test_the_template_in_an_images_settings(template):
    text = write_infotext("a cat", "x", {"Steps": 2, "Sampler": "Euler", "Seed": 1, "Version": "sd"})
    longer = with_setting(text, "Template", template)
    found = parse_infotext(longer)
    assert found.pop("Template") == template
    assert found == parse_infotext(text)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_prompt_file_as_windows_saves_it(tmp_path, encoding, end):
    file = tmp_path / "prompts.txt"
    mark = b"\xff\xfe" if encoding == "utf-16-le" else b""
    file.write_bytes(mark + f"a cat{end}a dög{end}".encode(encoding))
    assert read_prompts(file) == ["a cat", "a dög"]
