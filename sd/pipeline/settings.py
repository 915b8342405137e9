"""What a person asks for: one picture's settings, checked, and written into and read back from the picture itself."""

import math
import re
import warnings
from dataclasses import dataclass, replace

from sd.optimization.deepcache import MAX_EVERY
from sd.optimization.token_merging import MAX_RATIO
from sd.pipeline.infotext import parse_infotext, write_infotext
from sd.pipeline.metadata.infotext_fields import HIRES_UPSCALERS, SCHEDULE_LABELS, Reading, read_fields
from sd.pipeline.noise import random_seed
from sd.pipeline.sampler_names import find_sampler
from sd.samplers import SAMPLERS
from sd.schedule import TIMES
from sd.utils.errors import UserError
from sd.utils.images import check_size

MAX_IMAGES = 1000
MAX_GUIDANCE = 100.0
MAX_SEED = 2**64 - 1
VERSION = "sd-by-hand 0.1"


@dataclass(frozen=True)
class GenerationSettings:
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
        for name in ("prompt", "negative_prompt", "sampler", "schedule", "hires_upscaler"):
            if not isinstance(getattr(self, name), str):
                raise UserError(f"the {name.replace('_', ' ')} is {getattr(self, name)!r}: give a text.")
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
        return [(self.seed + i * step) % (MAX_SEED + 1) for i in range(self.num_images)]

    def variation_seeds(self) -> list[int]:
        return [(self.variation_seed + i) % (MAX_SEED + 1) for i in range(self.num_images)]

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
    def from_infotext(cls, text: str) -> "GenerationSettings":
        """The settings in an image's text. Everything that is not honored is a Python warning.

        Raises UserError where there are none, or where one of them cannot be used, such as an unknown sampler.
        """
        reading = read_settings(text)
        from_image = reading.problems.pop("image", None)
        if reading.problems:
            raise UserError(f"the settings cannot be used as they are: {' '.join(reading.problems.values())}")
        for note in (*reading.notes.values(), *([from_image] if from_image else [])):
            warnings.warn(f"{note[:1].upper()}{note[1:]}", stacklevel=2)
        return cls(**reading.values)

    def replace(self, **changes: object) -> "GenerationSettings":
        """Returns a copy with some fields changed, checked like a new one."""
        return replace(self, **changes)


def list_prompts(prompt: str | list[str], negative_prompt: str | list[str] | None) -> tuple[list[str], list[str]]:
    """Both as lists of equal length. Raises UserError where they are no texts, or of different lengths."""
    if not isinstance(prompt, (str, list, tuple)):
        raise UserError(f"the prompt is {prompt!r}: give a text, or a list of texts.")
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    negative = negative_prompt or ""
    negatives = [negative] * len(prompts) if isinstance(negative, str) else list(negative)
    if len(prompts) != len(negatives):
        raise UserError(f"there are {len(prompts)} prompts and {len(negatives)} negative ones: give as many of both.")
    return prompts, negatives


def read_settings(text: str) -> Reading:
    """What an image's text says, checked field by field: whatever cannot be generated is one of its problems.

    Raises UserError where the text holds no settings at all.
    """
    found = parse_infotext(text)
    if not found.keys() & {"Steps", "Sampler", "Seed", "CFG scale"}:
        raise UserError("the text holds no settings: give that of an image as this program or the webui saved it.")
    reading = read_fields(found)
    for name in list(reading.values):
        try:
            GenerationSettings(**{name: reading.values[name]})
        except UserError as problem:
            reading.problems[name] = str(problem)
            del reading.values[name]
    try:
        GenerationSettings(**reading.values)
    except UserError as problem:  # two that do not go together, such as a size and a second pass
        reading.problems["hires_scale"] = str(problem)
        for name in ("hires_scale", "guidance_start", "guidance_end"):
            reading.values.pop(name, None)
    return reading


def settings_from_infotext(text: str) -> tuple[dict[str, object], list[str]]:
    """For a form to fill: the fields of `GenerationSettings` that a text gives, and a sentence on everything that is not in them.

    Raises UserError where the text holds no settings at all, and for nothing else.
    """
    reading = read_settings(text)
    # A form has no flags, so what a script would advise is left out.
    plain = (re.sub(r": (give|choose|use) [^:]*$", ".", problem) for problem in reading.problems.values())
    problems = [f"{problem[:1].upper()}{problem[1:]}" for problem in plain]
    return reading.values, problems + list(reading.notes.values())


def check_whole(name: str, value: object, lowest: int, highest: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not lowest <= value <= highest:
        raise UserError(f"the {name} is {value}: use a whole number from {lowest} to {highest}.")


def check_number(name: str, value: object, lowest: float, highest: float) -> None:
    if not isinstance(value, (int, float)) or not math.isfinite(value) or not lowest <= value <= highest:
        raise UserError(f"the {name} is {value}: use a number from {lowest:g} to {highest:g}.")
