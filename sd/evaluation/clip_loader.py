"""Loads CLIP with both towers from OpenAI's, open_clip's and transformers' files.

OpenAI's `.pt` files are TorchScript archives, which hold a program with its weights: the weights are loaded and the
program is not read. open_clip's state dicts have the same keys. A transformers model is a folder, or its one weight
file; its keys are the ones used here.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sd.checkpoints.checkpoint import read_checkpoint
from sd.checkpoints.completeness import summarize_keys
from sd.checkpoints.config import CLIP_HEAD_WIDTH, block_numbers, infer_clip_config, skip_init
from sd.checkpoints.diffusers_format import read_network
from sd.checkpoints.foreign_files import read_json_file, reads_file
from sd.checkpoints.pickles.objects import ScriptObject
from sd.checkpoints.weight_files import describe_contents, read_weights
from sd.clip import CLIPTextModel
from sd.tokenizer import MAX_LENGTH
from sd.utils.errors import UserError
from sd.vision.clip_vision import CLIP, CLIPVisionModel
from sd.vision.image_encoder import infer_vision_config

OPENAI_KEYS = [  # (pattern in OpenAI's keys, its replacement)
    (r"^visual\.transformer\.resblocks\.", "vision_model.encoder.layers."),
    (r"^transformer\.resblocks\.", "text_model.encoder.layers."),
    (r"(?<=\d)\.attn\.", ".self_attn."),
    (r"(?<=\d)\.ln_([12])\.", r".layer_norm\1."),
    (r"(?<=\d)\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"(?<=\d)\.mlp\.c_proj\.", ".mlp.fc2."),
    (r"^visual\.class_embedding$", "vision_model.embeddings.class_embedding"),
    (r"^visual\.conv1\.", "vision_model.embeddings.patch_embedding."),
    (r"^visual\.positional_embedding$", "vision_model.embeddings.position_embedding.weight"),
    (r"^visual\.ln_pre\.", "vision_model.pre_layrnorm."),
    (r"^visual\.ln_post\.", "vision_model.post_layernorm."),
    (r"^token_embedding\.", "text_model.embeddings.token_embedding."),
    (r"^positional_embedding$", "text_model.embeddings.position_embedding.weight"),
    (r"^ln_final\.", "text_model.final_layer_norm."),
]
OPENAI_PROJECTIONS = {"visual.proj": "visual_projection.weight", "text_projection": "text_projection.weight"}
NOT_WEIGHTS = re.compile(r"(.*\.)?(input_resolution|context_length|vocab_size|attn_mask|position_ids)")
VOCABULARY = 49408
WIDEST = 1024  # ViT-L's vision tower; wider ones have heads of other widths, which no tensor's shape tells


@reads_file
def read_clip(path: str | Path) -> CLIP:
    """Load both towers from a file or folder, whose format its contents tell; fp32, in eval mode, without gradients.

    A file does not state which GELU it was trained with; OpenAI's, the quick one, is assumed. A transformers folder
    does state it, and one with the exact GELU, as open_clip trains, is refused.
    Raises UserError for a file that is not a CLIP with a vision transformer.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        heads = read_heads(path)
        return build_clip(extract_towers(read_network(path)[0], path), heads, path)
    found = read_weights(path)
    state = extract_towers(found.content, path)
    if "sd_sizes" not in found.metadata:
        return build_clip(state, None, path)
    # The text tower is stored once, in the bundled model.
    bundled = read_checkpoint(path.with_name(path.name.replace("-clip", "")))
    text = {f"text_model.{key}": tensor for key, tensor in bundled.clip.items()}
    heads = {"text": bundled.config["clip"]["heads"], "vision": vision_heads(found.metadata["sd_sizes"], path)}
    return build_clip(state | text, heads, path)


def vision_heads(sizes: str, path: Path) -> int:
    """Return the number of attention heads that a bundled file's metadata gives for its vision tower."""
    try:
        return json.loads(sizes)["vision"]["heads"]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: its sd_sizes cannot be understood ({error!r}); write the file anew.") from error


def extract_towers(content: Any, path: Path) -> dict[str, Tensor]:
    """Return the tensors of both towers by transformers' keys, without anything that is around or beside the CLIP."""
    tensors = flatten_tensors(content)
    ways: dict[str, Callable] = {"visual.proj": convert_openai_keys, "visual_projection.weight": dict}
    for sign, rename in ways.items():
        if found := next((key for key in tensors if ("." + key).endswith("." + sign)), None):
            above = found.removesuffix(sign)
            inside = {key.removeprefix(above): tensor for key, tensor in tensors.items() if key.startswith(above)}
            return rename({key: tensor for key, tensor in inside.items() if not NOT_WEIGHTS.fullmatch(key)})
    if any(key.endswith("visual.attnpool.positional_embedding") for key in tensors):
        raise UserError(f"{path} is a CLIP with a ResNet: give one with a vision transformer, such as ViT-L/14.")
    what = describe_contents(tensors) or "another kind of model"
    raise UserError(f"{path} is {what}, not a CLIP with both towers: give OpenAI's ViT-L-14.pt, or a CLIP folder.")


