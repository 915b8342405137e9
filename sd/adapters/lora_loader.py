"""Loads an adapter file into a model and unloads it, with a report of what matched."""

import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from sd.adapters.injection import adapter_names, eject, inject
from sd.adapters.lora_keys import LoraFile, read_lora
from sd.adapters.variants import DoRA, WeightDelta
from sd.utils.errors import UserError

NETWORK_NAMES = {"unet": "U-Net", "clip": "text encoder"}
MAX_STRENGTH = 100
USAGE, LONGEST_USAGE = "modelspec.usage_hint", 200  # the metadata that the report shows, and how many characters of it
SHOWN = 8  # unmatched keys in the printed report; the report object has them all


@dataclass
class LoraReport:
    """The result of loading. matched and total count layers; unmatched: key -> why not; scale: its origin, in words.

    strengths and sizes are by network, "unet" and "clip"; a size is |ΔW| / |W| over the matched layers, at strength 1.
    embeddings: vectors (n, D) by token that came along in the file; words: those of them that are loaded.
    usage: how its maker means it to be used, or "".
    """

    name: str
    path: Path
    format: str
    kinds: dict[str, int]
    matched: int
    total: int
    unmatched: dict[str, str]
    scale: str
    strengths: dict[str, float]
    sizes: dict[str, float]
    embeddings: dict[str, Tensor]
    warnings: list[str]
    words: list[str] = field(default_factory=list)
    usage: str = ""

    @property
    def notes(self) -> list[str]:
        """Returns the warnings as whole sentences."""
        return [f"the LoRA {self.name}: {warning}." for warning in self.warnings]

    def __str__(self) -> str:
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.kinds.items())
        parts = [
            f"{NETWORK_NAMES[part]}: strength {self.strengths[part]:g}, |ΔW|/|W| = {size:.2g}"
            for part, size in self.sizes.items()
        ]
        lines = [
            f"{self.name}: {self.matched} of {self.total} layers matched ({kinds}), {self.format} format",
            *(f"  {part}" for part in parts),
            f"  scale: {self.scale}",
        ]
        if self.words:
            lines.append(f"  bundled embeddings, loaded with it: {', '.join(self.words)}")
        if self.usage:
            lines.append(f"  usage: {self.usage}")
        lines += [f"  not matched: {key} ({why})" for key, why in list(self.unmatched.items())[:SHOWN]]
        if len(self.unmatched) > SHOWN:
            lines.append(f"  not matched: {len(self.unmatched) - SHOWN} more keys")
        return "\n".join([*lines, *(f"  warning: {warning}" for warning in self.warnings)])


def load_lora(
    unet: nn.Module,
    clip: nn.Module,
    path: str | Path,
    strength: float = 1.0,
    text_strength: float | None = None,
    name: str | None = None,
) -> LoraReport:
    """Loads an adapter of any format into both networks.

    strength: of its part in the U-Net; text_strength: of its part in the text encoder, the same if None.
    name: what to call it; the file's if None. Raises UserError, with nothing changed, where the file is unreadable,
    for another model, fits no layer, holds numbers that are not finite, or where its name is in use.
    """
    path = Path(path).expanduser()
    networks = {"unet": unet, "clip": clip}
    strengths = {"unet": strength, "clip": strength if text_strength is None else text_strength}
    for value in strengths.values():
        check_strength(value)
    name = path.stem if name is None else name
    if name in loaded_adapters(unet, clip):
        raise UserError(f"an adapter named {name} is loaded already: unload it first, or give this one another name.")
    file = read_lora(path, unet, clip)
    if not all(is_finite(delta) for deltas in file.deltas.values() for delta in deltas.values()):
        raise UserError(f"{path} contains NaN or infinite values (its training diverged); use an earlier checkpoint.")
    sizes = {part: relative_size(networks[part], deltas) for part, deltas in file.deltas.items() if deltas}
    for part, deltas in file.deltas.items():
        inject(networks[part], name, deltas, strengths[part])
    return build_report(name, path, file, strengths, sizes)


def check_strength(strength: float) -> None:
    if not abs(strength) <= MAX_STRENGTH:
        raise UserError(f"invalid strength {strength:g}; give a number between -{MAX_STRENGTH} and {MAX_STRENGTH}.")


def is_finite(delta: WeightDelta) -> bool:
    return math.isfinite(delta.scale) and all(parameter.isfinite().all() for parameter in delta.parameters())


@torch.no_grad()
def relative_size(network: nn.Module, deltas: dict[str, WeightDelta]) -> float:
    """Returns |ΔW| / |W| over the patched layers, at strength 1."""
    change = weight = 0.0
    for path, delta in deltas.items():
        own = network.get_submodule(path).weight
        change += delta.norm(own) ** 2
        weight += torch.linalg.vector_norm(own, dtype=torch.float32).item() ** 2
    return math.sqrt(change / weight)


def build_report(
    name: str, path: Path, file: LoraFile, strengths: dict[str, float], sizes: dict[str, float]
) -> LoraReport:
    deltas = [delta for part in file.deltas.values() for delta in part.values()]
    warnings = []
    if not any(sizes.values()) and all(delta.delta_bias() is None for delta in deltas):
        warnings.append("every change in it is zero, so it does nothing: it was saved before it learned anything")
    if left_out := file.total - len(deltas):
        warnings.append(f"{left_out} of its layers are left out, so it does less than it should")
    elif file.unmatched:
        warnings.append(f"keys of an unknown kind are ignored: {', '.join(list(file.unmatched)[:SHOWN])}")
    return LoraReport(
        name=name,
        path=path,
        format=file.format,
        kinds=dict(Counter(describe_delta(delta) for delta in deltas)),
        matched=len(deltas),
        total=file.total,
        unmatched=file.unmatched,
        scale=file.scale,
        strengths=strengths,
        sizes=sizes,
        embeddings=file.embeddings,
        warnings=warnings,
        usage=" ".join(file.metadata.get(USAGE, "").split())[:LONGEST_USAGE],
    )


def describe_delta(delta: WeightDelta) -> str:
    if isinstance(delta, DoRA):
        return f"DoRA of {describe_delta(delta.direction)}"
    kind = type(delta).__name__
    return kind if delta.rank is None else f"{kind} of rank {delta.rank}"


def loaded_adapters(unet: nn.Module, clip: nn.Module) -> list[str]:
    """Returns the names of the adapters in either network."""
    return list(dict.fromkeys(adapter_names(unet) + adapter_names(clip)))


def unload(unet: nn.Module, clip: nn.Module, name: str | None = None) -> None:
    """Removes an adapter from both networks, or all of them if `name` is None. Raises UserError for an unknown name."""
    names = loaded_adapters(unet, clip)
    if name is not None and name not in names:
        raise UserError(f"no adapter named {name} is loaded: loaded are {', '.join(names) or 'none'}.")
    for one in names if name is None else [name]:
        eject(unet, one)
        eject(clip, one)
