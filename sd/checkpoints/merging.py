"""Checkpoints merged into one, tensor by tensor, in the memory of one tensor.

sum         (1 - w) A + w B
difference  A + w (B - C)

Each number is computed in fp32. The weight w may differ by network, and by block of the U-Net.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from sd.checkpoints.checkpoint import PREFIXES, Checkpoint, read_checkpoint
from sd.checkpoints.completeness import DISPLAY_NAMES, MissingVae, check_state_dict
from sd.checkpoints.config import build_networks
from sd.checkpoints.discovery import vae_beside
from sd.checkpoints.mmap_files import stream_safetensors
from sd.checkpoints.predictions import prediction_of
from sd.utils.errors import UserError
from sd.utils.files import replacing

PARTS = ("unet", "vae", "clip")
FIRST = "input_blocks.0.0.weight"  # of the U-Net: an inpainting model has five more input channels here


@dataclass
class MergeWeights:
    """The weights of a merge: of B in a sum, of B - C in a difference.

    weight: where nothing else is given. by_part: of "unet", "vae" and "clip". by_block: of the U-Net's blocks, IN00 to
    IN11, M00, OUT00 to OUT11 for v1-5; BASE is for its other layers.
    """

    weight: float
    by_part: Mapping[str, float] = field(default_factory=dict)
    by_block: Mapping[str, float] = field(default_factory=dict)

    def of(self, part: str, block: str) -> float:
        """Return the weight of a parameter. block: that of a U-Net's parameter."""
        usual = self.by_part.get(part, self.weight)
        return self.by_block.get(block, usual) if part == "unet" else usual

    def describe(self, names: Sequence[str]) -> str:
        """Return the merge of the models of these names as a formula, and the weights that differ."""
        if len(names) == 3:
            formula = f"{names[0]} + {self.weight:g} ({names[1]} - {names[2]})"
        else:
            formula = f"{1 - self.weight:g} {names[0]} + {self.weight:g} {names[1]}"
        others = {DISPLAY_NAMES[part]: weight for part, weight in self.by_part.items()} | dict(self.by_block)
        return formula + "".join(f", {name} at {weight:g}" for name, weight in others.items())


def merge_checkpoints(
    paths: Sequence[str | Path], target: str | Path, weights: MergeWeights, dtype: torch.dtype | None = None
) -> list[str]:
    """Merges two checkpoints (a sum) or three (a difference) of any format into a .safetensors file.

    dtype: of the result; None: that of the first one, tensor by tensor. Returns notes, in sentences. Raises UserError
    where they are not of one layout, for a target that is no .safetensors, and for weights that are no numbers.
    """
    target = Path(target).expanduser()
    if target.suffix.lower() != ".safetensors":
        raise UserError(f"{target} is not named .safetensors: merges are written in that format.")
    for value in (weights.weight, *weights.by_part.values(), *weights.by_block.values()):
        if not math.isfinite(value):
            raise UserError("a weight of the merge is no number: give numbers, such as 0.5.")
    models = [read_model(Path(path)) for path in paths]
    check_target(target, models)
    check_layouts(models)
    check_predictions(models)
    notes = merge_notes(models, weights, target)
    blocks = {block_of(key) for key in models[0].unet}
    if unknown := weights.by_block.keys() - blocks:
        raise UserError(f"{min(unknown)} is no block of this model's U-Net; choose from {', '.join(sorted(blocks))}.")
    places = {prefix(part) + key: (part, key) for part in PARTS for key in getattr(models[0], part)}
    first = models[0]
    shapes = {}
    for name, (part, key) in places.items():
        tensor = getattr(first, part)[key]
        own = torch.float32 if tensor.dtype == torch.float64 else tensor.dtype
        shapes[name] = (dtype or own, tuple(tensor.shape))
    positions = prefix("clip") + "embeddings.position_ids"
    ids = torch.arange(first.config["clip"]["max_length"])[None]
    shapes[positions] = (ids.dtype, tuple(ids.shape))

    def make(name: str) -> Tensor:
        if name == positions:
            return ids
        merged = merge_tensor(models, *places[name], weights).to(shapes[name][0])
        if not torch.isfinite(merged).all():
            part, key = places[name]
            for model in models:
                if not torch.isfinite(getattr(model, part)[key]).all():
                    raise UserError(f"{model.path} holds {name} with numbers that are not finite: download it again.")
            raise UserError(f"{name} of the merge is not finite: use weights nearer to 0 and 1, or --dtype fp32.")
        return merged

    with replacing(target) as part_file:
        stream_safetensors(part_file, shapes, make, metadata_of(models, weights))
    return [*notes, *(f"{model.path}: {note}" for model in models for note in model.warnings)]


def read_model(path: Path) -> Checkpoint:
    """Reads a checkpoint; one without a VAE has the one beside it. Raises UserError where there is none."""
    try:
        return read_checkpoint(path)
    except MissingVae:
        if (beside := vae_beside(path)) is None:
            raise UserError(
                f"{path} has no VAE of its own: put one beside it as {path.stem}.vae.safetensors to merge it."
            ) from None
        return read_checkpoint(path, beside)


