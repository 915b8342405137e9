"""Writes an adapter of a model to a file that other programs read: kohya's format, diffusers' or PEFT's."""

import hashlib
import json
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor, nn

from sd.adapters.injection import deltas_of, patchable_layers
from sd.adapters.variants import IA3, DoRA, GLoRA, LoRA, WeightDelta
from sd.checkpoints.diffusers_keys import unet_names
from sd.checkpoints.families import PEFT_CONFIG
from sd.checkpoints.weight_files import write_safetensors
from sd.utils.errors import UserError
from sd.utils.files import replacing

KOHYA_PREFIXES = {"unet": "lora_unet_", "clip": "lora_te_text_model_"}
DIFFUSERS_PREFIXES = {"unet": "unet.", "clip": "text_encoder.text_model."}
DIFFUSERS_FIELDS = {"unet": "lora.{}.weight", "clip": "lora_linear_layer.{}.weight"}
PEFT_FOLDERS = {"unet": "unet", "clip": "text_encoder"}
PEFT_PREFIXES = {"unet": "base_model.model.", "clip": "base_model.model.text_model."}

Part = dict[str, tuple[WeightDelta, nn.Module]]  # the other programs' name of a layer -> its delta, the layer


def save_lora(
    path: str | Path,
    unet: nn.Module,
    clip: nn.Module,
    name: str,
    file_format: str = "kohya",
    metadata: dict[str, str] | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Saves an adapter of these networks; a file at `path` is replaced only once the new one is complete.

    file_format: "kohya", one .safetensors that every program reads; "diffusers", one too; "peft", a folder
    with `unet` and `text_encoder` in it. metadata: additional entries, as text. dtype: None keeps fp32.
    Raises UserError where no such adapter is loaded, the format cannot represent its kind, or the path is not writable.
    """
    path = Path(path).expanduser()
    parts = {"unet": named_deltas(unet, name, "unet"), "clip": named_deltas(clip, name, "clip")}
    if not any(parts.values()):
        raise UserError(f"no adapter named {name} is loaded, so there is nothing to save.")
    if file_format in ("diffusers", "peft") and any(is_mixed(part) for part in parts.values()):
        raise UserError(f"the {file_format} format has DoRA in all layers or in none; use --format kohya.")
    writers = {"kohya": write_kohya, "diffusers": write_diffusers, "peft": write_peft}
    if file_format not in writers:
        raise UserError(f"unknown LoRA format {file_format!r}; choose from kohya, diffusers, peft.")
    with replacing(path) as part:
        writers[file_format](part, parts, {"format": "pt"} | (metadata or {}), dtype)


def named_deltas(network: nn.Module, name: str, part: str) -> Part:
    paths = patchable_layers(network)
    names = unet_names(paths) if part == "unet" else {path: path for path in paths}
    return {names[path]: (delta, paths[path]) for path, delta in deltas_of(network, name).items()}


def is_mixed(part: Part) -> bool:
    return len({isinstance(delta, DoRA) for delta, _ in part.values()}) > 1


def shaped_fields(delta: WeightDelta, layer: nn.Module) -> dict[str, Tensor]:
    """Returns the tensors of a delta; those of a LoRA have the layer's own number of dimensions."""
    fields = delta.fields()
    if "lora_up" in fields and "lora_mid" not in fields:
        shape = layer.weight.shape
        fields["lora_down"] = fields["lora_down"].reshape(-1, *shape[1:])
        fields["lora_up"] = fields["lora_up"].reshape(shape[0], -1, *[1] * (len(shape) - 2))
    return fields


def write_kohya(path: Path, parts: dict[str, Part], metadata: dict[str, str], dtype: torch.dtype | None) -> None:
    tensors = {}
    for part, deltas in parts.items():
        for name, (delta, layer) in deltas.items():
            key = KOHYA_PREFIXES[part] + name.replace(".", "_")
            for field, tensor in shaped_fields(delta, layer).items():
                if isinstance(layer, (nn.LayerNorm, nn.GroupNorm)):
                    field = {"diff": "w_norm", "diff_b": "b_norm"}[field]
                elif field == "lokr_w1" and delta.rank is None:
                    tensor = tensor * delta.scale  # without a rank there is no alpha to hold it
                elif isinstance(delta, IA3):
                    tensors[f"{key}.on_input"] = torch.tensor(int(field == "ia3_in"))
                    field = "weight"
                has_layers = isinstance(delta, GLoRA) or field.startswith("lora_")
                tensors[f"{key}.{field}.weight" if has_layers else f"{key}.{field}"] = tensor
            if delta.alpha is not None:
                tensors[f"{key}.alpha"] = torch.tensor(delta.alpha)
    tensors = as_dtype(tensors, dtype)
    metadata = kohya_metadata(parts) | metadata
    write_safetensors(path, tensors, metadata)
    write_safetensors(path, tensors, metadata | {"sshs_model_hash": tensors_hash(path)})


def kohya_metadata(parts: dict[str, Part]) -> dict[str, str]:
    deltas = [delta for part in parts.values() for delta, _ in part.values()]
    usual = Counter((delta.rank, delta.alpha) for delta in deltas).most_common(1)[0][0]
    is_lora = all(isinstance(delta, LoRA) and delta.lora_mid is None for delta in deltas)
    return {
        "ss_base_model_version": "sd_v1",
        "ss_network_module": "networks.lora" if is_lora else "lycoris.kohya",
        "ss_network_dim": str(usual[0]),
        "ss_network_alpha": str(usual[1]),
        "modelspec.architecture": "stable-diffusion-v1/lora",
    }


def tensors_hash(path: Path) -> str:
    """Returns the SHA-256 of a .safetensors file without its header, by which the webui identifies a LoRA."""
    with open(path, "rb") as file:
        file.seek(int.from_bytes(file.read(8), "little"), 1)
        return hashlib.sha256(file.read()).hexdigest()


def as_dtype(tensors: dict[str, Tensor], dtype: torch.dtype | None) -> dict[str, Tensor]:
    return {key: t.to(dtype) if dtype and t.is_floating_point() else t for key, t in tensors.items()}


def write_diffusers(path: Path, parts: dict[str, Part], metadata: dict[str, str], dtype: torch.dtype | None) -> None:
    """Writes diffusers' format, which has no alpha, so that `up` includes the scale."""
    tensors = {}
    for part, deltas in parts.items():
        for name, (delta, layer) in deltas.items():
            key, field = DIFFUSERS_PREFIXES[part] + name, DIFFUSERS_FIELDS[part]
            down, up, magnitude = low_rank(delta, layer, "diffusers")
            tensors[f"{key}.{field.format('down')}"], tensors[f"{key}.{field.format('up')}"] = down, up * delta.scale
            if magnitude is not None:
                tensors[f"{key}.lora_magnitude_vector"] = magnitude
    write_safetensors(path, as_dtype(tensors, dtype), metadata)


def write_peft(path: Path, parts: dict[str, Part], metadata: dict[str, str], dtype: torch.dtype | None) -> None:
    for part, deltas in parts.items():
        if not deltas:
            continue
        tensors = {}
        for name, (delta, layer) in deltas.items():
            down, up, magnitude = low_rank(delta, layer, "peft")
            key = PEFT_PREFIXES[part] + name
            tensors[f"{key}.lora_A.weight"], tensors[f"{key}.lora_B.weight"] = down, up
            if magnitude is not None:
                tensors[f"{key}.lora_magnitude_vector"] = magnitude
        folder = path / PEFT_FOLDERS[part]
        folder.mkdir(parents=True)
        write_safetensors(folder / "adapter_model.safetensors", as_dtype(tensors, dtype), metadata)
        prefix = PEFT_PREFIXES[part].removeprefix("base_model.model.")
        names = {prefix + name: delta for name, (delta, _) in deltas.items()}
        config = {
            "peft_type": "LORA",
            "r": next(iter(names.values())).rank,
            "lora_alpha": next(iter(names.values())).alpha,
            "rank_pattern": {name: delta.rank for name, delta in names.items()},
            "alpha_pattern": {name: delta.alpha for name, delta in names.items()},
            "target_modules": list(names),
            "use_dora": any(isinstance(delta, DoRA) for delta in names.values()),
        }
        (folder / PEFT_CONFIG).write_text(json.dumps(config, indent=2), encoding="utf-8")


def low_rank(delta: WeightDelta, layer: nn.Module, file_format: str) -> tuple[Tensor, Tensor, Tensor | None]:
    """Returns (down, up, DoRA's magnitude or None). Raises UserError for an adapter of any other kind."""
    fields = shaped_fields(delta, layer)
    magnitude = fields.get("dora_scale")
    per_output = magnitude is None or magnitude.shape[0] == layer.weight.shape[0]
    if fields.keys() - {"dora_scale"} != {"lora_down", "lora_up"} or not per_output:
        raise UserError(f"the {file_format} format cannot represent this adapter type; use --format kohya.")
    if magnitude is not None:
        magnitude = magnitude.flatten() if layer.weight.dim() == 2 else magnitude.reshape(1, -1, 1, 1)
    return fields["lora_down"], fields["lora_up"], magnitude
