"""Ideas to prompts: by a chat model on loopback, good and bad, and by a style."""

import json
from dataclasses import replace

import pytest
from chat_server import GOOD, ChatServer, drop, says, send, silent, status

from sd.prompts.enhance import (
    DATA,
    LIMITS,
    EnhancedPrompt,
    LLMError,
    PromptEnhancer,
    build_messages,
    enhance_prompt,
    file_name,
    parse_answer,
    read_emoji_names,
)
from sd.prompts.styles import find_style, read_styles, styles_for
from sd.prompts.weighting import CHUNK, MAX_CHUNKS
from sd.utils.errors import UserError

ANSWER = EnhancedPrompt(GOOD["prompt"], GOOD["negative_prompt"], GOOD["title"])


def test_a_good_answer():
    with ChatServer(says(GOOD)) as server:
        assert enhance_prompt("something sour", server.endpoint) == ANSWER
        asked = server.asked[0]["messages"]
    assert asked[-1] == {"role": "user", "content": "something sour"}
    assert [message["role"] for message in asked] == ["system", *["user", "assistant"] * (len(asked) // 2 - 1), "user"]


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(GOOD),
        f"```json\n{json.dumps(GOOD, indent=2)}\n```",
        f"Sure! Here is your prompt:\n\n{json.dumps(GOOD)}\n\nEnjoy {{it}}!",
        f'<think>perhaps {{"prompt": "a cat", "title": "Cat"}}? no.</think>{json.dumps(GOOD)}',
        "{ hm " * 10_000 + json.dumps(GOOD),
        json.dumps([GOOD]),
        json.dumps(GOOD | {"note": {"deep": [1]}}),
        json.dumps(GOOD).replace("a lemon on", "a\u200b\tlemon\n\n on"),
        json.dumps(GOOD | {"prompt": "a\nlemon\x00 on a\x1b table, soft\ud800 light"}),
    ],
)
def test_answers_are_read_leniently(text):
    assert parse_answer(text) == ANSWER


def test_a_negative_prompt_may_be_left_out():
    assert parse_answer('{"prompt": "a cat", "title": "Cat"}') == EnhancedPrompt("a cat", "", "Cat")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "nothing"),
        ("I'm sorry, I can't help with that.", "I'm sorry"),
        ("{'prompt': 'a cat'}", "no JSON"),
        ('{"prompt": "a cat", "title": "Cat"', "no JSON"),
        ("[1, 2]", "no JSON"),
        ('{"a":' * 5000, "no JSON"),
        ('{"error": "no"}', "no prompt"),
        ('{"prompt": "a cat"}', "no title"),
        ('{"prompt": ["a cat"], "title": "Cat"}', "no prompt"),
        ('{"prompt": null, "title": "Cat"}', "no prompt"),
        ('{"prompt": "a cat", "negative_prompt": 1, "title": "Cat"}', "no negative_prompt"),
        ('{"prompt": " \\n ", "title": "Cat"}', "empty"),
        ('{"prompt": "a cat", "title": ""}', "empty"),
        (json.dumps(GOOD | {"prompt": "x" * 601}), "prompt is too long"),
        (json.dumps(GOOD | {"prompt": "語" * 201}), "prompt is too long"),
        (json.dumps(GOOD | {"negative_prompt": "x" * 601}), "negative_prompt is too long"),
        (json.dumps(GOOD | {"title": "x" * 81}), "title is too long"),
        (json.dumps(GOOD | {"prompt": "a cat <lora:nobody:1>"}), "LoRA tags or extreme weights"),
        (json.dumps(GOOD | {"negative_prompt": "<lora:../../x:1>"}), "LoRA tags or extreme weights"),
        (json.dumps(GOOD | {"prompt": "(a cat:1000)"}), "LoRA tags or extreme weights"),
        (json.dumps(GOOD | {"prompt": "a cat BREAK a dog"}), "LoRA tags or extreme weights"),
    ],
)
def test_answers_are_checked_strictly(text, said):
    with pytest.raises(LLMError, match=said) as caught:
        parse_answer(text)
    assert len(str(caught.value)) < 150
    assert "\n" not in str(caught.value)


def test_no_answer_is_too_long_to_be_generated():
    # A token is at least one byte. A chunk may be cut 20 tokens short; a style and a few tags come on top.
    longest = max(len(style.prompt.encode()) for style in read_styles().values())
    assert LIMITS["prompt"] + longest < (CHUNK - 20) * MAX_CHUNKS


