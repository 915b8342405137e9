"""Converts the settings that programs other than the webui write into images to the webui's labels.

InvokeAI, Fooocus, Easy Diffusion, NovelAI, Draw Things and SwarmUI write JSON, ComfyUI its graph (see `comfyui.py`).
A key without a label here keeps its name, so that a note can say that it is not supported.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from sd.pipeline.metadata.comfyui import Unreadable, read_graph

LABELS = {
    "Prompt": ("prompt", "positive_prompt", "c", "text_prompts"),
    "Negative prompt": ("negative_prompt", "negativeprompt", "uc", "negative prompt", "negative_prompts"),
    "Steps": ("steps", "num_inference_steps"),
    "Sampler": ("sampler", "sampler_name", "comfyuisampler", "autowebuisampler"),
    "Schedule type": ("scheduler", "noise_schedule"),
    "CFG scale": ("cfg_scale", "guidance_scale", "cfgscale", "guidance scale", "scale"),
    "Seed": ("seed",),
    "Width": ("width", "w"),
    "Height": ("height", "h"),
    "Size": ("size", "resolution"),
    "Model": ("model", "base_model", "use_stable_diffusion_model", "stable diffusion model", "model_weights", "ckpt"),
    "Model hash": ("model_hash", "base_model_hash"),
    "VAE": ("vae", "use_vae_model", "vae model"),
    "Clip skip": ("clip_skip", "clip skip"),
    "CFG Rescale phi": ("cfg_rescale_multiplier", "cfg_rescale", "guidance_rescale"),
    "Denoising strength": ("denoising_strength", "strength", "prompt_strength", "prompt strength", "image_strength"),
    "Init image": ("init_image", "init_img", "initimage", "image", "reference_image"),
    "Mask": ("mask", "mask_image", "inpaint_mask"),
}
LABEL_OF = {key: label for label, keys in LABELS.items() for key in keys}
# Keys that do not change the image.
SILENT = set(
    "version metadata_version app_version app_id generation_mode created_by user type postprocessing rand_device date "
    "request_type signed_hash full_prompt full_negative_prompt lora_combined_hash metadata_scheme swarm_version "
    "generation_time original_prompt images n_samples num_outputs iterations model_id source software title profile "
    "seed_mode v2 v4_prompt v4_negative_prompt legacy_v3_extend session_id workflow invokeai_graph used_embeddings "
    "noise mask_blur output_format output_quality metadata_output_format stream_progress_updates variations "
    "stream_image_progress block_nsfw vram_usage_level show_only_filtered_image stealth extra_noise_seed "
    "upscale_amount seamless_axes".split()
)
OFF = ("", "none", "false", "0", "0.0", "[]", "{}", "null")  # a feature with such a value was not in use
DREAM = {"s": "steps", "S": "seed", "W": "width", "H": "height", "C": "cfg_scale", "A": "sampler", "I": "init_img"}
DREAM |= {"f": "strength", "M": "mask"}
SIZE = re.compile(r"\D*(\d+)\s*[x×,*]\s*(\d+)\D*")


@dataclass
class Foreign:
    """The settings that another program wrote, by the webui's labels."""

    tool: str
    prompt: str = ""
    negative_prompt: str = ""
    settings: dict[str, object] = field(default_factory=dict)


def read_foreign(texts: Mapping[str, str], size: tuple[int, int]) -> Foreign | None:
    """Returns the settings of another program, or None. texts: of `embedded_text.embedded_texts`. size: the image's.

    Raises Unreadable for a ComfyUI graph that is too complex.
    """
    found = read_invokeai(texts) or read_flat(texts)
    for text in texts.values():
        found = found or read_json(load_json(text))
    if found is None and (graph := graph_in(texts)) is not None:
        prompt, negative, settings = read_graph(graph)
        found = Foreign("ComfyUI", prompt, negative, settings)
    if found is not None and "Size" not in found.settings:
        found.settings["Size"] = f"{size[0]}x{size[1]}"
    return found


def load_json(text: str) -> object:
    """Returns a JSON object, or None. ComfyUI puts a prefix before it in EXIF."""
    text = re.sub(r"^(prompt|workflow):", "", text.strip(), flags=re.IGNORECASE)
    if not text.startswith("{"):
        return None
    try:
        return json.loads(re.sub(r"\bNaN\b", "null", text) if "NaN" in text else text)
    except (ValueError, RecursionError):
        return None


