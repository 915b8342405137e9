"""Requests: settings expanded into one concrete prompt per image (wildcards, styles, LLM enhancement)."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import groupby

from sd.pipeline.infotext import with_setting
from sd.pipeline.settings import GenerationSettings
from sd.prompts.enhance import EnhancedPrompt, file_name
from sd.prompts.wildcards import expand_wildcards

Enhance = Callable[[str, int], EnhancedPrompt]


@dataclass(frozen=True)
class GenerationRequest:
    """The settings of images with the same prompt.

    title: the beginning of the files' names, "" for a number alone. template: the prompt before it was expanded, ""
    where that is the same. note: a sentence for the user, or "". number: that of the first image's file, from which the
    following ones count up; None for the next free ones.
    """

    settings: GenerationSettings
    title: str = ""
    template: str = ""
    note: str = ""
    number: int | None = None

    @property
    def prefix(self) -> str:
        """The beginning of the files' names."""
        return f"{file_name(self.title)}-" if self.title else ""

    def texts(self, infotexts: list[str]) -> list[str]:
        """Returns the pipeline's infotexts as they are saved, with the template where there is one."""
        return [with_setting(text, "Template", self.template) for text in infotexts] if self.template else infotexts


def expand_request(settings: GenerationSettings, enhance: Enhance | None = None) -> list[GenerationRequest]:
    """Expands wildcards, and enhances the prompt, by each image's own seed; neighbors of equal prompts stay together.

    enhance: (prompt, seed) to a prompt, a negative prompt that is added to the given one, and a title.
    Raises UserError for unknown wildcards.
    """
    requests = [expand_image(one, enhance) for one in split_by_image(settings)]
    runs = groupby(requests, key=lambda request: (request.settings.prompt, request.settings.negative_prompt))
    return [merge_images(list(run)) for _, run in runs]


def split_by_image(settings: GenerationSettings) -> list[GenerationSettings]:
    """Returns the settings of each image alone."""
    seeds = zip(settings.seeds(), settings.variation_seeds())
    return [settings.replace(seed=seed, variation_seed=varied, num_images=1) for seed, varied in seeds]


def merge_images(run: list[GenerationRequest]) -> GenerationRequest:
    """Returns requests of one image each, with consecutive seeds, as one request."""
    return replace(run[0], settings=run[0].settings.replace(num_images=len(run)))


def expand_image(settings: GenerationSettings, enhance: Enhance | None) -> GenerationRequest:
    """Expands the prompts of one image."""
    (seed,) = settings.seeds()[:1]
    prompt, negative = (expand_wildcards(text, seed) for text in (settings.prompt, settings.negative_prompt))
    enhanced = EnhancedPrompt(prompt, "", "") if enhance is None else enhance(prompt, seed)
    negative = ", ".join(part for part in (negative, enhanced.negative_prompt) if part)
    template = "" if enhanced.prompt == settings.prompt else settings.prompt
    expanded = settings.replace(prompt=enhanced.prompt, negative_prompt=negative)
    return GenerationRequest(expanded, enhanced.title, template, enhanced.note)
