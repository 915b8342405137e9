"""Reads an adapter's file or folder: tensors by key, metadata and PEFT's config; refuses other model families."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from sd.checkpoints.families import PEFT_CONFIG
from sd.checkpoints.foreign_files import parse_json_object, read_json_file, reads_file
from sd.checkpoints.weight_files import describe_contents, read_weights
from sd.utils.errors import UserError

WEIGHT_NAMES = ("adapter_model", "pytorch_lora_weights", "pytorch_attn_procs")
ADAPTER_NAME = re.compile(  # PEFT's name for an adapter inside a model, which its own files leave out
    r"(?P<field>\.(lora_[AB]|lora_magnitude_vector|(hada|lokr)_[wt][12](_[ab])?))\.(?P<name>(?!weight$).+?)(?P<end>\.weight)?$"
)
METADATA_CONFIG = "lora_adapter_metadata"  # diffusers puts PEFT's settings there
BUNDLE = "bundle_emb."  # the webui's and OneTrainer's keys of an embedding: bundle_emb.NAME.clip_l
OTHER_VECTORS = ("clip_g", "clip_l_out", "clip_g_out", "t5", "t5_out")  # for other text encoders, or behind one
TOKEN_MARK = "<embed>"  # cloneofsimo's metadata of a key that is a token

XL = "Stable Diffusion XL"
OTHER_KEYS = [  # what a key says of the model that an adapter is for
    (r".*(double_blocks|single_blocks|single_transformer_blocks)[._]", "Flux"),
    (r".*joint_blocks[._]|transformer\.transformer_blocks\.", "Stable Diffusion 3"),
    (r"lora_te2_|text_encoder_2\.|.*transformer_blocks[._][1-9]", XL),
]
OTHER_METADATA = [
    (r"sdxl|stable-diffusion-xl", XL),
    (r"sd_v2|stable-diffusion-v2", "Stable Diffusion 2"),
    (r"sd3|stable-diffusion-3", "Stable Diffusion 3"),
    (r"flux", "Flux"),
]
MODEL_METADATA = ("ss_base_model_version", "modelspec.architecture")
WIDTHS = {768: "Stable Diffusion 1", 1024: "Stable Diffusion 2", 1280: XL, 2048: XL}  # of the text


@dataclass
class AdapterFile:
    """The content of an adapter. configs: PEFT's config of "unet" and "clip"; config_name: the source of these."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str] = field(default_factory=dict)
    configs: dict[str, dict] = field(default_factory=dict)
    config_name: str = ""


@reads_file
def open_adapter(path: Path) -> AdapterFile:
    """Reads a file, or a folder of PEFT or diffusers. cloneofsimo's lists become keys `unet:0:up`, `unet:0:down`, ...

    Raises UserError where it is unreadable or holds no tensors.
    """
    if path.is_dir():
        return open_folder(path)
    if path.stem == "adapter_model" and (path.parent / PEFT_CONFIG).is_file():
        return open_folder(path.parent)
    content, metadata = read_content(path)
    if isinstance(content, list):
        return open_lists(path, content)
    configs = {}
    if METADATA_CONFIG in metadata:
        flat = parse_json_object(metadata[METADATA_CONFIG], path)
        for part, prefix in (("unet", "unet."), ("clip", "text_encoder.")):
            if config := {key.removeprefix(prefix): value for key, value in flat.items() if key.startswith(prefix)}:
                configs[part] = config
    return AdapterFile(content, metadata, configs, f"the file's {METADATA_CONFIG}")


def read_content(path: Path) -> tuple[dict[str, Tensor] | list[Tensor], dict[str, str]]:
    found = read_weights(path)
    content = found.content
    while isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if isinstance(content, list) and content and all(isinstance(value, Tensor) for value in content):
        if (what := describe_contents(content)) != "a LoRA":
            raise UserError(f"{path} is {what}: use one for Stable Diffusion 1.")
        return content, {}
    entries = content.items() if isinstance(content, dict) else ()
    tensors = {str(key): value for key, value in entries if isinstance(value, Tensor)}
    if not tensors:
        raise UserError(f"{path} holds no LoRA: it is {describe_contents(content) or 'something else'}.")
    return without_adapter_name(path, tensors), found.metadata


def read_named_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by key. Raises UserError where it has a list of tensors."""
    tensors, _ = read_content(path)
    if isinstance(tensors, list):
        raise UserError(f"{path} has a list of {len(tensors)} tensors where tensors with names are expected.")
    return tensors


def without_adapter_name(path: Path, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns a key without an adapter's name: `lora_A.dog.weight` becomes `lora_A.weight`.

    Raises UserError where there are several such names.
    """
    names = dict.fromkeys(found["name"] for key in tensors if (found := ADAPTER_NAME.search(key)))
    if len(names) > 1:
        raise UserError(f"{path} holds {len(names)} LoRAs, {', '.join(names)}: save each to a file of its own.")
    return {ADAPTER_NAME.sub(r"\g<field>\g<end>", key): tensor for key, tensor in tensors.items()}


