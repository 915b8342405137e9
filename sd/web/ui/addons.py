"""LoRAs and embeddings in a prompt: a LoRA's tag with its trigger words, an embedding's own word."""

import json
import re
from pathlib import Path

from safetensors import SafetensorError, safe_open

from sd.adapters.lora_tags import split_tags
from sd.utils.errors import UserError
from sd.web.jobs.model_index import Models

MAX_WORDS = 200  # characters; longer trigger words are ignored
COMMON_SHARE = 0.9  # of the training images: a tag on so many is a trigger word


def addons(models: Models) -> list[tuple[str, str]]:
    """Return pairs of a label and what the prompt needs, with STRENGTH in place of a number."""
    loras = [(f"{name} (LoRA)", f"<lora:{name}:STRENGTH>") for name in models.names("LoRA")]
    return loras + [(f"{name} (embedding)", f"({name}:STRENGTH)") for name in models.names("embedding")]


def with_addon(prompt: str, addon: str | None, strength: float, words: str = "") -> str:
    """Append a LoRA's trigger words and tag, or an embedding's weighted word, to a prompt. Raises UserError."""
    if not addon:
        raise UserError("there is nothing to add yet: choose a LoRA or an embedding, or train one.")
    parts = [prompt.rstrip(", "), addon.replace("STRENGTH", f"{strength:g}")]
    if words and words.lower() not in prompt.lower():
        parts.insert(1, words)
    return ", ".join(part for part in parts if part)


def words_for(models: Models, addon: str | None) -> str:
    """Return the trigger words of the LoRA in an entry of `addons`; "" for an embedding."""
    tags = split_tags((addon or "").replace("STRENGTH", "1"))[1]
    return trigger_words(models.find("LoRA", tags[0].name)) if tags else ""


def trigger_words(path: Path) -> str:
    """Return the trigger words in the metadata of a LoRA file; "" where it has none."""
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
    except (OSError, SafetensorError):
        return ""
    comment = re.match(r"(?:say|trigger(?: words?)?:)\s+(.+)", metadata.get("ss_training_comment", ""))
    found = comment[1] if comment else metadata.get("modelspec.trigger_phrase") or common_tag(metadata)
    words = " ".join(found.split()).strip(", ")
    return words if len(words) <= MAX_WORDS and not re.search("[<>]", words) else ""


def common_tag(metadata: dict[str, str]) -> str:
    """Return the one tag of nearly all training images in kohya's metadata; "" for none or several."""
    try:
        counts = [tags for tags in json.loads(metadata["ss_tag_frequency"]).values() if tags]
        folders = json.loads(metadata["ss_dataset_dirs"]).values()
        images = sum(int(folder["img_count"]) for folder in folders)
        tags = {tag: sum(int(one.get(tag, 0)) for one in counts) for one in counts for tag in one}
        common = [tag for tag, count in tags.items() if count >= COMMON_SHARE * images]
    except (KeyError, TypeError, ValueError, AttributeError):
        return ""
    return common[0] if len(common) == 1 and images > 0 else ""
