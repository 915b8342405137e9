"""The settings of a ControlNet's training, their bounds, and the defaults for a large and for a small model."""

from dataclasses import dataclass, fields
from typing import Any

from sd.control.controlnet import HINT_CHANNELS
from sd.pipeline.settings import MAX_SEED, check_number, check_whole
from sd.pipeline.stable_diffusion import StableDiffusion
from sd.training.controlnet.conditions import CONDITIONS
from sd.training.finetune.recipes import MOST_STEPS, is_small
from sd.utils.errors import UserError
from sd.utils.images import MAX_SIDE

WHOLE = {  # integer settings with their bounds
    "steps": (1, MOST_STEPS),
    "batch": (1, 1000),
    "accumulate": (1, 1000),
    "warmup": (0, MOST_STEPS),
    "seed": (0, MAX_SEED - 10_000),  # each preview uses the next one
    "size": (8, MAX_SIDE),
    "previews": (0, 16),
    "preview_steps": (1, 1000),
}
NUMBERS = {  # other numeric settings with their bounds
    "lr": (0, 10.0),
    "ema": (0, 0.99999),
    "empty_captions": (0, 1.0),
    "guidance_scale": (0, 100.0),
    "save_minutes": (0, 10_080.0),
}


@dataclass(frozen=True)
class ControlRecipe:
    """All settings of a run. None means the default of the model, see `control_recipe`.

    conditions: of `conditions.CONDITIONS`; each example has one of them at random. empty_captions: the fraction of
    captions left empty; Zhang et al. 2023 replace half of them. previews: images on the sheet of each save.
    Raises UserError for invalid values.
    """

    conditions: tuple[str, ...] = ("canny", "scribble")
    empty_captions: float = 0.5
    size: int | None = None  # pixels
    flip: bool = True
    crops: int = 4
    steps: int = 20_000
    batch: int = 4
    accumulate: int = 4
    lr: float = 1e-5  # as in Zhang et al. 2023
    warmup: int = 500
    ema: float = 0.0
    least_snr: float = 0.0  # the lower bound of the loss weights, see `sd.training.loss.snr_weights`
    min_snr: float = 5.0  # their upper bound
    hint_channels: tuple[int, ...] = HINT_CHANNELS
    precision: str | None = None  # of the frozen networks, and of the ControlNet's products
    seed: int = 0
    previews: int = 4
    preview_steps: int = 20
    guidance_scale: float = 7.5
    save_minutes: float = 10.0

    def __post_init__(self):
        if unknown := [name for name in self.conditions if name not in CONDITIONS]:
            raise UserError(f"unknown condition {unknown[0]!r}; choose from {', '.join(CONDITIONS)}.")
        if not self.conditions:
            raise UserError(f"no condition is given; choose from {', '.join(CONDITIONS)}.")
        for check, bounds in ((check_whole, WHOLE), (check_number, NUMBERS)):
            for name, (lowest, highest) in bounds.items():
                if getattr(self, name) is not None:
                    check(name, getattr(self, name), lowest, highest)


# For the small model, whose images have 128 pixels. The layers that read the condition image would take longer than
# its whole U-Net at the widths of v1-5; these are a quarter as wide, as the U-Net itself is a fifth. The bounds of the
# loss weights are those of its own training.
SMALL: dict[str, Any] = dict(
    steps=6000, batch=32, accumulate=1, lr=4e-4, warmup=100, ema=0.998, least_snr=0.5, hint_channels=(8, 16, 32, 64),
    crops=1, guidance_scale=4.0, save_minutes=6.0, previews=8,
)  # fmt: skip


def control_defaults(small: bool) -> dict[str, Any]:
    """Return all settings for a small or a large model, where none is given."""
    return {field.name: field.default for field in fields(ControlRecipe)} | (SMALL if small else {})


def control_recipe(pipe: StableDiffusion, **given: Any) -> ControlRecipe:
    """Return the defaults for this model, replaced by the given settings that are not None.

    Raises UserError for invalid values.
    """
    chosen = {name: value for name, value in given.items() if value is not None}
    return ControlRecipe(**(control_defaults(is_small(pipe)) | {"size": pipe.image_size} | chosen))