def open_lists(path: Path, content: list[Tensor]) -> AdapterFile:
    """Reads cloneofsimo's `X.pt`, [up0, down0, up1, down1, ...], with `X.text_encoder.pt` and `X.ti.pt` beside it."""
    text, tokens = (path.with_name(f"{path.stem}.{what}{path.suffix}") for what in ("text_encoder", "ti"))
    parts: dict[str, Any] = {"unet": content} if text.is_file() else {"": content}  # alone it may be either
    if text.is_file():
        parts["text_encoder"] = read_content(text)[0]
    tensors = {}
    for part, values in parts.items():
        if not isinstance(values, list) or len(values) % 2:
            raise UserError(f"{path} is no LoRA: a list of {len(values)} tensors cannot be pairs of up and down.")
        tensors |= {f"{part}:{i // 2}:{('up', 'down')[i % 2]}": value for i, value in enumerate(values)}
    found = read_named_tensors(tokens) if tokens.is_file() else {}
    return AdapterFile(tensors | found, dict.fromkeys(found, TOKEN_MARK))


def open_folder(path: Path) -> AdapterFile:
    """Reads PEFT's folder, a folder with PEFT's `unet` and `text_encoder` in it, or a folder that diffusers saved."""
    folders = {"unet": path / "unet", "clip": path / "text_encoder"}
    folders = {part: folder for part, folder in folders.items() if (folder / PEFT_CONFIG).is_file()}
    if (path / PEFT_CONFIG).is_file():
        folders = {"unet": path, "clip": path}
    if not folders:
        return open_adapter(weights_in(path))
    contents = AdapterFile({}, config_name=PEFT_CONFIG)
    for part, folder in folders.items():
        contents.tensors |= read_named_tensors(weights_in(folder))
        contents.configs[part] = read_json_file(folder / PEFT_CONFIG)
    return contents


def weights_in(folder: Path) -> Path:
    usual = [folder / (name + suffix) for name in WEIGHT_NAMES for suffix in (".safetensors", ".bin")]
    found = [path for path in usual if path.is_file()] or sorted(folder.glob("*.safetensors"))
    if not found or (len(found) > 1 and found[0] not in usual):
        raise UserError(f"{folder} holds {len(found) or 'no'} files that could be a LoRA: give the file itself.")
    return found[0]


def token_keys(contents: AdapterFile) -> dict[str, str]:
    """Maps keys to tokens, for the embeddings that are bundled with the layers; one key for each token."""
    tokens = {key: key for key in contents.tensors if contents.metadata.get(key) == TOKEN_MARK}
    bundled: dict[str, dict[str, str]] = {}  # token -> which vectors they are -> key
    for key in contents.tensors:
        if key.startswith(BUNDLE):
            name, _, vectors = key.removeprefix(BUNDLE).partition(".string_to_param.")
            if not vectors:
                name, _, vectors = name.rpartition(".")
            bundled.setdefault(name, {})[vectors] = key
    for name, keys in bundled.items():
        usable = [vectors for vectors in keys if vectors not in OTHER_VECTORS]
        if usable:
            tokens[keys[usable[0]]] = name
    return tokens


def check_model_family(path: Path, contents: AdapterFile, unet_text: int, clip_width: int) -> None:
    """Raises UserError for an adapter of another model family. unet_text: the U-Net's context width."""
    for names, what in OTHER_KEYS:
        if any(re.match(names, key) for key in contents.tensors):
            raise UserError(f"{path} is a LoRA for {what}: use one for Stable Diffusion 1.")
    if any(re.search(r"oft_(blocks|R)\b", key) and tensor.dim() != 3 for key, tensor in contents.tensors.items()):
        raise UserError(f"{path} is a BOFT, or an OFT of PEFT's, which are not read here: use a LoRA or its relatives.")
    about = " ".join(str(contents.metadata.get(key)).lower() for key in MODEL_METADATA)
    for pattern, what in OTHER_METADATA:
        if re.search(pattern, about):
            raise UserError(f"{path} is a LoRA for {what}, as its metadata says: use one for Stable Diffusion 1.")
    for key, tensor in contents.tensors.items():
        if tensor.dim() < 2 or not re.search(r"down(\.weight)?$|lora_A\b|hada_w1_b$", key):
            continue
        from_text = re.search(r"attn2[._](processor\.)?to_[kv]", key)
        in_text = re.search(r"self_attn|^text_encoder:", key)
        own = unet_text if from_text else clip_width if in_text else tensor.shape[1]
        if (width := tensor.shape[1]) != own:
            what = f"{WIDTHS.get(width, 'another model')}, whose text is {width} wide"
            raise UserError(f"{path} is a LoRA for {what}; this model's text is {own} wide: use a LoRA made for it.")
