"""The settings in a ComfyUI graph of the plain form: one KSampler, its two prompts, its latent, its checkpoint."""

import re
from collections.abc import Mapping

SAMPLERS = ("KSampler", "KSamplerAdvanced", "KSampler (Efficient)")
MAX_HOPS = 50  # nodes from one end of a graph to the other


class Unreadable(ValueError):
    """What is in an image instead, for a sentence that says so."""


def read_graph(nodes: Mapping[str, dict]) -> tuple[str, str, dict[str, object]]:
    """The prompt, the negative prompt, and the settings by the webui's labels. Raises Unreadable."""
    nodes = {str(key): node for key, node in nodes.items() if isinstance(node, dict) and "class_type" in node}
    samplers = [node for node in nodes.values() if node["class_type"] in SAMPLERS]
    if not samplers:
        raise Unreadable("a ComfyUI workflow without a KSampler node")
    first = next((node for node in samplers if empty_latent(nodes, node) is not None), samplers[0])
    inputs = first.get("inputs", {})
    settings = {
        "Steps": value_of(nodes, inputs.get("steps")),
        "Sampler": "euler" if (sampler := value_of(nodes, inputs.get("sampler_name"))) == "ddim" else sampler,
        "Schedule type": value_of(nodes, inputs.get("scheduler")),
        "CFG scale": value_of(nodes, inputs.get("cfg")),
        "Seed": value_of(nodes, inputs.get("seed", inputs.get("noise_seed"))),
        "RNG": "CPU",
    }
    settings |= start_of(nodes, first)
    if len(samplers) > 1:
        settings["ComfyUI samplers"] = len(samplers)
    prompt, negative = (text_at(nodes, inputs.get(name)) for name in ("positive", "negative"))
    if prompt is None:
        raise Unreadable("a ComfyUI workflow whose prompt is made by nodes that are not known here")
    loras, model = along_the_model(nodes, inputs.get("model"))
    if re.search(r"[()]", f"{prompt}{negative}"):
        settings["ComfyUI weights"] = True
    return prompt + loras, negative or "", settings | model


def start_of(nodes: Mapping[str, dict], sampler: dict) -> dict[str, object]:
    """Whether it starts from noise, of which size, or from an image."""
    denoise = value_of(nodes, sampler.get("inputs", {}).get("denoise"))
    latent = empty_latent(nodes, sampler)
    if latent is None:
        return {"Init image": "ComfyUI", "Denoising strength": denoise}
    width, height = (value_of(nodes, latent.get(side)) for side in ("width", "height"))
    return {"Size": f"{width}x{height}" if width and height else None}


def empty_latent(nodes: Mapping[str, dict], sampler: dict) -> dict | None:
    """The inputs of the node that makes the sampler's empty latent; None where it starts from an image."""
    node = follow(nodes, sampler.get("inputs", {}).get("latent_image"))
    return node.get("inputs", {}) if node is not None and "Empty" in node["class_type"] else None


def follow(nodes: Mapping[str, dict], link: object) -> dict | None:
    """The node that a link, [number, output], comes from."""
    return nodes.get(str(link[0])) if isinstance(link, list) and link else None


def value_of(nodes: Mapping[str, dict], value: object, hops: int = MAX_HOPS) -> object:
    """A value, or the one of the node that it is linked to; None where that is not to be told."""
    if not isinstance(value, list):
        return value
    node = follow(nodes, value)
    if node is None or hops == 0:
        return None
    inputs = node.get("inputs", {})
    for name in ("value", "seed", "noise_seed", "int", "float", "number", "text", "string", "Text"):
        if name in inputs:
            return value_of(nodes, inputs[name], hops - 1)
    return None


def text_at(nodes: Mapping[str, dict], link: object, hops: int = MAX_HOPS) -> str | None:
    """The text of a conditioning, through the nodes that only pass it on."""
    node = follow(nodes, link)
    if node is None or hops == 0:
        return None
    inputs = node.get("inputs", {})
    if "text" in inputs:
        text = value_of(nodes, inputs["text"])
        return text if isinstance(text, str) else None
    onward = [inputs[name] for name in ("conditioning", "positive", "conditioning_1") if name in inputs]
    return text_at(nodes, onward[0], hops - 1) if onward else None


def along_the_model(nodes: Mapping[str, dict], link: object) -> tuple[str, dict[str, object]]:
    """The LoRAs that a model goes through, as tags, and its name and clip skip."""
    tags, settings = [], {}
    for _ in range(MAX_HOPS):
        node = follow(nodes, link)
        if node is None:
            break
        inputs = node.get("inputs", {})
        if isinstance(inputs.get("lora_name"), str):
            name = re.sub(r"\.\w+$", "", re.split(r"[/\\]", inputs["lora_name"])[-1])
            strength = inputs.get("strength_model", 1)
            tags.append(f" <lora:{name}:{inputs.get('strength_clip', strength)}:{strength}>")
        if isinstance(inputs.get("ckpt_name"), str):
            settings["Model"] = re.sub(r"\.\w+$", "", re.split(r"[/\\]", inputs["ckpt_name"])[-1])
        link = inputs.get("model")
    for node in nodes.values():
        inputs = node.get("inputs", {})
        if node["class_type"] == "CLIPSetLastLayer" and isinstance(inputs.get("stop_at_clip_layer"), int):
            settings["Clip skip"] = -inputs["stop_at_clip_layer"]
        if node["class_type"] == "VAELoader":
            settings["VAE"] = re.sub(r"\.\w+$", "", str(inputs.get("vae_name", "")))
        if node["class_type"].startswith(("ControlNetApply", "FreeU", "IPAdapter")):
            settings[re.sub("Apply.*", "", node["class_type"])] = True
    return "".join(reversed(tags)), settings