def graph_in(texts: Mapping[str, str]) -> dict | None:
    """Returns ComfyUI's nodes by their numbers, or None."""
    for text in texts.values():
        nodes = load_json(text)
        if isinstance(nodes, dict) and any(isinstance(node, dict) and "class_type" in node for node in nodes.values()):
            return nodes
    for text in texts.values():
        workflow = load_json(text)
        if isinstance(workflow, dict) and "nodes" in workflow and "links" in workflow:
            raise Unreadable("only a ComfyUI workflow as its editor keeps it, without the values that were used")
    return None


def read_invokeai(texts: Mapping[str, str]) -> Foreign | None:
    """Reads the three formats of InvokeAI, the newest first."""
    for key in ("invokeai_metadata", "sd-metadata"):
        found = load_json(texts.get(key, ""))
        if isinstance(found, dict):
            flat = {name: value for name, value in found.items() if name != "image"}
            image = found.get("image")
            foreign = from_keys("InvokeAI", flat | (image if isinstance(image, dict) else {}))
            return split_brackets(foreign) if key == "sd-metadata" else foreign
    if match := re.fullmatch(r'\s*"(.*?)"(.*)', texts.get("Dream", ""), re.DOTALL):
        flags = {DREAM.get(key, key): value for key, value in re.findall(r"\s-(\w)\s*(\S+)", match[2])}
        return split_brackets(from_keys("InvokeAI", flags | {"prompt": match[1]}))
    return None


def split_brackets(found: Foreign) -> Foreign:
    """Moves square brackets to the negative prompt: the first InvokeAI wrote it so into the prompt."""
    negatives = re.findall(r"\[([^\[\]]*)\]", found.prompt)
    found.negative_prompt = ", ".join(part for part in (found.negative_prompt, *negatives) if part)
    found.prompt = re.sub(r"\s*\[[^\[\]]*\]\s*", " ", found.prompt).strip(" ,") if negatives else found.prompt
    return found


def read_flat(texts: Mapping[str, str]) -> Foreign | None:
    """Reads Easy Diffusion, with one PNG text per setting, and NovelAI, with one of JSON and one for the prompt."""
    lower = {key.lower(): text for key, text in texts.items()}
    comment = load_json(texts.get("Comment", ""))
    if isinstance(comment, dict) and ("uc" in comment or "scale" in comment):
        found = from_keys("NovelAI", {"prompt": lower.get("description", "")} | comment)
        found.prompt, found.negative_prompt = (novelai_weights(t) for t in (found.prompt, found.negative_prompt))
        found.settings = {"Clip skip": 2} | found.settings | {"Model": texts.get("Source") or None}
        return found
    if "seed" in lower and ("guidance_scale" in lower or "guidance scale" in lower):
        return from_keys("Easy Diffusion", {key: lower[key] for key in lower if key not in ("usercomment", "software")})
    return None


def read_json(found: object) -> Foreign | None:
    """Reads one JSON text with all settings; its keys tell the program."""
    if not isinstance(found, dict):
        return None
    if isinstance(found.get("sui_image_params"), dict):
        return from_keys("SwarmUI", found["sui_image_params"])
    if "c" in found and "sampler" in found:
        return from_keys("Draw Things", found)
    known = {LABEL_OF.get(str(key).lower()) for key in found}
    if "Prompt" not in known or not {"Steps", "Seed"} & known or not {"Sampler", "CFG scale", "Schedule type"} & known:
        return None
    fooocus = "base_model" in found or "performance" in found
    return from_keys("Fooocus" if fooocus else "Easy Diffusion" if "use_vae_model" in found else "", found)


def from_keys(tool: str, keys: Mapping[str, object]) -> Foreign:
    """Converts flat keys. Without a sampler, "scheduler" is the sampler, as in InvokeAI and diffusers."""
    keys = {str(key).lower(): value for key, value in keys.items()}
    settings: dict[str, object] = {}
    for key, value in keys.items():
        label = LABEL_OF.get(key)
        if str(value).strip().lower() in OFF and label not in ("Seed", "CFG scale", "Prompt", "Negative prompt"):
            continue
        if label is not None:
            settings.setdefault(label, value)
        elif key not in SILENT and not key.startswith("_") and key not in ("loras", "lora", "use_lora_model"):
            settings[re.sub(r"[^\w \-/]", " ", key.replace("_", " ")).strip()] = value
    prompt = text_of(settings.pop("Prompt", "")) + lora_tags(keys)
    negative = text_of(settings.pop("Negative prompt", ""))
    if "Sampler" not in settings and "Schedule type" in settings:
        settings["Sampler"] = settings.pop("Schedule type")
    if re.search(r"\w[+]+(\s|,|$)|\)[\d+-]", f"{prompt}\n{negative}") and tool == "InvokeAI":
        settings["InvokeAI weights"] = True
    return Foreign(tool, prompt, negative, convert_values(tool, settings, keys))


