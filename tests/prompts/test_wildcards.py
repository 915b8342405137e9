import sys

import pytest

from sd.prompts.wildcards import WILDCARDS, expand_wildcards, read_lines, wildcard_files
from sd.utils.errors import UserError


@pytest.fixture
def folder(tmp_path):
    files = {
        "pet": "\ufeffcat\n\n# no wolf\ndog\n",
        "size": "big\nsmall\n",
        "one": "a __size__ __pet__ in {a box|__mine/place__}\n",
        "mine/place": "a tree\n",
        "circle": "__circle__\n",
        "more": "__more__ __more__\n",
        "empty": "# nothing\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.txt").write_text(text, encoding="utf-8")
    return tmp_path


def test_equal_seeds_choose_the_same_and_others_choose_anew():
    prompt = "a __color__ __animal__ {in|near} __place__"
    made = [expand_wildcards(prompt, seed) for seed in range(20)]
    assert made == [expand_wildcards(prompt, seed) for seed in range(20)]
    assert len(set(made)) == 20
    assert not any("_" in text or "{" in text for text in made)


def test_what_a_seed_chooses_is_fixed_for_good(folder):
    # Written down once: an image's template and seed must give its prompt in later versions too.
    made = [expand_wildcards("__pet__ {1|2|3} __size__", seed, folder) for seed in (0, 1, 2, 2**63 - 1)]
    assert made == ["dog 3 big", "dog 1 small", "dog 3 big", "dog 1 small"]


def test_every_choice_comes_up_about_equally_often(folder):
    cats = sum(expand_wildcards("__pet__", seed, folder) == "cat" for seed in range(1000))
    assert 420 < cats < 580  # 500 with a standard deviation of 16, and five of those to spare


def test_notes_empty_lines_and_byte_order_marks_are_no_choices(folder):
    assert read_lines("pet", folder) == ["cat", "dog"]


def test_files_and_braces_nest(folder):
    sizes, pets, places = ("big", "small"), ("cat", "dog"), ("a box", "a tree")
    possible = {f"a {size} {pet} in {place}" for size in sizes for pet in pets for place in places}
    assert {expand_wildcards("__one__", seed, folder) for seed in range(200)} == possible
    assert {expand_wildcards("{a{1|2}|{b|c}}", seed, folder) for seed in range(200)} == {"a1", "a2", "b", "c"}


def test_each_mention_chooses_for_itself(folder):
    made = {expand_wildcards("__pet____pet__", seed, folder) for seed in range(50)}
    assert made == {"catcat", "catdog", "dogcat", "dogdog"}


@pytest.mark.parametrize(
    "prompt", ["", "a (red:1.3) apple", "a {b} c", "snake_case", "a __ b __ c", "{", "}{", "[a|b]", "<lora:a_b:1>"]
)
def test_a_prompt_without_any_is_untouched(prompt, folder):
    assert expand_wildcards(prompt, 1, folder) == prompt


def test_empty_choices_are_allowed(folder):
    assert {expand_wildcards("a{| red} apple", seed, folder) for seed in range(20)} == {"a apple", "a red apple"}


@pytest.mark.parametrize("name", ["nobody", "../secret", "mine/../pet", "/etc/passwd", "pet.txt", "mine"])
def test_an_unknown_name_is_answered_with_those_that_exist(name, folder):
    (folder.parent / "secret.txt").write_text("secret")
    with pytest.raises(UserError, match="mine/place, more, one, pet, size"):
        expand_wildcards(f"a __{name}__", 1, folder)


@pytest.mark.parametrize("name", ["circle", "more", "empty"])
def test_files_without_an_end_or_a_line(name, folder):
    with pytest.raises(UserError, match=name):
        expand_wildcards(f"__{name}__", 1, folder)


def test_no_files_at_all(tmp_path):
    with pytest.raises(UserError, match="there are no files"):
        expand_wildcards("__x__", 1, tmp_path / "nowhere")


def test_hostile_braces_take_no_time(folder):
    # Seconds, if the pattern went back over them; the test's own time-out would say so.
    assert expand_wildcards("{" * 5000, 1, folder) == "{" * 5000
    assert expand_wildcards("{" + "|" * 9000, 1, folder) == "{" + "|" * 9000
    assert expand_wildcards("{" * 2000 + "a|a" + "}" * 2000, 1, folder)


