"""LoRAs and embeddings in a prompt: a LoRA's tag with the words that it was trained with, an embedding's own word."""

import json
import re
from pathlib import Path

from safetensors import SafetensorError, safe_open

from sd.adapters.lora_tags import split_tags
from sd.utils.errors import UserError
from sd.web.jobs.model_index import Models

MOST = 200  # letters of trigger words that are believed
OBVIOUS = 0.9  # the share of a LoRA's training images that a tag must have to be what it is called by


def addons(models: Models) -> list[tuple[str, str]]:
    """(what to show, what to put into a prompt but its strength)."""
    loras = [(f"{name} (LoRA)", f"<lora:{name}:STRENGTH>") for name in models.names("LoRA")]
    return loras + [(f"{name} (embedding)", f"({name}:STRENGTH)") for name in models.names("embedding")]


def with_addon(prompt: str, addon: str | None, strength: float, words: str = "") -> str:
    """The prompt with a LoRA's tag and trigger words, or with an embedding's word and its weight, at its end."""
    if not addon:
        raise UserError("there is nothing to add yet: choose a LoRA or an embedding, or train one.")
    parts = [prompt.rstrip(", "), addon.replace("STRENGTH", f"{strength:g}")]
    if words and words.lower() not in prompt.lower():
        parts.insert(1, words)
    return ", ".join(part for part in parts if part)


def words_for(models: Models, addon: str | None) -> str:
    """The trigger words of the LoRA that an entry of `addons` names; "" for an embedding."""
    tags = split_tags((addon or "").replace("STRENGTH", "1"))[1]
    return trigger_words(models.find("LoRA", tags[0].name)) if tags else ""


def trigger_words(path: Path) -> str:
    """What a prompt has to say for a LoRA to act, as its file tells; "" where it does not."""
    try:
        with safe_open(path, "pt") as file:
            told = file.metadata() or {}
    except (OSError, SafetensorError):
        return ""
    comment = re.match(r"(?:say|trigger(?: words?)?:)\s+(.+)", told.get("ss_training_comment", ""))
    found = comment[1] if comment else told.get("modelspec.trigger_phrase") or common_tag(told)
    words = " ".join(found.split()).strip(", ")
    return words if len(words) <= MOST and not re.search("[<>]", words) else ""


def common_tag(told: dict[str, str]) -> str:
    """The one tag that nearly all training images had, as kohya's scripts count them; "" for none or several."""
    try:
        counts = [tags for tags in json.loads(told["ss_tag_frequency"]).values() if tags]
        folders = json.loads(told["ss_dataset_dirs"]).values()
        images = sum(int(folder["img_count"]) for folder in folders)
        tags = {tag: sum(int(one.get(tag, 0)) for one in counts) for one in counts for tag in one}
        common = [tag for tag, count in tags.items() if count >= OBVIOUS * images]
    except (KeyError, TypeError, ValueError, AttributeError):
        return ""
    return common[0] if len(common) == 1 and images > 0 else ""