def prefix(part: str) -> str:
    """Returns what the keys of a network begin with in a file."""
    return PREFIXES[part] + ("text_model." if part == "clip" else "")


def check_target(target: Path, models: list[Checkpoint]) -> None:
    """Raises UserError where the result would replace one of the models."""
    for model in models:
        if target.exists() and model.path.exists() and target.samefile(model.path):
            raise UserError(f"{target} is one of the models to merge: choose another name for the result.")


def check_predictions(models: list[Checkpoint]) -> None:
    """Raises UserError where the models do not predict the same, noise or v."""
    names = [prediction_of(model.config).name for model in models]
    for model, name in zip(models, names):
        if name != names[0]:
            raise UserError(
                f"{model.path} predicts {name} and {models[0].path} {names[0]}: merge models that predict the same."
            )


def merge_notes(models: list[Checkpoint], weights: MergeWeights, target: Path) -> list[str]:
    """Returns sentences on a merge that is possible and probably not meant."""
    notes = [f"{target} was there, and is replaced."] if target.exists() else []
    paths = [model.path.resolve() for model in models]
    if paths[1] in (paths[0], *paths[2:]):
        notes.append(
            f"B is the same file as {'A' if paths[1] == paths[0] else 'C'}, so that the weight changes nothing."
        )
    values = (weights.weight, *weights.by_part.values(), *weights.by_block.values())
    if len(models) == 2 and (outside := [value for value in values if not 0 <= value <= 1]):
        notes.append(f"The weight {outside[0]:g} is outside 0 to 1: the result lies beyond both models.")
    return notes


def check_layouts(models: list[Checkpoint]) -> None:
    """Raises UserError unless all models have the networks of the first one; others may lack inpainting's inputs."""
    first = models[0]
    for part, network in build_networks(first.config, first.path).items():
        check_state_dict(part, network, getattr(first, part), first.path)
    for other in models[1:]:
        for part in PARTS:
            ours, theirs = getattr(first, part), getattr(other, part)
            wrong = [key for key in ours if key not in theirs or not fits(key, theirs[key], ours[key])]
            if wrong or theirs.keys() - ours.keys():
                key = wrong[0] if wrong else min(theirs.keys() - ours.keys())
                raise UserError(
                    f"{other.path} cannot be merged with {first.path}: {DISPLAY_NAMES[part]} differs in {key}; merge "
                    "models of one size, an inpainting model first."
                )


def fits(key: str, tensor: Tensor, place: Tensor) -> bool:
    """Returns whether a tensor has the shape of another; the first convolution may have fewer input channels."""
    if key == FIRST:
        return tensor.shape[0] == place.shape[0] and tensor.shape[1] <= place.shape[1]
    return tensor.shape == place.shape


def merge_tensor(models: list[Checkpoint], part: str, key: str, weights: MergeWeights) -> Tensor:
    """Returns one merged tensor in fp32, and frees the pages of its sources."""
    sources = [getattr(model, part)[key] for model in models]
    weight = weights.of(part, block_of(key))
    a = sources[0].float()
    merged = a.clone() if a is sources[0] else a
    channels = min(source.shape[1] for source in sources) if key == FIRST else None
    own = merged if channels is None else merged[:, :channels]
    others = [source.float() if channels is None else source[:, :channels].float() for source in sources[1:]]
    if len(others) == 1:
        own.lerp_(others[0], weight)
    else:
        own.add_(others[0] - others[1], alpha=weight)
    for model, source in zip(models, sources):
        for file in model.files:
            file.release(source)
    return merged


def block_of(key: str) -> str:
    """Returns the block of a parameter of the U-Net: IN00, M00, OUT00; BASE for those outside of all blocks."""
    first, *rest = key.split(".")
    if first in ("input_blocks", "output_blocks"):
        return f"{'IN' if first == 'input_blocks' else 'OUT'}{int(rest[0]):02}"
    return "M00" if first == "middle_block" else "BASE"


def metadata_of(models: list[Checkpoint], weights: MergeWeights) -> dict[str, str]:
    """Returns the metadata of the result: its configuration and how it was made."""
    recipe = {
        "type": "difference" if len(models) == 3 else "sum",
        "models": [model.path.name for model in models],
        "weight": weights.weight,
        "by_part": dict(weights.by_part),
        "by_block": dict(weights.by_block),
    }
    return {"format": "pt", "sd_sizes": json.dumps(models[0].config), "sd_merge_recipe": json.dumps(recipe)}


def parse_blocks(text: str) -> dict[str, float]:
    """Returns the weights in "IN00=0.2,M00=0.5". Raises UserError for what is no block, or no number."""
    weights = {}
    for entry in filter(None, (one.strip() for one in text.split(","))):
        name, _, number = entry.partition("=")
        block = name.strip().upper()
        if block in weights:
            raise UserError(f"the block {block} has two weights: give one.")
        try:
            weights[block] = float(number)
        except ValueError as error:
            raise UserError(f"{entry!r} is no weight of a block: write IN00=0.2,M00=0.5.") from error
    return weights
