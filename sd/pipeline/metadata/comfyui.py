"""Reads the settings in a plain ComfyUI graph: one KSampler with its prompts, latent and checkpoint."""

import re
from collections.abc import Mapping

SAMPLERS = ("KSampler", "KSamplerAdvanced", "KSampler (Efficient)")
MAX_HOPS = 50  # nodes from one end of a graph to the other


class Unreadable(ValueError):
    """A graph that cannot be read; the message describes it."""


def read_graph(nodes: Mapping[str, dict]) -> tuple[str, str, dict[str, object]]:
    """Returns the prompt, the negative prompt, and the settings by the webui's labels. Raises Unreadable."""
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
    settings |= latent_settings(nodes, first)
    if len(samplers) > 1:
        settings["ComfyUI samplers"] = len(samplers)
    prompt, negative = (text_at(nodes, inputs.get(name)) for name in ("positive", "negative"))
    if prompt is None:
        raise Unreadable("a ComfyUI workflow whose prompt comes from unknown nodes")
    loras, model = model_settings(nodes, inputs.get("model"))
    if re.search(r"[()]", f"{prompt}{negative}"):
        settings["ComfyUI weights"] = True
    return prompt + loras, negative or "", settings | model


def latent_settings(nodes: Mapping[str, dict], sampler: dict) -> dict[str, object]:
    """Returns the size of the noise, or that the sampler starts from an image."""
    denoise = value_of(nodes, sampler.get("inputs", {}).get("denoise"))
    latent = empty_latent(nodes, sampler)
    if latent is None:
        return {"Init image": "ComfyUI", "Denoising strength": denoise}
    width, height = (value_of(nodes, latent.get(side)) for side in ("width", "height"))
    return {"Size": f"{width}x{height}" if width and height else None}


def empty_latent(nodes: Mapping[str, dict], sampler: dict) -> dict | None:
    """Returns the inputs of the sampler's empty-latent node; None where the sampler starts from an image."""
    node = linked_node(nodes, sampler.get("inputs", {}).get("latent_image"))
    return node.get("inputs", {}) if node is not None and "Empty" in node["class_type"] else None


def linked_node(nodes: Mapping[str, dict], link: object) -> dict | None:
    """Returns the source node of a link, [number, output]."""
    return nodes.get(str(link[0])) if isinstance(link, list) and link else None


def value_of(nodes: Mapping[str, dict], value: object, hops: int = MAX_HOPS) -> object:
    """Returns a value, or the value of the node that it links to; None where that is unknown."""
    if not isinstance(value, list):
        return value
    node = linked_node(nodes, value)
    if node is None or hops == 0:
        return None
    inputs = node.get("inputs", {})
    for name in ("value", "seed", "noise_seed", "int", "float", "number", "text", "string", "Text"):
        if name in inputs:
            return value_of(nodes, inputs[name], hops - 1)
    return None


def text_at(nodes: Mapping[str, dict], link: object, hops: int = MAX_HOPS) -> str | None:
    """Returns the text of a conditioning, through the nodes that only pass it on; None where it is unknown."""
    node = linked_node(nodes, link)
    if node is None or hops == 0:
        return None
    inputs = node.get("inputs", {})
    if "text" in inputs:
        text = value_of(nodes, inputs["text"])
        return text if isinstance(text, str) else None
    onward = [inputs[name] for name in ("conditioning", "positive", "conditioning_1") if name in inputs]
    return text_at(nodes, onward[0], hops - 1) if onward else None


def model_settings(nodes: Mapping[str, dict], link: object) -> tuple[str, dict[str, object]]:
    """Returns the LoRAs of a model as prompt tags, and its name, VAE and clip skip."""
    tags: list[str] = []
    settings: dict[str, object] = {}
    for _ in range(MAX_HOPS):
        node = linked_node(nodes, link)
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
