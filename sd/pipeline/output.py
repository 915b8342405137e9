"""GenerationOutput: what a call of the pipeline returns."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from PIL import Image
from torch import Tensor

from sd.adapters.lora_loader import LoraReport
from sd.adapters.textual_inversion import EmbeddingReport


@dataclass
class GenerationOutput:
    """The PIL images of a call, one seed and one infotext per image, and the final latents (B, 4, h, w), scaled.

    notes: sentences on what was not honored, or deserves a warning. reports: on the adapters that the prompts loaded.
    """

    images: list[Image.Image]
    seeds: list[int]
    infotexts: list[str]
    latents: Tensor
    notes: list[str] = field(default_factory=list)
    reports: list[LoraReport | EmbeddingReport] = field(default_factory=list)

    @classmethod
    def concatenate(cls, parts: Sequence["GenerationOutput"]) -> "GenerationOutput":
        """Returns several results as one; equal notes occur in it once."""
        return cls(
            images=[image for part in parts for image in part.images],
            seeds=[seed for part in parts for seed in part.seeds],
            infotexts=[text for part in parts for text in part.infotexts],
            latents=torch.cat([part.latents for part in parts]) if parts else torch.zeros(0),
            notes=list(dict.fromkeys(note for part in parts for note in part.notes)),
            reports=[report for part in parts for report in part.reports],
        )
