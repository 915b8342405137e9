"""Normalize the state-dict keys of every LoRA format (kohya, diffusers, PEFT, LyCORIS, ...) to (network, layer, field).

A key is a layer's name and a field: `lora_unet_mid_block_attentions_0_proj_in` and `.alpha`. The formats differ in
how they write both. The fields are few and have a table. The layers are found in a table of every layer of our own
networks in every notation, because underscores cannot be parsed. cloneofsimo's files number the layers, in the order
of an old diffusers.
"""

import math
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn

from sd.adapters.injection import patchable_layers
from sd.adapters.lora_files import AdapterFile, check_model_family, open_adapter, token_keys
from sd.adapters.variants import WeightDelta, build_delta
from sd.checkpoints.diffusers_keys import unet_names
from sd.checkpoints.families import PEFT_CONFIG, describe_contents
from sd.checkpoints.foreign_files import reads_file
from sd.utils.errors import UserError

LABELS = [  # the first that any key begins with
    (r"(unet|text_encoder|):\d+:", "cloneofsimo's, layers by number"),
    (r"base_model\.model\.", "PEFT's"),
    (r".*\.processor\.|.*\.to_\w+_lora\.", "diffusers' of early 2023"),
    (r"lora_unet_(input|middle|output)_", "kohya's, layers named as in the checkpoint"),
    (r"(lora|oft)_(unet|te1?)_", "kohya's"),
    (r"lycoris_", "LyCORIS'"),
    (r"(model\.)?diffusion_model\.|(text_encoders\.)?clip_l\.", "ComfyUI's"),
    (r"", "diffusers'"),
]
PREFIXES = re.compile(
    "(base_model_model_|lycoris_|(lora|oft)_unet_|(lora|oft)_te1?_|unet_|text_encoder_|(model_)?diffusion_model_"
    "|(text_encoders_)?clip_l_transformer_|cond_stage_model_transformer_)*"
)
FIELDS = [  # how a key ends, and the field that it is; None for its own name
    (r"(?::|[._](?:lora_linear_layer\.|lora\.|lora_))(?:down|A)(?:\.weight)?", "lora_down"),
    (r"(?::|[._](?:lora_linear_layer\.|lora\.|lora_))(?:up|B)(?:\.weight)?", "lora_up"),
    (r"\.lora_mid\.weight", "lora_mid"),
    (r"(?:[._]lora)?\.alpha", "alpha"),
    (r"\.lora_magnitude_vector(?:\.\w+)*", "magnitude"),
    (r"\.(dora_scale|(?:hada|lokr)_[wt][12](?:_[ab])?|diff|diff_b)", None),
    (r"\.w_norm", "diff"),
    (r"\.b_norm", "diff_b"),
    (r"\.(oft_blocks|oft_diag|rescale|on_input)", None),
    (r"\.([ab][12])\.weight", None),
    (r"\.weight", "ia3"),  # together with `on_input`
]
# cloneofsimo's targets are classes of diffusers; their layers by our own names for them.
TARGET_LAYERS = {
    "CrossAttention": r"\.attn[12]\.",
    "Attention": r"\.attn[12]\.",
    "GEGLU": r"\.ff\.net\.0\.proj$",
    "ResnetBlock2D": r"\.resnets\.\d+\.(conv|time)",
    "CLIPAttention": r"\.self_attn\.",
}
DEFAULT_TARGETS = {"unet": [["CrossAttention", "GEGLU"], ["CrossAttention"]], "clip": [["CLIPAttention"]]}

Place = tuple[str, str]  # "unet" or "clip", and the path of a layer in it
Layers = dict[str, dict[str, nn.Module]]  # "unet" or "clip" -> path -> layer


@dataclass
class LoraFile:
    """The layers that a file changes.

    deltas: "unet" or "clip" -> path -> delta. total: how many layers the file names. unmatched: key -> why not.
    scale: where the scale came from, in words. embeddings: vectors by token, where some came along.
    """

    format: str
    deltas: dict[str, dict[str, WeightDelta]]
    total: int
    unmatched: dict[str, str]
    scale: str
    embeddings: dict[str, Tensor]
    metadata: dict[str, str]


