"""Validated generation parameters: one dataclass, each field of which is a row of the table of options."""

from dataclasses import dataclass, replace
from typing import Any

from sd.optimization.deepcache import MAX_EVERY, MIN_THRESHOLD
from sd.optimization.token_merging import MAX_RATIO
from sd.pipeline.inputs import options as input_options
from sd.pipeline.noise import SOURCES, random_seed
from sd.pipeline.options import NOT_IN_WEBUI, Infotext, Widget, check_number, check_whole, option, options_of
from sd.pipeline.sampler_names import ALL_SAMPLERS, ETA_SAMPLERS, find_sampler
from sd.pipeline.sampling.schedules import ALL_SCHEDULES
from sd.prompts.regions import parse_ratios
from sd.prompts.weighting import CHUNK, COMMA_REACH, EMPHASIS
from sd.schedule import TIMES
from sd.utils.errors import SettingError, UserError
from sd.utils.images import check_size

__all__ = ["OPTIONS", "GenerationSettings", "check_number", "check_whole", "list_prompts"]

MAX_IMAGES = 1000
MAX_GUIDANCE = 100.0
MAX_SEED = 2**64 - 1
VERSION = "sd-by-hand 0.1"
COMPAT = {"none": "None", "webui": "webui", "comfyui": "ComfyUI"}
HIRES_UPSCALERS = {"latent": "Latent", "lanczos": "Lanczos", "nearest": "Nearest"}
SCHEDULE_LABELS = {
    "ldm": "Uniform",
    "karras": "Karras",
    "exponential": "Exponential",
    "sgm_uniform": "SGM Uniform",
    "lcm": "LCM",
    "normal": "Normal",
    "simple": "Simple",
    "ddim_uniform": "DDIM Uniform",
    "beta": "Beta",
    "beta_in_sigma": "Beta in sigma",
    "ays": "AYS",
    "align_your_steps": "Align Your Steps",
    "kl_optimal": "KL Optimal",
    "polyexponential": "Polyexponential",
    "trailing": "Trailing",
    "turbo": "Turbo",
    "linear_quadratic": "Linear Quadratic",
}