def convert_values(tool: str, settings: dict[str, object], keys: Mapping[str, object]) -> dict[str, object]:
    """Converts the values to the webui's."""
    if (width := settings.pop("Width", None)) and (height := settings.pop("Height", None)):
        settings["Size"] = f"{width}x{height}"
    elif match := SIZE.fullmatch(str(settings.get("Size", ""))):
        settings["Size"] = f"{match[1]}x{match[2]}"
    for label in ("Model", "VAE"):
        if label in settings:
            settings[label] = name_of(settings[label])
    if (skip := settings.get("Clip skip")) is not None:  # InvokeAI counts the layers that are left out
        settings["Clip skip"] = 2 if str(skip).lower() == "true" else to_int(skip) + 1 if tool == "InvokeAI" else skip
    if settings.pop("tiling", None) == "xy" or (settings.get("seamless x") and settings.get("seamless y")):
        settings["Tiling"] = True
        settings = {label: value for label, value in settings.items() if not label.startswith("seamless")}
    if tool == "InvokeAI" and str(settings.get("Sampler", "")).endswith("_k"):
        settings |= {"Sampler": str(settings["Sampler"]).removesuffix("_k"), "Schedule type": "karras"}
    if not {"Init image", "Mask"} & settings.keys() and "Denoising strength" in settings:
        del settings["Denoising strength"]  # written for images from text as well, where it means nothing
    settings["RNG"] = "CPU" if str(keys.get("rand_device", "")).lower() == "cpu" else "unknown"
    return {label: json.dumps(v) if isinstance(v, (dict, list)) else v for label, v in settings.items()}


def to_int(value: object) -> int:
    """Returns a value as an integer; 0 where it is none."""
    return int(str(value)) if str(value).isdigit() else 0


def text_of(value: object) -> str:
    """Returns a prompt as text; the first InvokeAI wrote a list of weighted parts."""
    if isinstance(value, list):
        return ", ".join(text_of(part.get("prompt", "") if isinstance(part, dict) else part) for part in value)
    return str(value or "").strip()


def name_of(value: object) -> str:
    """Returns a model's name without folders and suffix."""
    if isinstance(value, dict):
        value = next((value[key] for key in ("model_name", "name", "key") if value.get(key)), name_of_nested(value))
    name = re.split(r"[/\\]", str(value or ""))[-1]
    return re.sub(r"\.(safetensors|ckpt|pt|pth|vae)$", "", name, flags=re.IGNORECASE)


def name_of_nested(value: Mapping[str, object]) -> object:
    return next((inner for inner in value.values() if isinstance(inner, dict)), "")


def lora_tags(keys: Mapping[str, object]) -> str:
    """Returns a list of LoRAs as prompt tags."""
    given = next((keys[key] for key in ("loras", "lora", "use_lora_model") if keys.get(key)), [])
    strengths = keys.get("lora_alpha") or keys.get("loraweights") or []
    tags = []
    for index, one in enumerate(given if isinstance(given, list) else [given]):
        strength = strengths[index] if isinstance(strengths, list) and index < len(strengths) else strengths or 1
        if isinstance(one, list) and len(one) == 2:  # Fooocus: name and weight
            one, strength = one
        elif isinstance(one, dict):
            strength = one.get("weight", 1)
            one = one.get("lora") or one.get("model") or one
        if name_of(one) not in ("", "None"):
            tags.append(f" <lora:{name_of(one)}:{strength}>")
    return "".join(tags)


def novelai_weights(text: str) -> str:
    """Converts NovelAI's weights: `{a}` to `(a:1.05)`, `[a]` to `(a:0.9524)`, and round brackets to literal ones."""
    depth, runs = 0, [(0, "")]
    for letter in text:
        if letter in "{}[]":
            depth += 1 if letter in "{]" else -1
            runs.append((depth, ""))
        else:
            runs[-1] = (depth, runs[-1][1] + (f"\\{letter}" if letter in "()" else letter))
    return "".join(f"({run}:{1.05**depth:.4g})" if depth and run.strip() else run for depth, run in runs)
