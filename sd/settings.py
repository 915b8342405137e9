"""What a person asks for: one picture's settings, checked, and written into and read back from the picture itself."""

import math
from dataclasses import dataclass, replace

from sd.errors import UserError
from sd.image import check_size
from sd.infotext import parse_infotext, write_infotext
from sd.samplers import SAMPLERS, find_sampler
from sd.schedule import TIMES
from sd.seeds import random_seed
from sd.step_caching import MAX_EVERY
from sd.token_merging import MAX_RATIO

MAX_IMAGES = 1000
MAX_GUIDANCE = 100.0
MAX_SEED = 2**63 - 1
HIRES_UPSCALERS = {"latent": "Latent", "lanczos": "Lanczos"}
SCHEDULE_LABELS = {
    "ldm": "Uniform",
    "karras": "Karras",
    "exponential": "Exponential",
    "sgm_uniform": "SGM Uniform",
    "lcm": "LCM",
}
VERSION = "sd-by-hand 0.1"


@dataclass(frozen=True)
class Settings:
    """Raises UserError for what cannot be drawn. Sizes are pixels; None for a size is the model's own, for a seed any.

    strength: 0 to 1, how far a given picture is taken back to noise. schedule: "" is the sampler's own.
    clip_skip: 1 is CLIP's last layer, as in the webui. variation_strength: 0 to 1, how far the starting noise is turned
    to variation_seed's. hires_scale: over 1 draws a second time at that many times the size, from the first picture,
    with hires_strength and hires_steps, 0 for as many as the first time. tiling: the picture's edges continue at the
    opposite ones.
    Three ways to draw sooner and less exactly, off unless asked for: guidance_start, guidance_end: shares of the way
    from noise to picture, with guidance between them only, see `denoiser.sigmas_between`. step_cache: over 1, how often
    the deep part of the U-Net is computed, see `step_caching`. token_merging: 0 to 0.75, see `token_merging`.
    """

    prompt: str = ""
    negative_prompt: str = ""
    strength: float = 0.8
    steps: int = 50
    guidance_scale: float = 7.5
    sampler: str = "ddpm"
    schedule: str = ""
    seed: int | None = None
    width: int | None = None
    height: int | None = None
    num_images: int = 1
    clip_skip: int = 1
    guidance_rescale: float = 0.0
    variation_seed: int | None = None
    variation_strength: float = 0.0
    hires_scale: float = 1.0
    hires_strength: float = 0.7
    hires_upscaler: str = "latent"
    hires_steps: int = 0
    tiling: bool = False
    guidance_start: float = 0.0
    guidance_end: float = 1.0
    step_cache: int = 1
    token_merging: float = 0.0

    def __post_init__(self):
        sampler, schedule = find_sampler(self.sampler, self.schedule)
        chosen = {"sampler": sampler, "schedule": schedule}
        for name in ("seed", "variation_seed"):
            value = getattr(self, name)
            chosen[name] = random_seed() if value is None or value == -1 else value  # -1 is the webui's "any"
            check_whole(name.replace("_", " "), chosen[name], 0, MAX_SEED)
        for name, value in chosen.items():
            object.__setattr__(self, name, value)
        check_whole("number of steps", self.steps, 1, TIMES)
        check_whole("number of images", self.num_images, 1, MAX_IMAGES)
        check_number("guidance scale", self.guidance_scale, 0, MAX_GUIDANCE)
        shares = ("strength", "guidance_rescale", "variation_strength", "hires_strength")
        for name in (*shares, "guidance_start", "guidance_end"):
            check_number(name.replace("_", " "), getattr(self, name), 0, 1)
        if self.guidance_start > self.guidance_end:
            raise UserError(f"guidance ends ({self.guidance_end}) before it starts ({self.guidance_start}): swap them.")
        check_whole("step cache", self.step_cache, 1, MAX_EVERY)
        check_number("token merging", self.token_merging, 0, MAX_RATIO)
        check_whole("number of hires steps", self.hires_steps, 0, TIMES)
        check_number("hires scale", self.hires_scale, 1, 8)
        if self.hires_upscaler not in HIRES_UPSCALERS:
            raise UserError(f"there is no hires upscaler {self.hires_upscaler!r}: use latent or lanczos.")
        check_size(8 if self.width is None else self.width, 8 if self.height is None else self.height)
        if self.width is not None and self.height is not None:
            check_size(*self.hires_size)

    @property
    def hires_size(self) -> tuple[int, int]:
        """(width, height) of the second pass, cut down to multiples of 8."""
        return tuple(int(side * self.hires_scale) // 8 * 8 for side in (self.width, self.height))

    def seeds(self) -> list[int]:
        """One for each picture: seed, seed + 1, ...; the same one where it is the variation that counts up."""
        step = 0 if self.variation_strength > 0 else 1
        return [self.seed + i * step for i in range(self.num_images)]

    def variation_seeds(self) -> list[int]:
        return [self.variation_seed + i for i in range(self.num_images)]

    def infotext(self, index: int, model: str, model_hash: str, from_image: bool, **more: object) -> str:
        """The webui's text for picture `index` of these. more: further labels with underscores for spaces."""
        varied, hires = self.variation_strength > 0, self.hires_scale > 1
        written = {
            "Steps": self.steps,
            "Sampler": SAMPLERS[self.sampler].label,
            "Schedule type": SCHEDULE_LABELS[self.schedule],
            "CFG scale": float(self.guidance_scale),
            "Seed": self.seeds()[index],
            "Size": f"{self.width}x{self.height}",
            "Model hash": model_hash or None,
            "Model": model or None,
            "Variation seed": self.variation_seeds()[index] if varied else None,
            "Variation seed strength": self.variation_strength if varied else None,
            "Denoising strength": self.hires_strength if hires else self.strength if from_image else None,
            "Clip skip": self.clip_skip,
            "RNG": "CPU",
            "Tiling": True if self.tiling else None,
            "Hires upscale": self.hires_scale if hires else None,
            "Hires steps": self.hires_steps or None if hires else None,
            "Hires upscaler": HIRES_UPSCALERS[self.hires_upscaler] if hires else None,
            "CFG Rescale phi": self.guidance_rescale or None,
            "Guidance start": self.guidance_start or None,
            "Guidance end": None if self.guidance_end == 1 else self.guidance_end,
            "Step cache": None if self.step_cache == 1 else self.step_cache,
            "Token merging ratio": self.token_merging or None,
            "Version": VERSION,
        }
        return write_infotext(
            self.prompt, self.negative_prompt, written | {key.replace("_", " "): value for key, value in more.items()}
        )

    @classmethod
    def from_infotext(cls, text: str) -> "Settings":
        """The settings in a picture's text. Raises UserError where there are none, or where they cannot be drawn."""
        found = parse_infotext(text)
        if "Steps" not in found:
            raise UserError("the picture's text holds no settings: give a PNG as this program or the webui saved it.")
        upscalers = {label: name for name, label in HIRES_UPSCALERS.items()}
        hires = "Hires upscale" in found
        readers = {
            "prompt": ("Prompt", str),
            "negative_prompt": ("Negative prompt", str),
            "steps": ("Steps", int),
            "sampler": ("Sampler", str),
            "schedule": ("Schedule type", str),
            "guidance_scale": ("CFG scale", float),
            "seed": ("Seed", int),
            "width": ("Size-1", int),
            "height": ("Size-2", int),
            "clip_skip": ("Clip skip", int),
            "variation_seed": ("Variation seed", int),
            "variation_strength": ("Variation seed strength", float),
            "hires_scale": ("Hires upscale", float),
            "hires_strength" if hires else "strength": ("Denoising strength", float),
            "hires_steps": ("Hires steps", int),
            "hires_upscaler": ("Hires upscaler", lambda label: upscalers.get(label, "latent")),
            "guidance_rescale": ("CFG Rescale phi", float),
            "tiling": ("Tiling", lambda word: word == "True"),
            "guidance_start": ("Guidance start", float),
            "guidance_end": ("Guidance end", float),
            "step_cache": ("Step cache", int),
            "token_merging": ("Token merging ratio", float),
        }
        values = {}
        for name, (label, read) in readers.items():
            if label in found:
                try:
                    values[name] = read(found[label])
                except ValueError as error:
                    raise UserError(f"the picture's text gives {label!r} as {found[label]!r}: not a number.") from error
        return cls(**values)

    def but(self, **changes: object) -> "Settings":
        """A copy with the changes that are not None."""
        return replace(self, **{name: value for name, value in changes.items() if value is not None})


def check_whole(name: str, value: object, lowest: int, highest: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not lowest <= value <= highest:
        raise UserError(f"the {name} is {value}: use a whole number from {lowest} to {highest}.")


def check_number(name: str, value: object, lowest: float, highest: float) -> None:
    if not isinstance(value, (int, float)) or not math.isfinite(value) or not lowest <= value <= highest:
        raise UserError(f"the {name} is {value}: use a number from {lowest:g} to {highest:g}.")
