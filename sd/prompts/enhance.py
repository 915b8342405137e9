"""Prompt enhancement: a short idea to a prompt, a negative prompt and a title, by an LLM or else by a style.

If the LLM fails, a style is applied instead, and a note of one sentence gives the reason.
"""

import csv
import json
import random
import re
import unicodedata
from collections.abc import Callable
from typing import NamedTuple

from sd.adapters.lora_tags import TAG
from sd.prompts.llm import Endpoint, EndpointError, LLMError, chat_completion
from sd.prompts.styles import Style, find_style, styles_for
from sd.prompts.weighting import parse_prompt
from sd.utils.files import DATA

RESPONSE_FORMAT = (
    'Answer every idea with JSON and nothing else: {"prompt": what to draw, "negative_prompt": what to stay away from, '
    'or "", "title": two to five words}. Keep words in <angle brackets> as they are.'
)
LIMITS = {"prompt": 600, "negative_prompt": 600, "title": 80}  # bytes: the longest texts that are accepted
MAX_WEIGHT = 2
MAX_ANSWER = 5_000  # characters at the end of an answer that are searched for JSON
NAME_LENGTH = 40  # characters of at most four bytes: far below the 255 bytes that file systems allow
UNSET = "no chat endpoint is set (OPENAI_BASE_URL or OPENAI_API_KEY, and OPENAI_MODEL)"


class EnhancedPrompt(NamedTuple):
    """A prompt with its negative prompt and title. note: "", or the reason why the LLM did not write it."""

    prompt: str
    negative_prompt: str
    title: str
    note: str = ""


class PromptEnhancer:
    """Enhances prompts. It sends each idea once, and nothing more to an endpoint that has failed.

    style: the name of a style that is applied to every prompt; without one, the seed chooses a style if the LLM fails.
    emoji: the prompts are for the bundled model. Raises UserError for an unknown style.
    """

    def __init__(self, endpoint: Endpoint | None = None, style: str | None = None, emoji: bool = False):
        self.endpoint, self.emoji = endpoint, emoji
        self.style = None if style is None else find_style(style)
        self.why_not = UNSET
        self.answers: dict[str, EnhancedPrompt | LLMError] = {}

    def __call__(self, idea: str, seed: int = 0) -> EnhancedPrompt:
        """Returns the enhanced prompt of one image. It never raises for an error of the endpoint."""
        if idea not in self.answers:
            self.answers[idea] = self.ask_endpoint(idea)
        answer = self.answers[idea]
        if isinstance(answer, LLMError):
            style = self.style or choose_style(styles_for(self.emoji), seed)
            title = " ".join(TAG.sub("", idea).split()[:8])
            return EnhancedPrompt(*style.apply(idea), title, f"{answer}, so a style is applied instead.")
        if self.style is None:
            return answer
        return EnhancedPrompt(*self.style.apply(answer.prompt, answer.negative_prompt), answer.title)

    def ask_endpoint(self, idea: str) -> EnhancedPrompt | LLMError:
        """Returns the answer of the endpoint, or the error in its place."""
        if self.endpoint is None:
            return LLMError(self.why_not)
        try:
            answer = parse_answer(
                chat_completion(self.endpoint, build_messages(TAG.sub("", idea), self.style, self.emoji))
            )
        except LLMError as error:
            if isinstance(error, EndpointError):
                self.endpoint, self.why_not = None, str(error)
            return error
        return answer._replace(prompt=answer.prompt + "".join(tag[0] for tag in TAG.finditer(idea)))


def enhance_prompt(
    idea: str, endpoint: Endpoint | None = None, seed: int = 0, style: str | None = None, emoji: bool = False
) -> EnhancedPrompt:
    """Enhances one idea; see `PromptEnhancer`."""
    return PromptEnhancer(endpoint, style, emoji)(idea, seed)


def apply_style(name: str) -> Callable[[str, int], EnhancedPrompt]:
    """Returns a function that applies one style, without an LLM. Raises UserError for an unknown style."""
    style = find_style(name)
    return lambda idea, seed: EnhancedPrompt(*style.apply(idea), title="")


def choose_style(styles: list[Style], seed: int) -> Style:
    return styles[int(random.Random(seed).random() * len(styles))] if styles else Style("", "", "")


def build_messages(idea: str, style: Style | None, emoji: bool) -> list[dict[str, str]]:
    """Returns the messages: the task, examples as earlier turns, and the idea."""
    guide = json.loads((DATA / "prompt_examples.json").read_text(encoding="utf-8"))["emoji" if emoji else "general"]
    task = [guide["task"], RESPONSE_FORMAT] + ([f"The list: {', '.join(read_emoji_names())}."] if emoji else [])
    messages = [{"role": "system", "content": "\n".join(task)}]
    for example in guide["examples"]:
        answer = {name: example[name] for name in LIMITS}
        messages.append({"role": "user", "content": example["idea"]})
        messages.append({"role": "assistant", "content": json.dumps(answer, ensure_ascii=False)})
    if style is not None:
        idea += f"\n(Leave out style and medium: your prompt is put into {style.prompt!r}.)"
    return [*messages, {"role": "user", "content": idea}]


def read_emoji_names() -> list[str]:
    """Returns the names in the bundled model's training data."""
    with (DATA / "emoji_names.tsv").open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        return [row["name"] for row in rows if row["world"] == "small" and row["held out"] != "name"]


def parse_answer(text: str) -> EnhancedPrompt:
    """Parses the last JSON object of an LLM's answer. Raises LLMError where it cannot be used."""
    answer = find_last_object(text[-MAX_ANSWER:])
    if answer is None:
        start = to_one_line(text)[:60]
        raise LLMError(f"the chat model answered no JSON but {start!r}" if start else "the chat model answered nothing")
    fields = {"negative_prompt": ""} | answer
    for name, limit in LIMITS.items():
        if not isinstance(fields.get(name), str):
            raise LLMError(f"the chat model's answer has no {name}")
        fields[name] = to_one_line(fields[name])
        if len(fields[name].encode()) > limit:
            raise LLMError(f"the chat model's {name} is too long")
    written = EnhancedPrompt(*(fields[name] for name in LIMITS))
    if not (written.prompt and written.title):
        raise LLMError("the chat model's answer is empty")
    if not all(is_plain(part) for part in written[:2]):
        raise LLMError("the chat model's answer has LoRA tags or extreme weights")
    return written


def find_last_object(text: str) -> dict | None:
    """Returns the last {...} in a text that is JSON; models write their reasoning before it, or fences around it."""
    decoder, found, place = json.JSONDecoder(strict=False), None, text.find("{")
    while place >= 0:
        try:
            found, place = decoder.raw_decode(text, place)
        except (ValueError, RecursionError):
            place += 1
        place = text.find("{", place)
    return found


def to_one_line(text: str) -> str:
    """Returns the printable characters in one line; a line break would end the prompt in infotext."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def is_plain(prompt: str) -> bool:
    """Returns whether a prompt has no LoRA tag and no weight outside (0, 2]; a BREAK counts as one below 0."""
    return not TAG.search(prompt) and all(0 < weight <= MAX_WEIGHT for _, weight in parse_prompt(prompt))


def file_name(title: str) -> str:
    """Returns a title as a file name: letters and digits of any script, joined by hyphens. Never empty."""
    words = re.sub(r"[\W_]+", "-", unicodedata.normalize("NFKC", title).lower())
    return words[:NAME_LENGTH].strip("-") or "picture"