@pytest.mark.parametrize("name", sorted(wildcard_files()))
def test_our_own_files_hold_good_lines(name):
    lines = read_lines(name)
    assert len(set(lines)) == len(lines) > 1
    for line in lines:
        assert "__" not in expand_wildcards(line, 1)  # whatever it names exists


def test_our_own_names_for_the_bundled_model_are_names_that_it_has_learned():
    from sd.prompts.enhance import read_emoji_names

    known = set(read_emoji_names())
    for name in ("animal", "face", "food", "plant", "sky", "thing", "vehicle"):
        assert set(read_lines(name)) <= known, WILDCARDS / name


@pytest.fixture
def library():
    return pytest.importorskip("dynamicprompts")


def every(prompt, folder, seeds=60):
    made = [expand_wildcards(prompt, seed, folder) for seed in range(seeds)]
    assert made == [expand_wildcards(prompt, seed, folder) for seed in range(seeds)]
    return set(made)


@pytest.mark.parametrize(
    ("prompt", "possible"),
    [
        ("{2$$a|b}", {"a,b", "b,a"}),
        ("{2$$ and $$a|b}", {"a and b", "b and a"}),
        ("{1-2$$ and $$a|b}", {"a", "b", "a and b", "b and a"}),
        ("{0::a|1::b} {c}", {"b c"}),
        ("a __mine/*__ and __p*t__", {"a a tree and cat", "a a tree and dog"}),
        ("${x=!{a|b}}${x} ${x}", {"a a", "b b"}),
        ("{@a|b}", {"a", "b"}),
        ("{!a|b}", {"a", "b"}),
        ("{2$$a|{b|c}}", {"a,b", "a,c", "b,a", "c,a"}),
        ("{2$$ and $$__pet__}", {"cat and dog", "dog and cat"}),
        ("(a:1.2) <lora:x:0.8> [b::0.5] {1$$c}", {"(a:1.2) <lora:x:0.8> [b::0.5] c"}),
    ],
)
def test_the_rest_of_dynamic_prompts_grammar(library, folder, prompt, possible):
    assert every(prompt, folder) == possible


def test_weights_are_honored(library, folder):
    made = [expand_wildcards("{3::a|1::b}", seed, folder) for seed in range(1000)]
    assert 680 < made.count("a") < 820  # 750 with a standard deviation of 14, and five of those to spare


def test_grammar_in_a_file_is_read_too(library, folder):
    (folder / "two.txt").write_text("{2$$a|b}\n")
    assert every("x __two__", folder) == {"x a,b", "x b,a"}


@pytest.mark.parametrize("prompt", ["{2$$a|b", "${nobody}", "{1$$a} __nobody__", "__no*body__", "{2$$__circle__}"])
def test_grammar_that_cannot_be_read_never_reaches_the_model(library, folder, prompt):
    with pytest.raises(UserError):
        expand_wildcards(prompt, 1, folder)


def test_without_the_library_a_sentence_says_how_to_get_it(monkeypatch, folder):
    monkeypatch.setitem(sys.modules, "dynamicprompts.generators", None)
    with pytest.raises(UserError, match="pip install -r requirements-prompts"):
        expand_wildcards("{2$$a|b}", 1, folder)
    assert expand_wildcards("{a|a}", 1, folder) == "a"


def test_comments_are_no_part_of_a_prompt(folder):
    assert expand_wildcards("a cat\n# a note {a|b}\n  # another\non a mat", 1, folder) == "a cat\non a mat"
    for prompt in ("#1 dad", "# one line", "a\n#1 dad"):
        assert expand_wildcards(prompt, 1, folder) == prompt


@pytest.mark.parametrize(
    "prompt", ["cost: $5 {a|a}", "50%{a|a}", "{a:1.2|a:1.2}", "(a::2)", "__a b*c__ {x|x}", "C++ {::a|::a}"]
)
def test_what_only_resembles_the_grammar_needs_no_library(monkeypatch, folder, prompt):
    monkeypatch.setitem(sys.modules, "dynamicprompts.generators", None)
    assert "{" not in expand_wildcards(prompt, 1, folder)