@reads_file
def read_lora(path: str | Path, unet: nn.Module, clip: nn.Module) -> LoraFile:
    """Reads a file or folder of any format for these networks, and changes nothing in them.

    Raises UserError where it is unreadable, no adapter, for another family of models, or fits no layer.
    """
    path = Path(path).expanduser()
    contents = open_adapter(path)
    layers = {"unet": patchable_layers(unet), "clip": patchable_layers(clip)}
    check_model_family(path, contents, input_width(layers["unet"], "attn2.to_k"), input_width(layers["clip"], "q_proj"))
    tokens = token_keys(contents)
    named, unmatched = group_keys([key for key in contents.tensors if key not in tokens])
    if not named:
        raise UserError(f"{path} holds no LoRA: it is {describe_contents(contents.tensors) or 'something else'}.")
    is_numbered = all(re.fullmatch(r"\w*:\d+", module) for module in named)
    places = match_by_index(path, contents, named, layers) if is_numbered else match_by_name(layers)
    deltas: dict[str, dict[str, WeightDelta]] = {"unet": {}, "clip": {}}
    for module, keys in named.items():
        part, layer = places.get(module if is_numbered else normalize_key(module), ("", ""))
        try:
            if not part:
                raise ValueError("no such layer")
            if layer in deltas[part]:
                raise ValueError("this layer is there under another name as well")
            deltas[part][layer] = build_layer_delta(module, keys, contents, part, layers[part][layer])
        except ValueError as error:
            unmatched |= {key: str(error) for key in keys.values()}
    if not any(deltas.values()):
        key, reason = next(iter(unmatched.items()))
        raise UserError(f"{path} fits no layer of this model, so it is for another one: its {key} ({reason}).")
    return LoraFile(
        format=next(label for pattern, label in LABELS if any(re.match(pattern, key) for key in contents.tensors)),
        deltas=deltas,
        total=len(named),
        unmatched=unmatched,
        scale=scale_source(contents, named),
        embeddings={token: contents.tensors[key].to(torch.float32, copy=True) for key, token in tokens.items()},
        metadata=contents.metadata,
    )


def input_width(layers: dict[str, nn.Module], ending: str) -> int:
    return next(layer.in_features for path, layer in layers.items() if path.endswith(ending))


def group_keys(keys: list[str]) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """Groups keys by layer: the file's name of it -> field -> key; and the unknown keys, with that reason."""
    named: dict[str, dict[str, str]] = {}
    unknown = {}
    ia3 = {key.removesuffix(".on_input") for key in keys if key.endswith(".on_input")}
    for key in keys:
        for ending, field in FIELDS:
            found = re.search(ending + "$", key)
            if found and (field != "ia3" or key[: found.start()] in ia3):
                named.setdefault(key[: found.start()], {})[field or found[1]] = key
                break
        else:
            unknown[key] = "unknown kind of key"
    return named, unknown


def normalize_key(module: str) -> str:
    """Converts a layer's name in any notation to that of `match_by_name`: underscores for dots, and no prefix."""
    name = module.replace(".processor.", ".").replace(".", "_")
    return name[PREFIXES.match(name).end() :]


def match_by_name(layers: Layers) -> dict[str, Place]:
    """Maps every name of every layer of both networks, with underscores for dots, to the layer."""
    names: dict[str, Place] = {}

    def add(name: str, part: str, path: str) -> None:
        names[name.replace(".", "_")] = (part, path)

    for path, theirs in unet_names(layers["unet"]).items():
        add(path, "unet", path)
        add(theirs, "unet", path)
        if theirs.endswith(".to_out.0"):  # before 2023's end it was `to_out_lora`
            add(theirs.removesuffix(".0"), "unet", path)
    for path in layers["clip"]:
        older = re.sub(r"self_attn\.(\w+)_proj$", r"self_attn.to_\1", path)
        for name in (path, older):
            add(name, "clip", path)
            add("text_model." + name, "clip", path)
    return names


def match_by_index(
    path: Path, contents: AdapterFile, named: dict[str, dict[str, str]], layers: Layers
) -> dict[str, Place]:
    """Maps cloneofsimo's layer numbers to layers. Raises UserError unless all shapes agree with a known order."""
    places: dict[str, Place] = {}
    for prefix in dict.fromkeys(module.partition(":")[0] for module in named):
        modules = [f"{prefix}:{i}" for i in range(sum(module.startswith(prefix + ":") for module in named))]
        pairs = [named.get(module, {}) for module in modules]
        shapes = [
            (*contents.tensors[pair["lora_up"]].shape[:1], *contents.tensors[pair["lora_down"]].shape[1:2])
            for pair in pairs
            if pair.keys() == {"lora_up", "lora_down"}
        ]
        parts = {"unet": ["unet"], "text_encoder": ["clip"]}.get(prefix, ["unet", "clip"])
        given = re.findall(r"\w+", str(contents.metadata.get(prefix, "")))
        for part, targets in [(p, t) for p in parts for t in ([given] if given else DEFAULT_TARGETS[p])]:
            order = old_order(part, layers[part], targets)
            if shapes == [tuple(layers[part][place].weight.shape[:2]) for place in order]:
                places |= {module: (part, place) for module, place in zip(modules, order)}
                break
        else:
            raise UserError(
                f"{path} numbers its {len(modules)} layers instead of naming them, and they fit this model in no order "
                "that is known: it is for another model."
            )
    return places