@dataclass(frozen=True)
class GenerationSettings:
    """The parameters of one call: a prompt and how to generate `num_images` images of it.

    Sizes are in pixels; a width or height of None is the model's own, a seed of None (or -1) a random one.
    Raises UserError for a value that cannot be used.
    """

    prompt: str = option(
        *("", "text prompt", "prompt"),
        flags=("--prompt",),
        infotext=Infotext("Prompt", "specially"),
        widget=Widget("text", "Prompt", "prompt", placeholder="What to generate"),
        a1111="prompt",
    )
    negative_prompt: str = option(
        *("", "text that the image is guided away from", "prompt"),
        flags=("--negative-prompt", "--negative_prompt"),
        default_help="none",
        infotext=Infotext("Negative prompt", "specially"),
        widget=Widget("text", "Negative prompt", "prompt", placeholder="what to avoid"),
        a1111="negative_prompt",
    )
    sampler: str = option(
        "ddpm",
        f"sampler, one of {', '.join(ALL_SAMPLERS)}; dpmpp_2m and euler_a usually need 20 to 30 steps only",
        "sampling",
        flags=("--sampler",),
        infotext=Infotext("Sampler", "specially"),
        widget=Widget("dropdown", "Sampler", "sampling"),
        a1111="sampler_name",
        a1111_default="",
    )
    schedule: str = option(
        *("", f"noise schedule, one of {', '.join(ALL_SCHEDULES)}", "sampling"),
        flags=("--schedule",),
        default_help="the sampler's own",
        infotext=Infotext("Schedule type", "specially"),
        widget=Widget("dropdown", "Schedule", "sampling"),
        a1111="scheduler",
    )
    steps: int = option(
        *(50, "number of sampling steps", "sampling"),
        flags=("--steps", "--ddim_steps"),
        low=1,
        high=TIMES,
        infotext=Infotext("Steps", "always"),
        widget=Widget("slider", "Steps", "sampling", high=150, step=1),
        a1111="steps",
    )
    guidance_scale: float = option(
        *(7.5, "scale of classifier-free guidance; 1 turns it off", "sampling"),
        flags=("--guidance-scale", "--scale"),
        low=0,
        high=MAX_GUIDANCE,
        infotext=Infotext("CFG scale", "always"),
        widget=Widget("slider", "Guidance", "sampling", high=20, step=0.1),
        a1111="cfg_scale",
        a1111_default=7.0,
    )
    seed: int | None = option(
        *(None, "seed of the first image; the following images count up from it", "sampling"),
        flags=("--seed",),
        default_help="a random seed, which is printed",
        low=0,
        high=MAX_SEED,
        infotext=Infotext("Seed", "specially"),
        widget=Widget("text", "Seed", "seed", placeholder="random"),
        a1111="seed",
        a1111_default=-1,
    )
    width: int | None = option(
        *(None, "width of the image in pixels, a multiple of 8", "sampling"),
        flags=("--width", "--W"),
        default_help="the model's own size",
        infotext=Infotext("Size", "specially"),
        widget=Widget("number", "Width", "size", low=8, step=8),
        a1111="width",
    )
    height: int | None = option(
        *(None, "height of the image in pixels, a multiple of 8", "sampling"),
        flags=("--height", "--H"),
        default_help="the model's own size",
        infotext=Infotext("Size", "specially"),
        widget=Widget("number", "Height", "size", low=8, step=8),
        a1111="height",
    )
    num_images: int = option(
        *(1, "number of images per prompt", "output"),
        flags=("--num-images", "--n_samples"),
        low=1,
        high=MAX_IMAGES,
        widget=Widget("slider", "Batch count", "batch", high=16, step=1),
        a1111="batch_size",
        missing={"infotext": "each image has a text of its own"},
    )
    strength: float = option(
        *(0.8, "how much the given image may change, from 0 (nothing) to 1 (everything)", "img2img"),
        flags=("--strength",),
        mode="image",
        low=0,
        high=1,
        infotext=Infotext("Denoising strength", "specially"),
        widget=Widget("slider", "Denoising strength", "image", step=0.05, info="0 keeps the image, 1 replaces it"),
        a1111="denoising_strength",
        a1111_default=0.75,
    )
    hires_scale: float = option(
        *(1.0, "factor over 1: generate a second time in this many times the size, from the first image", "sampling"),
        flags=("--hires-scale",),
        mode="text",
        low=1,
        high=8,
        infotext=Infotext("Hires upscale"),
        widget=Widget("slider", "Upscale by", "hires", high=4, step=0.25, default=2.0),
        a1111="hr_scale",
        a1111_default=2.0,
    )
    hires_strength: float = option(
        *(0.7, "how much the second pass of --hires-scale may change, from 0 to 1", "sampling"),
        flags=("--hires-strength",),
        mode="text",
        low=0,
        high=1,
        infotext=Infotext("Denoising strength", "specially", part_of="hires_scale"),
        widget=Widget("slider", "Hires denoising", "hires", step=0.05),
        missing={"a1111": "denoising_strength applies to both passes there"},
    )
    hires_steps: int = option(
        *(0, "number of steps of the second pass of --hires-scale; 0 takes as many as --steps", "sampling"),
        flags=("--hires-steps",),
        mode="text",
        low=0,
        high=TIMES,
        infotext=Infotext("Hires steps", part_of="hires_scale"),
        widget=Widget("slider", "Hires steps", "hires", high=150, step=1, info="0: as many as the first pass"),
        a1111="hr_second_pass_steps",
    )
    hires_upscaler: str = option(
        "latent",
        f"enlarges for the second pass of --hires-scale: {', '.join(HIRES_UPSCALERS)}, or an ESRGAN model in "
        "weights/upscalers/",
        "sampling",
        flags=("--hires-upscaler",),
        mode="text",
        infotext=Infotext("Hires upscaler", "specially", part_of="hires_scale"),
        widget=Widget("dropdown", "Upscaler", "hires"),
        a1111="hr_upscaler",
        a1111_default="Latent",
    )
    clip_skip: int = option(
        *(1, "layer of CLIP whose output is used, counted from the end: 1 is the last, 2 the one before", "sampling"),
        flags=("--clip-skip",),
        infotext=Infotext("Clip skip"),
        widget=Widget(
            *("slider", "Clip skip", "advanced"),
            low=1,
            high=12,
            step=1,
            info="2 reads CLIP's last layer but one, for models trained so",
        ),
        a1111="clip_skip",
        a1111_default=0,
    )
    guidance_rescale: float = option(
        *(0.0, "from 0 to 1: how much of the contrast that guidance adds is taken back", "sampling"),
        flags=("--guidance-rescale",),
        low=0,
        high=1,
        infotext=Infotext("CFG Rescale phi"),
        widget=Widget(
            *("slider", "Guidance rescale", "advanced"), step=0.05, info="over 0: less glare at high guidance"
        ),
        missing=NOT_IN_WEBUI,
    )
    variation_seed: int | None = option(
        *(None, "second seed, whose noise is mixed into the noise of --seed", "sampling"),
        flags=("--variation-seed",),
        default_help="a random seed",
        low=0,
        high=MAX_SEED,
        infotext=Infotext("Variation seed", "specially", part_of="variation_strength"),
        widget=Widget("text", "Variation seed", "advanced", placeholder="random"),
        a1111="subseed",
        a1111_default=-1,
    )
    variation_strength: float = option(
        *(0.0, "share of the noise of --variation-seed, from 0 to 1", "sampling"),
        flags=("--variation-strength",),
        low=0,
        high=1,
        infotext=Infotext("Variation seed strength"),
        widget=Widget("slider", "Variation strength", "advanced", step=0.01),
        a1111="subseed_strength",
    )
    tiling: bool = option(
        *(False, "generate a seamlessly tileable image", "sampling"),
        flags=("--tiling",),
        infotext=Infotext("Tiling"),
        widget=Widget("checkbox", "Tiling", "advanced", info="makes a seamlessly tileable image"),
        a1111="tiling",
    )
    rng: str = option(
        *("cpu", f"noise source, one of {', '.join(SOURCES)}; gpu and nv: a GPU's, on any device", "sampling"),
        flags=("--rng",),
        choices=SOURCES,
        noun="noise source",
        infotext=Infotext("RNG", "always"),
        widget=Widget("dropdown", "Noise source", "compatibility", info="the webui's default is the GPU's"),
        missing={"a1111": "it is the option randn_source there"},
    )
    ensd: int = option(
        *(0, "number added to the seed for the noise that a sampler adds (eta noise seed delta)", "sampling"),
        flags=("--ensd",),
        low=0,
        high=MAX_SEED,
        infotext=Infotext("ENSD"),
        widget=Widget("number", "Seed delta (ENSD)", "compatibility", low=0, step=1),
        missing={"a1111": "it is the option eta_noise_seed_delta there"},
    )
    eta: float | None = option(
        *(None, "share of the noise that an ancestral or SDE sampler, or DDIM, adds, from 0 to 1", "sampling"),
        flags=("--eta",),
        default_help="the sampler's own: 0 for ddim, 0.3 for tcd, whose gamma it is, and 1 for the others",
        low=0,
        high=1,
        infotext=Infotext("Eta", "specially"),
        widget=Widget("text", "Eta", "compatibility", placeholder="the sampler's own"),
        a1111="eta",
        a1111_default=0.0,
    )
    compat: str = option(
        *("none", f"do as another program does where they differ: {', '.join(COMPAT)}", "sampling"),
        flags=("--compat",),
        choices=COMPAT,
        noun="compatibility",
        infotext=Infotext("Compatibility"),
        widget=Widget("dropdown", "Same image as", "compatibility", info="for the settings of another program"),
        missing={"a1111": "it is the option compat here"},
    )
    emphasis: str = option(
        *("original", f"how weights as in (word:1.2) are applied, one of {', '.join(EMPHASIS)}", "prompt"),
        flags=("--emphasis",),
        choices=EMPHASIS,
        infotext=Infotext("Emphasis"),
        widget=Widget("dropdown", "Emphasis", "compatibility", info="how weights as in (word:1.2) are applied"),
        missing={"a1111": "it is the option emphasis there"},
    )
    comma_padding: int = option(
        *(COMMA_REACH, "tokens at the end of a full chunk among which it may end at a comma; 0 turns it off", "prompt"),
        flags=("--comma-padding",),
        metavar="TOKENS",
        low=0,
        high=CHUNK - 1,
        infotext=Infotext("Comma padding"),
        widget=Widget(
            *("slider", "Comma padding", "compatibility"),
            step=1,
            info="a full chunk of 75 tokens ends at a comma among so many",
        ),
        missing={"a1111": "it is the option comma_padding_backtrack there"},
    )
    guidance_start: float = option(
        *(0.0, "share of the steps before guidance begins, from 0 to 1; over 0 is faster", "performance"),
        flags=("--guidance-start",),
        low=0,
        high=1,
        infotext=Infotext("Guidance start"),
        widget=Widget(
            *("slider", "Guidance start", "faster"), step=0.05, info="share of the steps before guidance begins"
        ),
        missing=NOT_IN_WEBUI,
    )
    guidance_end: float = option(
        *(1.0, "share of the steps after which guidance ends, from 0 to 1; below 1 is faster", "performance"),
        flags=("--guidance-end",),
        low=0,
        high=1,
        infotext=Infotext("Guidance end"),
        widget=Widget("slider", "Guidance end", "faster", step=0.05, info="share of the steps after which it ends"),
        missing=NOT_IN_WEBUI,
    )
    ngms: float = option(
        *(0.0, "level of noise (sigma) below which every second step has no guidance; over 0 is faster", "performance"),
        flags=("--ngms",),
        metavar="SIGMA",
        low=0,
        high=15,
        infotext=Infotext("NGMS"),
        widget=Widget(
            *("slider", "Negative guidance minimum sigma", "faster"),
            step=0.1,
            info="below this level of noise every second step has no guidance",
        ),
        a1111="s_min_uncond",
    )
    step_cache: float = option(
        1.0,
        "compute the deep part of the U-Net in every N-th step only (DeepCache), or, below 1, where the shallow part "
        "has changed by this share (0.2 is a good one); any value but 1 is faster",
        "performance",
        flags=("--step-cache",),
        metavar="N",
        low=MIN_THRESHOLD,
        high=MAX_EVERY,
        infotext=Infotext("Step cache", number="g"),
        widget=Widget(
            *("number", "Step cache", "faster"),
            low=0,
            step=1,
            info="over 1: the deep part of the network is computed once in so many steps; below 1: where its input has "
            "changed by this share",
        ),
        missing=NOT_IN_WEBUI,
    )
    token_merging: float = option(
        *(0.0, f"share of similar tokens to merge, up to {MAX_RATIO:g}; faster for large images", "performance"),
        flags=("--token-merging",),
        metavar="RATIO",
        low=0,
        high=MAX_RATIO,
        infotext=Infotext("Token merging ratio"),
        widget=Widget(
            *("slider", "Token merging", "faster"),
            step=0.05,
            info="over 0: this share of the image's tokens is merged with similar ones",
        ),
        missing=NOT_IN_WEBUI,
    )
    region_ratios: str = input_options.REGION_RATIOS
    region_base: float = input_options.REGION_BASE
    control: str = input_options.CONTROL
    invert_mask: bool = input_options.INVERT_MASK
    mask_blur: int = input_options.MASK_BLUR
    masked_content: str = input_options.MASKED_CONTENT
    only_masked: bool = input_options.ONLY_MASKED
    only_masked_padding: int = input_options.ONLY_MASKED_PADDING
    soft_inpainting: bool = input_options.SOFT_INPAINTING
    outpaint: int = input_options.OUTPAINT
    outpaint_sides: str = input_options.OUTPAINT_SIDES
    tile_size: int = input_options.TILE_SIZE
    tile_overlap: float = input_options.TILE_OVERLAP

    def __post_init__(self) -> None:
        for name in ("seed", "variation_seed"):
            if getattr(self, name) in (None, -1):  # -1 is the webui's "any"
                object.__setattr__(self, name, random_seed())
        for row in OPTIONS:
            row.check(getattr(self, row.name))
        sampler, schedule = find_sampler(self.sampler, self.schedule)
        object.__setattr__(self, "sampler", sampler)
        object.__setattr__(self, "schedule", schedule)
        object.__setattr__(self, "control", input_options.canonical_control(self.control))
        if self.guidance_start > self.guidance_end:
            raise UserError(f"guidance ends ({self.guidance_end}) before it starts ({self.guidance_start}): swap them.")
        object.__setattr__(self, "outpaint_sides", input_options.canonical_sides(self.outpaint_sides))
        check_step_cache(self.step_cache)
        input_options.check_tile(self.tile_size, self.tiling)
        input_options.check_outpaint(self.outpaint)
        parse_ratios(self.region_ratios)
        if self.eta is not None and sampler not in ETA_SAMPLERS:
            raise UserError(
                f"the sampler {sampler} has no eta, as it adds no noise: leave out eta, or choose one of "
                f"{', '.join(ETA_SAMPLERS)}."
            )
        check_size(8 if self.width is None else self.width, 8 if self.height is None else self.height)
        if self.width is not None and self.height is not None:
            check_size(*self.hires_size)
            check_size(*self.outpainted_size)

    @property
    def hires_size(self) -> tuple[int, int]:
        """Returns the (width, height) of the second pass, cut to multiples of 8. Width and height must not be None."""
        assert self.width is not None
        assert self.height is not None
        return int(self.width * self.hires_scale) // 8 * 8, int(self.height * self.hires_scale) // 8 * 8

    @property
    def margins(self) -> tuple[int, int, int, int]:
        """Returns the pixels that outpainting adds at the left, the right, above and below."""
        left, right, up, down = (self.outpaint * (side in self.outpaint_sides) for side in input_options.SIDES)
        return left, right, up, down

    @property
    def outpainted_size(self) -> tuple[int, int]:
        """Returns the (width, height) with what outpainting adds. Width and height must not be None."""
        assert self.width is not None
        assert self.height is not None
        left, right, up, down = self.margins
        return self.width + left + right, self.height + up + down

    def seeds(self) -> list[int]:
        """Returns one seed per image: seed, seed + 1, ...; all are `seed` where the variation seeds count up."""
        assert self.seed is not None
        step = 0 if self.variation_strength > 0 else 1
        return [(self.seed + i * step) % (MAX_SEED + 1) for i in range(self.num_images)]

    def variation_seeds(self) -> list[int]:
        """Returns one variation seed per image, counting up."""
        assert self.variation_seed is not None
        return [(self.variation_seed + i) % (MAX_SEED + 1) for i in range(self.num_images)]

    def replace(self, **changes: Any) -> "GenerationSettings":
        """Returns a copy with some fields changed, checked like a new one."""
        return replace(self, **changes)


