"""Prompts in time against a grammar in lark, written here from the webui's description, and by example."""

import random
import re

import pytest

from sd.prompts.editing import index_at, parse_edits, schedule_prompt, split_prompts

GRAMMAR = r"""
!start: (text | BRACKET)*
text: (weighted | edited | turns | WORDS | SPACE)*
!weighted: "[" text "]" | "(" text (":" text)? ")"
edited: "[" (first ":")? second ":" SPACE? SIGNED_NUMBER SPACE? "]"
first: text
second: text
turns: "[" text ("|" text)+ "]"
BRACKET: /[\[\]():]/
SPACE: /\s+/
WORDS: /(\\.|[^\\:|()\[\]])+/
%import common.SIGNED_NUMBER
"""


@pytest.fixture(scope="module")
def parser():
    lark = pytest.importorskip("lark")
    return lark.Lark(GRAMMAR, parser="earley")


def by_grammar(parser, prompt, steps, first_pass_steps=0):
    """The schedule by lark's tree: another parser, and recursion in place of our lists."""
    import lark

    try:
        tree = parser.parse(prompt)
    except lark.exceptions.LarkError:
        return [(steps, prompt)]

    def step(node):
        number = next(one for one in node.children if isinstance(one, lark.Token) and one.type == "SIGNED_NUMBER")
        if "." in number:
            return min(steps, int((float(number) - bool(first_pass_steps)) * steps))
        return min(steps, int(float(number) - first_pass_steps))

    def render(node, now):
        if isinstance(node, lark.Token):
            return str(node)
        if node.data == "edited":
            parts = {one.data: one for one in node.children if isinstance(one, lark.Tree)}
            chosen = parts.get("first") if now <= step(node) else parts["second"]
            return render(chosen, now) if chosen else ""
        if node.data == "turns":
            return render(node.children[(now - 1) % len(node.children)], now)
        return "".join(render(one, now) for one in node.children)

    ends = {steps}
    for node in tree.iter_subtrees():
        if node.data == "turns":
            ends |= set(range(1, steps + 1))
        if node.data == "edited" and step(node) >= 1:
            ends.add(step(node))
    return [(end, render(tree, end)) for end in sorted(ends)]


EXAMPLES = [
    ("test", [(10, "test")]),
    ("", [(10, "")]),
    ("a [b:3]", [(3, "a "), (10, "a b")]),
    ("a [b: 3]", [(3, "a "), (10, "a b")]),
    ("a [b:3 ]", [(3, "a "), (10, "a b")]),
    ("a [:b:3]", [(3, "a "), (10, "a b")]),
    ("a [b::3]", [(3, "a b"), (10, "a ")]),
    ("a [[[b]]:2]", [(2, "a "), (10, "a [[b]]")]),
    ("[(a:2):3]", [(3, ""), (10, "(a:2)")]),
    ("a [b : c : 1] d", [(1, "a b  d"), (10, "a  c  d")]),
    ("a[b:[c:d:2]:1]e", [(1, "abe"), (2, "ace"), (10, "ade")]),
    ("a [unbalanced", [(10, "a [unbalanced")]),
    ("a [b:.5] c", [(5, "a  c"), (10, "a b c")]),
    ("((a][:b:c [d:3]", [(3, "((a][:b:c "), (10, "((a][:b:c d")]),
    ("[fe|]male", [(n, "female" if n % 2 else "male") for n in range(1, 11)]),
    ("[a|(b:1.1)]", [(n, "a" if n % 2 else "(b:1.1)") for n in range(1, 11)]),
    ("a | b [c:d:0.5]", [(10, "a | b [c:d:0.5]")]),
    ("a \\[b:3\\]", [(10, "a \\[b:3\\]")]),
    ("[a:b]", [(10, "[a:b]")]),
    ("[a:b:c]", [(10, "[a:b:c]")]),
    ("[a:b:1.0]", [(10, "a")]),
    ("[a:b:-3]", [(10, "b")]),
    ("[a:b:0]", [(10, "b")]),
    ("[a:b:1e1]", [(10, "a")]),
    ("[a:b:99]", [(10, "a")]),
    ("(a [b:c:4]:1.3)", [(4, "(a b:1.3)"), (10, "(a c:1.3)")]),
    ("a trailing \\", [(10, "a trailing \\")]),
]


@pytest.mark.parametrize(("prompt", "expected"), EXAMPLES)
def test_examples(prompt, expected, parser):
    assert schedule_prompt(prompt, 10) == expected
    assert by_grammar(parser, prompt, 10) == expected


