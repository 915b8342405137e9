"""The settings of fine-tuning, their bounds, and the defaults of each method for a large and for a small model."""

from dataclasses import dataclass, fields, replace
from typing import Any

from sd.adapters.textual_inversion import MAX_VECTORS
from sd.pipeline.settings import MAX_SEED, check_number, check_whole
from sd.pipeline.stable_diffusion import StableDiffusion
from sd.utils.errors import UserError
from sd.utils.images import MAX_SIDE

SMALL = 256  # pixels: the image size up to which a model counts as small, like the bundled one
KINDS = ("object", "style")
SCHEDULES = ("constant", "cosine")
TARGETS = ("cross", "attention", "ff", "text")
FILE_FORMATS = ("kohya", "diffusers", "peft")
TOKEN_LENGTHS = (75, 150, 225)  # of captions: one to three of the text encoder's chunks
MOST_STEPS = 10**7
WHOLE = {  # integer settings with their bounds
    "steps": (1, MOST_STEPS),
    "batch": (1, 1000),
    "accumulate": (1, 1000),
    "vectors": (1, MAX_VECTORS),
    "rank": (1, 1024),
    "warmup": (0, MOST_STEPS),
    "class_images": (1, 100_000),
    "seed": (0, MAX_SEED - 10_000),  # each preview uses the next one
    "size": (8, MAX_SIDE),
    "crops": (1, 64),
    "saves": (1, 1000),
    "keep_last": (1, 1000),
    "preview_steps": (1, 1000),
}
NUMBERS = {  # other numeric settings with their bounds
    "lr": (0, 10.0),
    "text_lr": (0, 10.0),
    "alpha": (1e-6, 1e6),
    "weight_decay": (0, 1.0),
    "min_snr": (0, 1e6),
    "least_snr": (0, 1.0),
    "noise_offset": (0, 1.0),
    "prior_weight": (0, 100.0),
    "ema": (0, 0.99999),
    "final_lr": (0, 1.0),
    "guidance_scale": (0, 100.0),
    "save_minutes": (0, 10_080.0),
}


@dataclass(frozen=True)
class Recipe:
    """All settings of a run. None means the default of the model or the method, see `recipe_for`.

    word: stands for the object or style in captions and prompts; for textual inversion the new word. "" leaves captions
        unchanged, and every image needs one.
    class_word: the class of the object, after the word: "a photo of sks dog". DreamBooth preserves this class; textual
        inversion uses it as `init`.
    Raises UserError for invalid values.
    """

    kind: str = "object"
    word: str | None = None
    class_word: str | None = None
    init: str | None = None  # textual inversion: the words whose vectors are the initial value
    vectors: int | None = None  # None: as many as `init` has tokens, so that training starts with exactly these words
    rank: int = 4
    alpha: float | None = None  # None: the rank, so that ΔW = up @ down and a learning rate suits every rank
    targets: tuple[str, ...] = ("cross",)
    file_format: str = "kohya"

    steps: int = 1000
    batch: int = 1
    accumulate: int = 1
    lr: float = 1e-4
    text_lr: float | None = None  # of the text encoder, where it is trained
    scale_lr: bool = False  # multiply lr by the number of images in a step: batch, accumulation and processes
    schedule: str = "cosine"
    final_lr: float = 0.1  # the end of the cosine, as a fraction of lr
    warmup: int = 0
    weight_decay: float = 0.01
    ema: float = 0.0
    min_snr: float = 5.0  # the value of Hang et al.; 0 weights all timesteps equally
    least_snr: float = 0.0  # the lower bound of the weights, see `loss.snr_weights`; 0 in Hang et al.
    noise_offset: float = 0.0
    prior_weight: float = 1.0
    class_images: int = 100
    checkpointing: bool = False  # less memory, a third more time
    precision: str | None = None  # of mixed precision
    seed: int = 0
    save_minutes: float = 3.0

    size: int | None = None  # pixels
    flip: bool = True
    crops: int = 4
    buckets: bool = True
    max_token_length: int = 225  # of captions; longer ones are truncated, but keep the word

    saves: int = 5  # number of saved steps, each with preview images
    keep_last: int | None = None  # number of these files to keep; None keeps all
    clean: bool = False  # at the end, delete everything except images, scores and logs
    prompts: tuple[str, ...] = ()  # of preview images; {} stands for the word
    preview_steps: int = 25
    guidance_scale: float = 7.5

    def __post_init__(self):
        for name, choices in (("kind", KINDS), ("schedule", SCHEDULES), ("file_format", FILE_FORMATS)):
            if getattr(self, name) not in choices:
                label, value = name.replace("_", " "), getattr(self, name)
                raise UserError(f"unknown {label} {value!r}: use {' or '.join(choices)}.")
        if unknown := set(self.targets) - set(TARGETS):
            raise UserError(f"unknown target {min(unknown)!r}; choose from {', '.join(TARGETS)}.")
        if self.max_token_length not in TOKEN_LENGTHS:
            raise UserError(f"invalid maximum token length {self.max_token_length}: use 75, 150 or 225.")
        for check, bounds in ((check_whole, WHOLE), (check_number, NUMBERS)):
            for name, (lowest, highest) in bounds.items():
                if getattr(self, name) is not None:
                    check(name, getattr(self, name), lowest, highest)

    @property
    def trains_unet(self) -> bool:
        """Return False for a learning rate of 0 beside one for the text encoder, which is then trained alone."""
        return self.lr > 0 or not (self.text_lr and "text" in self.targets)

    @property
    def phrase(self) -> str:
        """Return the words for the object or style in prompts, such as "sks dog"."""
        return " ".join(word for word in (self.word, self.class_word) if word)