def old_order(part: str, layers: dict[str, nn.Module], targets: list[str]) -> list[str]:
    """Lists the layers of these classes in the order of diffusers in early 2023: down blocks, up blocks, middle block.

    In a block attentions come before residual blocks; in a transformer `ff` stands before `attn2`, as it does here.
    """
    names = unet_names(layers) if part == "unet" else {path: path for path in layers}
    patterns = [TARGET_LAYERS[target] for target in targets if target in TARGET_LAYERS]
    paths = [path for path, name in names.items() if any(re.search(pattern, name) for pattern in patterns)]
    if part == "clip":
        return paths

    def place(path: str) -> tuple:
        stage, level, kind, index = re.match(r"(down|up|mid)_blocks?\.?(\d*)\.(\w+)\.(\d+)", names[path]).groups()
        return ("down", "up", "mid").index(stage), int(level or 0), kind == "resnets", int(index)

    return sorted(paths, key=place)  # sorting keeps the order within a block


def build_layer_delta(
    module: str, keys: dict[str, str], contents: AdapterFile, part: str, layer: nn.Module
) -> WeightDelta:
    """Builds the delta of one layer, in fp32 and in its own memory. Raises ValueError if it does not fit."""
    fields = {field: contents.tensors[key].to(torch.float32, copy=True) for field, key in keys.items()}
    alpha = fields.pop("alpha", None)
    if "magnitude" in fields:  # PEFT's, always one for each output
        fields["dora_scale"] = fields.pop("magnitude").flatten()
    if "on_input" in fields:
        fields["ia3_in" if fields.pop("on_input").any() else "ia3_out"] = fields.pop("ia3", torch.empty(0))
    delta = build_delta(fields)
    shape = delta_shape(tuple((field, tensor.shape) for field, tensor in fields.items()), layer.weight.shape)
    if shape != layer.weight.shape or ("diff_b" in fields and fields["diff_b"].shape != layer.weight.shape[:1]):
        raise ValueError(f"of another shape than the layer's {list(layer.weight.shape)}")
    if alpha is not None and alpha.numel() != 1:
        raise ValueError("its alpha is not one number")
    scale = delta.scale_for(None if alpha is None else alpha.item())
    if alpha is None and part in contents.configs:
        scale = config_scale(contents.configs[part], module, delta.rank)
    return build_delta(fields, scale).requires_grad_(False)


@lru_cache(maxsize=1024)
def delta_shape(fields: tuple[tuple[str, torch.Size], ...], weight: torch.Size) -> torch.Size | None:
    """Returns the shape of the ΔW of fields of these shapes; None where they do not agree."""
    delta = build_delta({field: torch.empty(shape, device="meta") for field, shape in fields})
    try:
        return delta.delta(torch.empty(weight, device="meta")).shape
    except (RuntimeError, IndexError):
        return None


def config_scale(config: dict, module: str, rank: int | None) -> float:
    """Returns alpha / r of a layer from PEFT's config; r is that of the tensors where they have one."""

    def lookup(patterns: dict | None, otherwise):
        return next((v for name, v in (patterns or {}).items() if f".{module}".endswith(f".{name}")), otherwise)

    try:
        rank = rank or int(lookup(config.get("rank_pattern"), config.get("r", 1))) or 1
        alpha = float(lookup(config.get("alpha_pattern"), config.get("lora_alpha", config.get("alpha", rank))))
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError("its settings give no number for alpha") from error
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def scale_source(contents: AdapterFile, named: dict[str, dict[str, str]]) -> str:
    with_alpha = sum("alpha" in keys for keys in named.values())
    if with_alpha == len(named):
        return "alpha / rank, both from the file"
    if contents.configs:
        return f"alpha / rank, from {contents.config_name}"
    if with_alpha:
        return f"alpha / rank from the file, and 1 for the {len(named) - with_alpha} layers that name no alpha"
    if any(module.startswith("base_model.") for module in named):
        return f"1, a guess: PEFT keeps alpha in {PEFT_CONFIG}, which does not lie beside the file"
    return "1, for the file names no alpha"