def flatten_tensors(content: Any) -> dict[str, Tensor]:
    """Return all tensors in nested dicts and TorchScript modules by their dotted paths; each container counts once."""
    found, seen, todo = {}, set(), [("", content)]
    while todo:
        path, value = todo.pop()
        value = value.state if isinstance(value, ScriptObject) else value
        if isinstance(value, Tensor):
            found[path] = value
        elif isinstance(value, dict) and id(value) not in seen:
            seen.add(id(value))
            todo += [(f"{path}.{key}" if path else str(key), inner) for key, inner in value.items()]
    return found


def convert_openai_keys(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert OpenAI's keys: q, k and v are one matrix there, and both projections are transposed."""
    renamed = {}
    for key, tensor in state.items():
        for pattern, ours in OPENAI_KEYS:
            key = re.sub(pattern, ours, key)
        if "in_proj_" in key and tensor.dim() > 0:
            for letter, part in zip("qkv", tensor.chunk(3)):
                renamed[key.replace("in_proj_", f"{letter}_proj.")] = part
        elif key in OPENAI_PROJECTIONS:
            renamed[OPENAI_PROJECTIONS[key]] = tensor.mT if tensor.dim() == 2 else tensor
        else:
            renamed[key] = tensor
    return renamed


def read_heads(folder: Path) -> dict[str, int]:
    """Return the number of attention heads of each tower from a transformers folder's config."""
    if not (folder / "config.json").exists():
        raise UserError(f"{folder} has no config.json: give a transformers folder of CLIP, or a file.")
    config = read_json_file(folder / "config.json")
    if config.get("model_type") != "clip":
        raise UserError(f"{folder} is for {config.get('model_type')}, not CLIP with both towers: give another folder.")
    heads = {}
    for tower, usual in (("text", 8), ("vision", 12)):  # transformers leaves out default values
        about = config.get(f"{tower}_config")
        about = about if isinstance(about, dict) else {}
        heads[tower] = about.get("num_attention_heads", usual)
        if (kind := about.get("hidden_act", "quick_gelu")) != "quick_gelu":
            raise UserError(f"{folder} computes with {kind}, OpenAI's CLIP with quick_gelu: give one of those.")
    return heads


def infer_sizes(state: dict[str, Tensor], heads: dict[str, int] | None, path: Path) -> tuple[dict, dict, int]:
    """Infer from the shapes the text tower's arguments, the vision tower's, and the width of the shared space."""
    text, vision = (
        {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}
        for prefix in ("text_model.", "vision_model.")
    )
    sizes = {"text": infer_clip_config(text), "vision": infer_vision_config(vision)}
    if heads is None and sizes["vision"]["width"] > WIDEST:
        raise UserError(f"{path} is larger than ViT-L/14, and the file does not say how: give ViT-L/14 or B/32.")
    for tower, tensors in (("text", text), ("vision", vision)):
        width = sizes[tower]["width"]
        sizes[tower]["layers"] = len(block_numbers(r"encoder\.layers\.(\d+)\.", tensors))
        sizes[tower]["heads"] = max(1, width // CLIP_HEAD_WIDTH) if heads is None else heads[tower]
        if width % sizes[tower]["heads"] or sizes[tower]["layers"] == 0:
            raise ValueError("no such tower")
    return sizes["text"], sizes["vision"], state["visual_projection.weight"].shape[0]


def build_clip(state: dict[str, Tensor], heads: dict[str, int] | None, path: Path) -> CLIP:
    """Build the towers in the sizes that the shapes give, and load the weights strictly."""
    try:
        text, vision, projection_dim = infer_sizes(state, heads, path)
        with torch.device("meta"), skip_init():
            clip = CLIP(CLIPTextModel(**text), CLIPVisionModel(**vision), projection_dim)
    except UserError:
        raise
    except KeyError as error:
        raise UserError(f"{path} is not a whole CLIP: it lacks {error.args[0]}.") from error
    except (IndexError, RuntimeError, TypeError, ValueError, ZeroDivisionError) as error:
        raise UserError(f"{path} is not a CLIP as OpenAI made them: its tensors have other shapes.") from error
    if (text["vocab_size"], text["max_length"]) != (VOCABULARY, MAX_LENGTH):
        raise UserError(f"{path} has another vocabulary than OpenAI's CLIP: give one of those.")
    expected = clip.state_dict()
    wrong = [key for key, place in expected.items() if key not in state or state[key].shape != place.shape]
    if wrong := wrong + [key for key in state if key not in expected]:
        raise UserError(f"{path} is not a CLIP as OpenAI made them: it differs in {summarize_keys(wrong)}.")
    clip.load_state_dict({key: tensor.float() for key, tensor in state.items()}, strict=True, assign=True)
    return clip.requires_grad_(False).eval()
