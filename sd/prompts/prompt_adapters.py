"""The LoRAs and embeddings that a prompt names: loaded for that prompt only, and unloaded after it.

Between several images, `keep_prompt_loras` lets the LoRAs stay while the prompts name the same ones.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from sd.adapters.block_weights import apply_block_weights
from sd.adapters.lora_loader import LoraReport
from sd.adapters.lora_tags import Tag, split_tags
from sd.adapters.manager import Adapters
from sd.adapters.region_loras import Names, RegionLoras
from sd.adapters.textual_inversion import EmbeddingReport
from sd.prompts.regions import parse_regions
from sd.prompts.weighting import parse_prompt
from sd.tokenizer import clean_text, contains_placeholder, placeholder_pattern
from sd.utils.errors import UserError


@dataclass
class PromptAdapters:
    """The adapters of two prompts. prompt, negative_prompt: without tags. reports: of what was loaded for them.

    notes: what is not honored or deserves a warning, in sentences. by_region: the loaded LoRAs that each text of
    `RegionalPrompt.texts` names; of a plain prompt it is one text.
    """

    prompt: str
    negative_prompt: str
    notes: list[str]
    reports: list[LoraReport | EmbeddingReport] = field(default_factory=list)
    by_region: list[Names] = field(default_factory=list)

    def has(self, word: str) -> bool:
        """Returns whether an embedding's word is in one of the prompts."""
        texts = [text for prompt in (self.prompt, self.negative_prompt) for text, _ in parse_prompt(prompt)]
        return any(contains_placeholder(clean_text(text), word) for text in texts)

    def region_loras(self, adapters: Adapters) -> RegionLoras | None:
        """Returns the LoRAs of the regions; None where all regions name the same ones."""
        differ = len(set(self.by_region)) > 1
        return RegionLoras((adapters.unet, adapters.clip), self.by_region) if differ else None

    def add(self, report: LoraReport | EmbeddingReport) -> None:
        self.reports.append(report)
        self.notes += report.notes


@contextmanager
def load_prompt_adapters(adapters: Adapters, prompt: str, negative_prompt: str) -> Iterator[PromptAdapters]:
    """Loads, within the context, the LoRAs and embeddings that these prompts name, in addition to all others."""
    positive, negative = split_tags(prompt), split_tags(negative_prompt)
    named = PromptAdapters(positive.text, negative.text, [*positive.notes, *negative.notes])
    named.notes += [
        f"the LoRA {tag.name} is in the negative prompt, where it has no effect: name it in the prompt."
        for tag in negative.tags
    ]
    before = adapters.names()
    try:
        load_tags(adapters, prompt, named)
        by_hand = list(adapters.tokenizer.added)
        load_words(adapters, named)
        named.notes += [
            f"the embedding {word} is loaded, but its word is in neither prompt, so it has no effect."
            for word in by_hand
            if not named.has(word)
        ]
        yield named
    finally:
        unload_later(adapters, {*before, *adapters.kept_names()})


@contextmanager
def keep_prompt_loras(adapters: Adapters) -> Iterator[None]:
    """Lets the LoRAs of a prompt stay loaded within the context until a prompt names others.

    It is for images that are generated one by one: their LoRAs are read, and their layers changed, once.
    """
    if adapters.kept is not None:  # there is such a context already
        yield
        return
    adapters.kept = {}
    try:
        yield
    finally:
        release_kept(adapters)
        adapters.kept = None


def release_others(adapters: Adapters, prompt: str) -> None:
    """Unloads the LoRAs that are kept, unless this prompt names the same ones in the same order."""
    if adapters.kept and list(adapters.kept) != list(dict.fromkeys(key for keys in tag_keys(prompt) for key in keys)):
        release_kept(adapters)


def release_kept(adapters: Adapters) -> None:
    """Unloads the LoRAs that are kept, with the embeddings that came with them."""
    names = adapters.kept_names()
    adapters.kept = {}
    unload_later(adapters, set(adapters.names()) - names)


def unload_later(adapters: Adapters, before: set[str]) -> None:
    """Unloads all adapters but those of these names."""
    for name in adapters.names():
        if name not in before and name in adapters.names():  # unloading a LoRA unloads its embeddings too
            adapters.unload(name)


def tag_keys(prompt: str) -> list[list[tuple[Tag, int]]]:
    """Returns the tags of each region of a prompt, each with the number of equal ones before it there."""
    regions = [split_tags(text).tags for text in parse_regions(prompt).texts]
    return [[(tag, tags[:i].count(tag)) for i, tag in enumerate(tags)] for tags in regions]


def load_tags(adapters: Adapters, prompt: str, named: PromptAdapters) -> None:
    """Loads the LoRAs of a prompt, but for those that are kept. A tag that several regions have is loaded once."""
    release_others(adapters, prompt)
    loaded = {} if adapters.kept is None else adapters.kept
    reported = set()
    for keys in tag_keys(prompt):
        for key in keys:
            if key not in loaded:
                loaded[key] = load_tag(adapters, key[0])
            if key not in reported:
                named.add(loaded[key][1])
                reported.add(key)
        named.by_region.append(frozenset(loaded[key][0] for key in keys))


def load_tag(adapters: Adapters, tag: Tag) -> tuple[str, LoraReport]:
    """Loads the LoRA of a tag, and returns its name there. Raises UserError where there is none of its name."""
    path = adapters.models.find("LoRA", tag.name)
    name, count = f"<lora:{tag.name}>", 1
    while name in adapters.names():  # a prompt may name a LoRA twice; the strengths add up
        count += 1
        name = f"<lora:{tag.name}> {count}"
    report = adapters.load_lora(path, tag.unet, tag.te, name)
    report.name = tag.name
    if tag.lbw:
        apply_block_weights(adapters.unet, adapters.clip, name, tag.lbw)
    return name, report


def name_in_prompt(name: str) -> str:
    """Returns the name that a prompt has for a LoRA from `load_tag`, "ink" for "<lora:ink> 2"; others keep theirs."""
    return re.sub(r"<lora:(.*)>(?: \d+)?", r"\1", name)


def load_words(adapters: Adapters, named: PromptAdapters) -> None:
    """Loads the embeddings whose file name is in a prompt; one that cannot be used becomes a note."""
    for name, path in adapters.models.names("embedding").items():
        word = name.rpartition("/")[2]
        if not named.has(word) or placeholder_pattern(word) in map(placeholder_pattern, adapters.tokenizer.added):
            continue
        try:
            named.add(adapters.load_embedding(path, word))
        except UserError as error:
            named.notes.append(f"the embedding {word} is not used: {error}")
