"""What a person asked for, spelled out: every picture's own words."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import groupby

from sd.pipeline.infotext import with_setting
from sd.pipeline.settings import GenerationSettings
from sd.prompts.enhance import Written, file_name
from sd.prompts.wildcards import expand_wildcards

Writer = Callable[[str, int], Written]


@dataclass(frozen=True)
class Drawing:
    """What is drawn in one go.

    title: names the files, "" for a number alone. template: the person's own words where they are not the prompt.
    note: a sentence for the person, or "". number: of its first picture's file, the next ones count up; None for the
    next free ones.
    """

    settings: GenerationSettings
    title: str = ""
    template: str = ""
    note: str = ""
    number: int | None = None

    @property
    def prefix(self) -> str:
        """What its files' names begin with."""
        return f"{file_name(self.title)}-" if self.title else ""

    def texts(self, infotexts: list[str]) -> list[str]:
        """What is written into its pictures."""
        return [with_setting(text, "Template", self.template) for text in infotexts] if self.template else infotexts


def spell_out(asked: GenerationSettings, write: Writer | None = None) -> list[Drawing]:
    """Wildcards chosen, and prompts written, by each picture's own seed; neighbours with equal words stay together.

    write: (words, seed) to a prompt, a negative prompt that is added to the person's own, and a title.
    Raises UserError for unknown wildcards.
    """
    drawings = [spell_one(one, write) for one in apart(asked)]
    runs = groupby(drawings, key=lambda drawing: (drawing.settings.prompt, drawing.settings.negative_prompt))
    return [together(list(run)) for _, run in runs]


def apart(settings: GenerationSettings) -> list[GenerationSettings]:
    seeds = zip(settings.seeds(), settings.variation_seeds())
    return [settings.replace(seed=seed, variation_seed=varied, num_images=1) for seed, varied in seeds]


def together(run: list[Drawing]) -> Drawing:
    return replace(run[0], settings=run[0].settings.replace(num_images=len(run)))


def spell_one(asked: GenerationSettings, write: Writer | None) -> Drawing:
    prompt, negative = (expand_wildcards(text, asked.seed) for text in (asked.prompt, asked.negative_prompt))
    written = Written(prompt, "", "") if write is None else write(prompt, asked.seed)
    negative = ", ".join(part for part in (negative, written.negative_prompt) if part)
    template = "" if written.prompt == asked.prompt else asked.prompt
    return Drawing(
        asked.replace(prompt=written.prompt, negative_prompt=negative), written.title, template, written.note
    )
