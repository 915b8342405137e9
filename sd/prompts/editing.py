"""Prompts that change while an image is generated, in the syntax of AUTOMATIC1111's webui.

    [a:b:10]     a up to step 10, then b; 10 without a point is a step, 0.4 or 1. with a point a share of the steps
    [a::10]      a up to step 10, then nothing
    [b:10]       nothing up to step 10, then b; also written [:b:10]
    [a|b|c]      a, b and c in turns, one step each
    a AND b:0.7  two prompts, of weights 1 and 0.7, whose guidance is summed

They nest. Steps are counted as the webui counts them: one for each evaluation of the model, which samplers of second
order do twice in a step. Emphasis, as in (a:1.2) and [a], stays in the text for `weighting.py`. A bracket that belongs
to none of these is text; a prompt with a `|` outside of [a|b], or a backslash that escapes nothing, has no meaning in
time, and is left as it is, whole.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

TOKEN = re.compile(r"(?P<plain>(?:[^\\\[\]():|]|\\.)+)|(?P<mark>[\[\]():|])")
NUMBER = re.compile(r"\s*([+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)\s*")
AND = re.compile(r"\bAND\b")
WEIGHT = re.compile(r"\s*([-+]?(?:\d+\.?|\d*\.\d+))\s*")
CLOSERS = {"(": ")", "[": "]"}


@dataclass
class Scheduled:
    """A scheduled text: `before` up to and including step `when`, then `after`."""

    before: list
    after: list
    when: str | int


@dataclass
class Alternate:
    """Alternating texts: one of `options` at each step, the first one at step 1."""

    options: list[list]


@dataclass
class Group:
    """An open bracket at the place `start` of its parent's content, and what follows it, split at the marks."""

    bracket: str
    start: int = 0
    segments: list[list] = field(default_factory=lambda: [[]])
    marks: list[str] = field(default_factory=list)

    def content(self) -> list:
        """Return all pieces in order, with the marks as text."""
        pieces = list(self.segments[0])
        for mark, segment in zip(self.marks, self.segments[1:]):
            pieces += [mark, *segment]
        return pieces


def parse_edits(prompt: str) -> list | None:
    """Return the prompt's pieces: texts, `Scheduled` and `Alternate`, whose parts are such lists themselves.

    None means a prompt that the webui's grammar does not contain.
    """
    groups = [Group("")]  # the prompt itself, and the brackets that are open
    place = 0
    while place < len(prompt):
        match = TOKEN.match(prompt, place)
        if match is None:
            return None  # a backslash at the end, or before the end of a line
        place = match.end()
        text, group = match[0], groups[-1]
        if match.lastgroup == "plain":
            group.segments[-1].append(text)
        elif text in CLOSERS:
            groups.append(Group(text))
        elif text in ")]":
            close_group(groups, text)
        else:
            group.marks.append(text)
            group.segments.append([])
    while len(groups) > 1:
        dissolve_group(groups)
    return None if "|" in groups[0].marks else groups[0].content()


def close_group(groups: list[Group], closer: str) -> None:
    """Close the innermost bracket; where it is of the other kind, every open bracket is text."""
    if CLOSERS.get(groups[-1].bracket) != closer:
        while len(groups) > 1:
            dissolve_group(groups)
        groups[0].segments[-1].append(closer)
        return
    group = groups[-1]
    node = edit_of(group)
    if node is None:  # these brackets are text, and then so are those around them, which contain what is no edit
        while len(groups) > 1:
            dissolve_group(groups)
        groups[0].segments[-1].append(closer)
        return
    groups.pop()
    groups[-1].segments[-1] += node


def dissolve_group(groups: list[Group]) -> None:
    """Make the innermost open bracket text, and its content its parent's."""
    group = groups.pop()
    parent = groups[-1]
    parent.segments[-1] += [group.bracket, *group.segments[0]]
    parent.marks += group.marks
    parent.segments += group.segments[1:]


def edit_of(group: Group) -> list | None:
    """Return the pieces that a pair of brackets expands to, or None where it has no meaning."""
    marks, segments = group.marks, group.segments
    if group.bracket == "(":
        return ["(", *group.content(), ")"] if marks in ([], [":"]) else None
    if not marks:
        return ["[", *segments[0], "]"]
    if set(marks) == {"|"}:
        return [Alternate(segments)]
    if marks not in ([":"], [":", ":"]) or not all(isinstance(piece, str) for piece in segments[-1]):
        return None
    number = NUMBER.fullmatch("".join(segments[-1]))
    return [Scheduled(segments[0] if len(marks) == 2 else [], segments[-2], number[1])] if number else None


def schedule_prompt(prompt: str, steps: int, first_pass_steps: int = 0) -> list[tuple[int, str]]:
    """List (last step, text) in order: the text that is used up to and including that step; the last step is `steps`.

    steps: evaluations of the model, counted from 1; some samplers have two in a step. first_pass_steps: in a second
    pass, those of the first one: numbers of steps count on from there, and shares from 1. Never raises.
    """
    pieces = parse_edits(prompt)
    if pieces is None:
        return [(steps, prompt)]
    ends = {steps}
    for node in iterate_nodes(pieces):
        if isinstance(node, Alternate):
            ends |= set(range(1, steps + 1))
        else:
            node.when = step_of(str(node.when), steps, first_pass_steps)
            ends |= {node.when} if node.when >= 1 else set()
    return [(end, text_at(pieces, end)) for end in sorted(ends)]


def iterate_nodes(pieces: list) -> Iterator[Scheduled | Alternate]:
    """Yield every `Scheduled` and `Alternate`, nested ones too."""
    waiting = list(pieces)
    while waiting:
        node = waiting.pop()
        if isinstance(node, Scheduled):
            waiting += [*node.before, *node.after]
            yield node
        elif isinstance(node, Alternate):
            waiting += [piece for option in node.options for piece in option]
            yield node


def step_of(number: str, steps: int, first_pass_steps: int) -> int:
    """Return the step that a number in a prompt means, at most `steps`; with a point it is a share of them."""
    value = float(number)
    if "." in number:
        value = (value - (1.0 if first_pass_steps else 0.0)) * steps
    else:
        value -= first_pass_steps
    return int(min(max(value, -1), steps))


def text_at(pieces: list, step: int) -> str:
    """Return the prompt's text at a step, counted from 1."""
    found, waiting = [], list(reversed(pieces))
    while waiting:
        node = waiting.pop()
        if isinstance(node, str):
            found.append(node)
        elif isinstance(node, Scheduled):
            waiting += reversed(node.before if step <= int(node.when) else node.after)
        else:
            waiting += reversed(node.options[(step - 1) % len(node.options)])
    return "".join(found)


def index_at(ends: list[int], evaluation: int) -> int:
    """Return which entry of a schedule the webui uses at an evaluation, counted from 0, so that step 0 is one more."""
    return next((i for i, end in enumerate(ends) if evaluation <= end), 0)


def split_prompts(prompt: str) -> list[tuple[str, float]]:
    """Split a prompt at the word AND into (text, weight); a weight is a number behind a part's last colon, or 1.

    >>> split_prompts("a cat AND a dog:0.5")
    [('a cat', 1.0), (' a dog', 0.5)]
    """
    found = []
    for part in AND.split(prompt):
        text, colon, tail = part.rpartition(":")
        number = WEIGHT.fullmatch(tail) if colon else None
        found.append((text.rstrip(), float(number[1])) if number else (part.rstrip(), 1.0))
    return found