PHOTO_PROMPTS = {
    "object": ("a photo of {}", "a photo of {} on a beach", "an oil painting of {}", "{} in the snow at night"),
    "style": (
        "a painting of a house in the style of {}",
        "a dog in the style of {}",
        "a city street in the style of {}",
        "a portrait of a woman in the style of {}",
    ),
}
EMOJI_PROMPTS = {
    "object": ("{}", "a {}, noto emoji", "a {}, fluent flat emoji", "a {}, fluent 3d emoji"),
    "style": ("a red apple, {}", "a cat face, {}", "a car, {}", "a house, {}"),
}
# Learning rates that work. References for textual inversion differ by a factor of 5,000, and with the two lowest rates
# nothing was learned. The repository of Gal et al. uses 0.005. A LoRA of scale 1 is usually trained at 0.0001, the
# mean of this rate over its cosine; DreamBooth at 2e-6 to 5e-6.
LARGE: dict[str, dict[str, Any]] = {
    "ti": dict(steps=1500, lr=5e-3, weight_decay=0.0),
    "lora": dict(steps=1000, lr=2e-4, warmup=20),
    "dreambooth": dict(steps=1100, lr=2e-6, schedule="constant", saves=4, save_minutes=15.0),
}
METHODS = tuple(LARGE)
# The small model knows only names and images of emoji. A vector far from all words (a rate of 0.005 more than doubles
# its length) generates parts of other images, above all beside a style that was not in its training. A LoRA must train
# the text encoder too, because tokens such as "sks" were never in a caption.
TINY: dict[str, dict[str, Any]] = {
    "ti": dict(steps=300, batch=8, lr=5e-4, weight_decay=0.0),
    "lora": dict(steps=300, batch=8, lr=1e-3, warmup=20, rank=16, targets=("attention", "ff", "text")),
    "dreambooth": dict(steps=200, batch=8, lr=1e-4, warmup=20, saves=4),
}
# Its U-Net was trained with this bound. Without it, the timesteps with the most noise, which determine the shapes, have
# nearly no weight. Guidance 3 gives its best images.
SMALL_MODEL: dict[str, Any] = dict(least_snr=0.5, guidance_scale=3.0, preview_steps=20, crops=1, class_images=40)


def is_small(pipe: StableDiffusion) -> bool:
    """Return whether the model is made for small images, like the bundled one."""
    return pipe.image_size <= SMALL


def defaults_of(method: str, small: bool) -> dict[str, Any]:
    """Return all settings of a method for a small or a large model, where none is given."""
    plain = {field.name: field.default for field in fields(Recipe)}
    return plain | (TINY if small else LARGE)[method] | (SMALL_MODEL if small else {})


def recipe_for(method: str, pipe: StableDiffusion, name: str, **given: Any) -> Recipe:
    """Return the defaults of a method for this model, replaced by the given settings that are not None.

    name: of the result, and the default of `word`.
    Raises UserError for an unknown method or setting, and for invalid values.
    """
    if method not in METHODS:
        raise UserError(f"unknown method {method!r}; choose from {', '.join(METHODS)}.")
    given = {key: value for key, value in given.items() if value is not None}
    if unknown := given.keys() - {field.name for field in fields(Recipe)}:
        raise UserError(f"unknown setting {min(unknown)!r}.")
    small = is_small(pipe)
    defaults = defaults_of(method, small) | {"word": name}
    recipe = with_text_alone(method, Recipe(**(defaults | given)), given)
    prompts: tuple[str, ...] = (EMOJI_PROMPTS if small else PHOTO_PROMPTS)[recipe.kind]
    if not small and pipe.device.type == "cpu":  # where an image takes minutes
        recipe, prompts = replace(recipe, preview_steps=given.get("preview_steps", 12)), prompts[:2]
    start = recipe.class_word or ("emoji" if small else {"object": "object", "style": "painting"}[recipe.kind])
    init = start if recipe.init is None else recipe.init
    tokens = len(pipe.tokenizer.encode(init))
    return replace(
        recipe,
        alpha=float(recipe.rank) if recipe.alpha is None else recipe.alpha,
        text_lr=recipe.lr / 2 if recipe.text_lr is None else recipe.text_lr,
        size=pipe.image_size if recipe.size is None else recipe.size,
        init=init,
        vectors=min(max(1, tokens), MAX_VECTORS) if recipe.vectors is None else recipe.vectors,
        class_word=None if method == "ti" else recipe.class_word,  # its word stands for the whole object
        prompts=recipe.prompts or (prompts if recipe.word else ()),
    )


def with_text_alone(method: str, recipe: Recipe, given: dict) -> Recipe:
    """Train the text encoder where a learning rate for it is given, and only the text encoder where `lr` is 0."""
    if method == "ti" or not given.get("text_lr"):
        return recipe
    if "text" not in recipe.targets:
        if "targets" in given:
            raise UserError("--text-lr has no effect, because the text encoder is not trained: add text to --targets.")
        recipe = replace(recipe, targets=(*recipe.targets, "text"))
    return replace(recipe, targets=("text",)) if recipe.lr == 0 and method == "lora" else recipe
