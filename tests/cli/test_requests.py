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


def test_plain_words_stay_one_drawing():
    asked = GenerationSettings("a cat", num_images=3, seed=5)
    (drawing,) = expand_request(asked)
    assert drawing.settings.seeds() == asked.seeds()
    assert drawing == GenerationRequest(asked.replace(variation_seed=asked.variation_seed))


def test_each_picture_chooses_by_its_own_seed():
    asked = GenerationSettings("a __animal__", "no __color__", num_images=4, seed=5)
    drawings = expand_request(asked)
    pictures = [(seed, one) for one in drawings for seed in one.settings.seeds()]
    assert [seed for seed, _ in pictures] == [5, 6, 7, 8]
    for seed, one in pictures:
        assert one.settings.prompt == expand_wildcards("a __animal__", seed)
        assert one.settings.negative_prompt == expand_wildcards("no __color__", seed)
        assert one.template == "a __animal__"
        assert one.title == ""
    alone = expand_request(asked.replace(seed=7, num_images=1))
    assert alone[0].settings.prompt == pictures[2][1].settings.prompt


def test_neighbours_with_equal_words_are_drawn_together():
    drawings = expand_request(GenerationSettings("{a|b}", num_images=12, seed=1))
    prompts = [one.settings.prompt for one in drawings]
    assert all(here != there for here, there in pairwise(prompts))
    assert sum(one.settings.num_images for one in drawings) == 12
    assert len(drawings) < 12


def test_variations_of_one_seed_are_of_one_prompt():
    asked = GenerationSettings("{a|b|c|d|e}", num_images=4, seed=1, variation_seed=9, variation_strength=0.2)
    (drawing,) = expand_request(asked)
    assert drawing.settings.seeds() == [1] * 4
    assert drawing.settings.variation_seeds() == [9, 10, 11, 12]


def test_a_writer_gets_the_chosen_words_and_adds_to_the_negative_prompt():
    asked = GenerationSettings("a {red} __animal__", "blur", num_images=1, seed=3)
    (drawing,) = expand_request(asked, lambda idea, seed: EnhancedPrompt(f"{idea}, {seed}", "dogs", "Title", "note."))
    assert drawing.settings.prompt == expand_wildcards("a {red} __animal__", 3) + ", 3"
    assert drawing.settings.negative_prompt == "blur, dogs"
    assert (drawing.title, drawing.note, drawing.template) == ("Title", "note.", "a {red} __animal__")


def test_an_unknown_wildcard_in_either_prompt():
    for settings in (GenerationSettings("__nobody__"), GenerationSettings("a cat", "__nobody__")):
        with pytest.raises(UserError, match="__nobody__"):
            expand_request(settings)


@pytest.mark.parametrize("template", ["a __animal__", 'a "b", c: {d|e}', "two\nlines, and: more\\", "語"])
def test_the_template_in_a_pictures_settings(template):
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