def random_edits(rng, depth=0):
    """A prompt that the grammar contains, by its own rules."""
    kinds = ["word", "word", "space"] + (["weight", "weak", "edit", "turns"] if depth < 3 else [])
    pieces = []
    for _ in range(rng.randint(0, 3)):
        kind = rng.choice(kinds)
        inner = [random_edits(rng, depth + 1) if depth < 3 else "" for _ in range(3)]
        number = rng.choice(["3", "0.5", " 7", ".25 ", "1.", "-2", "+4", "12", "2e0", "1.5e-1"])
        pieces.append(
            {
                "word": rng.choice(["cat", "a dog", "\\(", "\\|", "x,y", "1.5", "red\n"]),
                "space": rng.choice([" ", "  ", "\n"]),
                "weight": rng.choice([f"({inner[0]})", f"({inner[0]}:1.3)"]),
                "weak": f"[{inner[0]}]",
                "edit": rng.choice([f"[{inner[0]}:{inner[1]}:{number}]", f"[{inner[0]}:{number}]"]),
                "turns": rng.choice([f"[{inner[0]}|{inner[1]}]", f"[{'|'.join(inner)}]"]),
            }[kind]
        )
    return "".join(pieces)


# The first few are quick; all 11,000 take a minute, most of it in lark's Earley parser.
@pytest.mark.parametrize("prompts", [300, pytest.param(4000, marks=pytest.mark.slow)])
def test_random_edits_equal_the_grammars(parser, prompts):
    rng = random.Random(0)
    edited = 0
    for _ in range(prompts):
        prompt = random_edits(rng)
        if len(prompt) > 200:
            continue
        found = schedule_prompt(prompt, 8)
        assert found == by_grammar(parser, prompt, 8), prompt
        edited += len(found) > 1
    assert edited > prompts / 5


@pytest.mark.parametrize("prompts", [700, pytest.param(7000, marks=pytest.mark.slow)])
def test_random_characters_equal_the_grammars(parser, prompts):
    """Unbalanced brackets, stray marks and backslashes: what is text here is text there."""
    rng = random.Random(1)
    for _ in range(prompts):
        prompt = "".join(
            rng.choices(["[", "]", "(", ")", ":", "|", "\\", "a", "b ", "2", "0.5", "\n"], k=rng.randint(1, 14))
        )
        assert schedule_prompt(prompt, 5) == by_grammar(parser, prompt, 5), prompt


def test_a_second_pass_counts_on(parser):
    for prompt in ("[a:b:1.5]", "[a:b:0.5]", "[a:b:13]", "[a:b:3]", "[a|b]"):
        assert schedule_prompt(prompt, 6, 10) == by_grammar(parser, prompt, 6, 10)
    assert schedule_prompt("[a:b:1.5]", 6, 10) == [(3, "a"), (6, "b")]
    assert schedule_prompt("[a:b:13]", 6, 10) == [(3, "a"), (6, "b")]
    assert schedule_prompt("[a:b:0.5]", 6, 10) == [(6, "b")]


@pytest.mark.parametrize(
    "prompt",
    ["[" * 5000, "[a:" * 3000 + "1]" * 3000, "(" * 3000 + ")" * 3000, "[a|" * 2000 + "]" * 2000, "[a:b:1e999]"],
)
def test_nothing_raises(prompt):
    assert schedule_prompt(prompt, 3)[-1][0] == 3


def test_nested_edits_are_as_deep_as_they_are_written():
    (edit,) = parse_edits("[a:[b:[c:d:3]:2]:1]")
    assert (edit.before, edit.when, edit.after[0].when, edit.after[0].after[0].after) == (["a"], "1", "2", ["d"])


def test_the_first_text_is_used_at_one_evaluation_more():
    """The webui counts evaluations from 0 and takes the first entry whose last step is not below the count."""
    ends = [end for end, _ in schedule_prompt("[a:b:3]", 10)]
    assert [index_at(ends, evaluation) for evaluation in range(10)] == [0, 0, 0, 0, 1, 1, 1, 1, 1, 1]
    assert index_at(ends, 11) == 0  # past the end, which a sampler with more evaluations reaches


# The webui's own expression for a part of an AND prompt, without its exponential alternation.
WEIGHT = re.compile(r"^(.*?)(?:\s*:\s*([-+]?(?:\d+\.?|\d*\.\d+)))?\s*$", re.DOTALL)


def test_parts_and_their_weights():
    assert split_prompts("a cat AND a dog:0.5 AND  b : -1. ") == [("a cat", 1.0), (" a dog", 0.5), ("  b", -1.0)]
    assert split_prompts("BRAND ANDY and") == [("BRAND ANDY and", 1.0)]
    assert split_prompts("(a:1.2) AND [b:c:0.3]") == [("(a:1.2)", 1.0), (" [b:c:0.3]", 1.0)]
    assert split_prompts("") == [("", 1.0)]


def test_random_parts_are_split_as_one_expression_does():
    rng = random.Random(2)
    for _ in range(5000):
        prompt = "".join(
            rng.choices(["a", " ", ":", "1", ".", "-", "+", " AND ", "AND", "0.5", "\n", "("], k=rng.randint(0, 12))
        )
        expected = [WEIGHT.search(part).groups() for part in re.split(r"\bAND\b", prompt)]
        assert split_prompts(prompt) == [(text, 1.0 if weight is None else float(weight)) for text, weight in expected]
