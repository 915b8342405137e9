"""An idea to a prompt, a negative prompt and a title: by a chat model, or else by a style.

Whatever goes wrong with the chat model, there is something to draw, and one sentence that says what it was.
"""

import csv
import json
import random
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from sd.adapters.lora_tags import TAG
from sd.prompts.llm import Endpoint, EndpointError, LLMError, chat_completion
from sd.prompts.styles import Style, find_style, styles_for
from sd.prompts.weighting import parse_prompt

DATA = Path(__file__).resolve().parents[2] / "data"
RESPONSE_FORMAT = (
    'Answer every idea with JSON and nothing else: {"prompt": what to draw, "negative_prompt": what to stay away from, '
    'or "", "title": two to five words}. Keep words in <angle brackets> as they are.'
)
LIMITS = {"prompt": 600, "negative_prompt": 600, "title": 80}  # bytes, so that no answer can be too long to draw
MAX_WEIGHT = 2
MAX_ANSWER = 5_000  # characters, the last ones, that are searched for JSON
NAME_LENGTH = 40  # characters, at most four bytes each: with its number well below the 255 that file systems take
UNSET = "no chat endpoint is set (OPENAI_BASE_URL or OPENAI_API_KEY, and OPENAI_MODEL)"


class EnhancedPrompt(NamedTuple):
    """note: "", or one sentence that says why no chat model wrote it."""

    prompt: str
    negative_prompt: str
    title: str
    note: str = ""


class PromptEnhancer:
    """Asks for each idea once, and an endpoint that has failed no more.

    style: its name, applied to whatever is written; without one and without an answer the seed chooses.
    emoji: the prompts are for the bundled model. Raises UserError for a style that there is not.
    """

    def __init__(self, endpoint: Endpoint | None = None, style: str | None = None, emoji: bool = False):
        self.endpoint, self.emoji = endpoint, emoji
        self.style = None if style is None else find_style(style)
        self.why_not = UNSET
        self.answers: dict[str, EnhancedPrompt | LLMError] = {}

    def __call__(self, idea: str, seed: int = 0) -> EnhancedPrompt:
        """What is written for one picture. Never raises for what an endpoint does."""
        if idea not in self.answers:
            self.answers[idea] = self.answer_to(idea)
        answer = self.answers[idea]
        if isinstance(answer, LLMError):
            style = self.style or choose_style(styles_for(self.emoji), seed)
            title = " ".join(TAG.sub("", idea).split()[:8])
            return EnhancedPrompt(*style.apply(idea), title, f"{answer}, so a style is applied instead.")
        if self.style is None:
            return answer
        return EnhancedPrompt(*self.style.apply(answer.prompt, answer.negative_prompt), answer.title)

    def answer_to(self, idea: str) -> EnhancedPrompt | LLMError:
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
    """One idea, written once: see `PromptEnhancer`."""
    return PromptEnhancer(endpoint, style, emoji)(idea, seed)


def apply_style(name: str) -> Callable[[str, int], EnhancedPrompt]:
    """A writer that asks nobody and applies one style. Raises UserError for a style that there is not."""
    style = find_style(name)
    return lambda idea, seed: EnhancedPrompt(*style.apply(idea), title="")


def choose_style(styles: list[Style], seed: int) -> Style:
    return styles[int(random.Random(seed).random() * len(styles))] if styles else Style("", "", "")


def build_messages(idea: str, style: Style | None, emoji: bool) -> list[dict[str, str]]:
    """The task, some examples as if they had been asked and answered, and the idea."""
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
    """What the bundled model has learnt to draw."""
    with (DATA / "emoji_names.tsv").open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        return [row["name"] for row in rows if row["world"] == "small" and row["held out"] != "name"]


def parse_answer(text: str) -> EnhancedPrompt:
    """A chat model's answer: its last JSON object, whatever stands around it. Raises ChatError where it will not do."""
    answer = find_last_object(text[-MAX_ANSWER:])
    if answer is None:
        said = to_one_line(text)[:60]
        raise LLMError(f"the chat model answered no JSON but {said!r}" if said else "the chat model answered nothing")
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
        raise LLMError("the chat model's answer holds more than words to draw")
    return written


def find_last_object(text: str) -> dict | None:
    """The last {...} in a text that is JSON: models think aloud before, and fence it in."""
    decoder, found, place = json.JSONDecoder(strict=False), None, text.find("{")
    while place >= 0:
        try:
            found, place = decoder.raw_decode(text, place)
        except (ValueError, RecursionError):
            place += 1
        place = text.find("{", place)
    return found


def to_one_line(text: str) -> str:
    """One line of what can be printed: a line break would end the prompt in a picture's settings."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def is_plain(prompt: str) -> bool:
    """No adapter that may not be there, and no weight that spoils the picture; a BREAK counts as one below 0."""
    return not TAG.search(prompt) and all(0 < weight <= MAX_WEIGHT for _, weight in parse_prompt(prompt))


def file_name(title: str) -> str:
    """A title as the beginning of a file's name: letters and digits of any script, and hyphens between. Never empty."""
    words = re.sub(r"[\W_]+", "-", unicodedata.normalize("NFKC", title).lower())
    return words[:NAME_LENGTH].strip("-") or "picture"