OPTIONS = options_of(GenerationSettings)


def check_step_cache(value: float) -> None:
    """Raises UserError for a value of the step cache that is neither a number of steps nor a threshold."""
    if isinstance(value, bool) or (value > 1 and value % 1):
        rule = f"must be a whole number of steps from 1 to {MAX_EVERY}, or a threshold from {MIN_THRESHOLD} to below 1"
        raise SettingError("step_cache", f"{rule}, not {value}")


def list_prompts(prompt: str | list[str], negative_prompt: str | list[str] | None) -> tuple[list[str], list[str]]:
    """Returns both as lists of equal length. Raises UserError where they are no texts, or of different lengths."""
    if not isinstance(prompt, (str, list, tuple)):
        raise UserError(f"the prompt is {prompt!r}: give a text, or a list of texts.")
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not prompts:
        raise UserError("the list of prompts is empty: give at least one prompt.")
    negative = negative_prompt or ""
    if not isinstance(negative, (str, list, tuple)):
        raise UserError(f"the negative prompt is {negative!r}: give a text, or a list of texts.")
    negatives = [negative] * len(prompts) if isinstance(negative, str) else list(negative)
    if len(prompts) != len(negatives):
        raise UserError(f"there are {len(prompts)} prompts and {len(negatives)} negative ones: give as many of both.")
    return prompts, negatives