@pytest.mark.parametrize(
    ("behave", "said"),
    [
        (silent, "within 0.5 s"),
        (drop, "cannot be reached"),
        (status(401), "key"),
        (status(500), "500"),
        (says("no JSON"), "no JSON"),
        (says(None, refusal="I cannot."), "refused"),
        (lambda handler: send(handler, 200, b"{}"), "protocol"),
    ],
)
def test_whatever_fails_the_style_stands_in_with_one_sentence(behave, said):
    with ChatServer(behave) as server:
        endpoint = replace(server.endpoint, timeout=0.5 if behave is silent else 30)
        written = enhance_prompt("a lighthouse at dusk", endpoint, style="watercolor")
    style = find_style("watercolor")
    assert written[:3] == (*style.apply("a lighthouse at dusk"), "a lighthouse at dusk")
    assert said in written.note
    assert written.note.endswith(", so a style is applied instead.")
    assert "\n" not in written.note


def test_without_an_endpoint_the_seed_chooses_the_style():
    made = [enhance_prompt("a cat", seed=seed) for seed in range(40)]
    assert made == [enhance_prompt("a cat", seed=seed) for seed in range(40)]
    assert {one[:2] for one in made} <= {style.apply("a cat") for style in styles_for(emoji=False)}
    assert len({one[:2] for one in made}) > 10
    assert "no chat endpoint is set" in made[0].note
    for seed in range(10):
        assert enhance_prompt("a cat", seed=seed, emoji=True).prompt.endswith(("emoji", "fxemoji"))


def test_each_idea_is_asked_for_once():
    with ChatServer(says(GOOD)) as server:
        write = PromptEnhancer(server.endpoint)
        assert [write("a", 1), write("a", 2), write("b", 3)] == [ANSWER] * 3
        assert len(server.asked) == 2


def test_a_bad_answer_costs_one_idea_and_a_dead_endpoint_is_left_alone():
    with ChatServer(says("no JSON")) as server:
        write = PromptEnhancer(server.endpoint)
        assert write("a").note
        server.behave = says(GOOD)
        assert write("a").note
        assert write("b") == ANSWER
        server.behave = status(500)
        assert "500" in write("c").note
        assert "500" in write("d").note
        assert len(server.asked) == 3


def test_a_style_around_an_answer():
    with ChatServer(says(GOOD)) as server:
        written = enhance_prompt("something sour", server.endpoint, style="ink drawing")
        assert "ink drawing of {prompt}" in server.asked[0]["messages"][-1]["content"]
    assert written[:2] == find_style("ink drawing").apply(*ANSWER[:2])
    assert written.title == "Lemon"


def test_an_unknown_style_is_said_before_anything_is_asked():
    with pytest.raises(UserError, match="unknown style"):
        enhance_prompt("a cat", style="nothing")


def test_tags_of_adapters_are_kept_from_the_model_and_put_back():
    with ChatServer(says(GOOD)) as server:
        written = enhance_prompt("<nils> eats<lora:sour:0.8>", server.endpoint)
        assert server.asked[0]["messages"][-1]["content"] == "<nils> eats"
    assert written.prompt == GOOD["prompt"] + "<lora:sour:0.8>"
    assert "<lora:sour:0.8>" in enhance_prompt("a cat <lora:sour:0.8>").prompt
    assert enhance_prompt("a cat <lora:sour:0.8>").title == "a cat"


def test_the_bundled_model_is_asked_for_in_its_own_words():
    names = set(read_emoji_names())
    assert {"red apple", "the sun".removeprefix("the ")} <= names
    assert "poodle" not in names  # held out: it has never seen one
    assert "red apple" in build_messages("x", None, emoji=True)[0]["content"]
    assert "red apple" not in build_messages("x", None, emoji=False)[0]["content"]


@pytest.mark.parametrize("guide", ["general", "emoji"])
def test_our_examples_would_be_accepted(guide):
    examples = json.loads((DATA / "prompt_examples.json").read_text(encoding="utf-8"))[guide]["examples"]
    for example in examples:
        parse_answer(json.dumps(example))


def test_the_emoji_examples_are_names_and_styles_of_that_model():
    guide = json.loads((DATA / "prompt_examples.json").read_text(encoding="utf-8"))["emoji"]
    for example in guide["examples"]:
        name, style = example["prompt"].split(", ")
        assert name.removeprefix("a ").removeprefix("an ") in read_emoji_names()
        assert style in {one.prompt.removeprefix("{prompt}, ") for one in styles_for(emoji=True)}


@pytest.mark.parametrize(
    ("title", "name"),
    [
        ("Kitchen in the morning", "kitchen-in-the-morning"),
        ("../../etc/passwd", "etc-passwd"),
        ("/absolute", "absolute"),
        ("C:\\x", "c-x"),
        (".hidden", "hidden"),
        ("a\x00b\nc", "a-b-c"),
        ("Ünïcode 語 Ⅷ", "ünïcode-語-viii"),
        ("🍋", "picture"),
        ("", "picture"),
        ("..", "picture"),
        ("snake_case - x", "snake-case-x"),
        ("x" * 100, "x" * 40),
        ("語" * 80, "語" * 40),
    ],
)
def test_a_title_as_a_file_name(title, name):
    assert file_name(title) == name
    assert len(f".{name}-00000.png.part".encode()) < 143  # the shortest limit of a file system in use (eCryptfs)
