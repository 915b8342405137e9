"""How each method teaches, and the numbers that it does so with when nobody says otherwise."""

from dataclasses import dataclass, fields, replace

from sd.adapters.textual_inversion import MAX_VECTORS
from sd.pipeline.settings import MAX_SEED, check_number, check_whole
from sd.pipeline.stable_diffusion import StableDiffusion
from sd.utils.errors import UserError
from sd.utils.images import MAX_SIDE

SMALL = 256  # pixels: a model made for at most so many is a small one, such as the bundled one
KINDS = ("object", "style")
SCHEDULES = ("constant", "cosine")
TARGETS = ("cross", "attention", "ff", "text")
DIALECTS = ("kohya", "diffusers", "peft")
TOKEN_LENGTHS = (75, 150, 225)  # of captions: one to three of the text encoder's chunks
MOST_STEPS = 10**7
WHOLE = {  # settings that are whole numbers, each with its lowest and highest value
    "steps": (1, MOST_STEPS),
    "batch": (1, 1000),
    "accumulate": (1, 1000),
    "vectors": (1, MAX_VECTORS),
    "rank": (1, 1024),
    "warmup": (0, MOST_STEPS),
    "class_images": (1, 100_000),
    "seed": (0, MAX_SEED - 10_000),  # each preview takes the next one
    "size": (8, MAX_SIDE),
    "crops": (1, 64),
    "saves": (1, 1000),
    "keep_last": (1, 1000),
    "preview_steps": (1, 1000),
}
NUMBERS = {  # and those that are not
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
COUNTED = ("steps", "vectors", "class_images", "crops", "saves")  # "the number of steps is 0"


@dataclass(frozen=True)
class Recipe:
    """Raises UserError for what cannot be. None stands for the model's or the method's own, see `recipe_for`.

    word: what is said in captions and prompts for what is learnt; the new word, for textual inversion. "" for none:
        the captions stay as they are, and every picture needs one.
    class_word: what kind of thing it is, said after the word: "a photo of sks dog". DreamBooth keeps this class; for
        textual inversion it is `init`.
    """

    kind: str = "object"
    word: str | None = None
    class_word: str | None = None
    init: str | None = None  # textual inversion: the words to start from
    vectors: int | None = None  # as many as `init` has tokens: it starts as exactly these words
    rank: int = 4
    alpha: float | None = None  # the rank: ΔW = up @ down then, and a rate that suits one rank suits another
    targets: tuple[str, ...] = ("cross",)
    dialect: str = "kohya"

    steps: int = 1000
    batch: int = 1
    accumulate: int = 1
    lr: float = 1e-4
    text_lr: float | None = None  # of the text encoder, where it is trained
    scale_lr: bool = False  # lr times the pictures of a step: batch, accumulation and processes
    schedule: str = "cosine"
    final_lr: float = 0.1  # the end of the cosine, as a share of lr
    warmup: int = 0
    weight_decay: float = 0.01
    ema: float = 0.0
    min_snr: float = 5.0  # Hang et al.'s own; 0 weighs all times alike
    least_snr: float = 0.0  # the other bound of the weights, see `objective.snr_weights`; 0 is Hang et al.'s own
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
    max_token_length: int = 225  # of captions; what is longer is cut, but for the word

    saves: int = 5  # files to choose from, with pictures of each
    keep_last: int | None = None  # of those files; None keeps all
    clean: bool = False  # at the end, delete all that is not needed to see how it went
    prompts: tuple[str, ...] = ()  # of those pictures; {} is where the word goes
    preview_steps: int = 25
    guidance_scale: float = 7.5

    def __post_init__(self):
        for name, choices in (("kind", KINDS), ("schedule", SCHEDULES), ("dialect", DIALECTS)):
            if getattr(self, name) not in choices:
                raise UserError(f"the {name} is {getattr(self, name)}: use {' or '.join(choices)}.")
        if unknown := set(self.targets) - set(TARGETS):
            raise UserError(f"there is no target {min(unknown)}: use {', '.join(TARGETS)}.")
        if self.max_token_length not in TOKEN_LENGTHS:
            raise UserError(f"the maximal token length is {self.max_token_length}: use 75, 150 or 225.")
        for check, bounds in ((check_whole, WHOLE), (check_number, NUMBERS)):
            for name, (lowest, highest) in bounds.items():
                if getattr(self, name) is not None:
                    spoken = "number of " * (name in COUNTED) + name.replace("_", " ")
                    check(spoken, getattr(self, name), lowest, highest)

    @property
    def trains_unet(self) -> bool:
        """Not at a rate of 0 where the text encoder has one of its own: then that one is trained alone."""
        return self.lr > 0 or not (self.text_lr and "text" in self.targets)

    @property
    def said(self) -> str:
        """How prompts name what is learnt."""
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
# Rates that learn. References differ by a factor of 5,000 for textual inversion: the two lowest are those that "learned
# nothing". Gal et al.'s own repository has 0.005; a LoRA of scale 1 is taught with 0.0001 as a rule, which is the mean
# of this one on its cosine; DreamBooth with 2e-6 to 5e-6.
LARGE = {
    "ti": dict(steps=1500, lr=5e-3, weight_decay=0.0),
    "lora": dict(steps=1000, lr=2e-4, warmup=20),
    "dreambooth": dict(steps=1100, lr=2e-6, schedule="constant", saves=4, save_minutes=15.0),
}
METHODS = tuple(LARGE)
# The small model knows nothing but words and pictures of emoji. A vector that goes far from all words (a rate of 0.005
# more than doubles its length) draws other pictures' parts, the more so beside a style that it was not taught
# with. A LoRA has to teach the text encoder too: tokens such as "sks" have never been in a caption.
TINY = {
    "ti": dict(steps=300, batch=8, lr=5e-4, weight_decay=0.0),
    "lora": dict(steps=300, batch=8, lr=1e-3, warmup=20, rank=16, targets=("attention", "ff", "text")),
    "dreambooth": dict(steps=200, batch=8, lr=1e-4, warmup=20, saves=4),
}
# Its U-Net was trained with this bound: without it the times that shape a picture, those of most noise, count nearly
# nothing. Guidance 3 is what it draws best with.
SMALL_MODEL = dict(least_snr=0.5, guidance_scale=3.0, preview_steps=20, crops=1, class_images=40)


def is_small(pipe: StableDiffusion) -> bool:
    return pipe.image_size <= SMALL


def defaults_of(method: str, small: bool) -> dict[str, object]:
    """All settings as the method has them on such a model, where nothing is given."""
    plain = {field.name: field.default for field in fields(Recipe)}
    return plain | (TINY if small else LARGE)[method] | (SMALL_MODEL if small else {})


def recipe_for(method: str, pipe: StableDiffusion, name: str, **given: object) -> Recipe:
    """The defaults of a method on this model, with what is given (and not None) in their place.

    name: of the result; the word too, unless one is given.
    Raises UserError for an unknown method or setting, and for what cannot be.
    """
    if method not in METHODS:
        raise UserError(f"there is no method {method}: use {', '.join(METHODS)}.")
    given = {key: value for key, value in given.items() if value is not None}
    if unknown := given.keys() - {field.name for field in fields(Recipe)}:
        raise UserError(f"there is no setting called {min(unknown)!r}.")
    small = is_small(pipe)
    defaults = defaults_of(method, small) | {"word": name}
    recipe = with_text_alone(method, Recipe(**(defaults | given)), given)
    prompts = (EMOJI_PROMPTS if small else PHOTO_PROMPTS)[recipe.kind]
    if not small and pipe.device.type == "cpu":  # where a picture takes minutes
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
        class_word=None if method == "ti" else recipe.class_word,  # its word is to mean the whole thing
        prompts=recipe.prompts or (prompts if recipe.word else ()),
    )


def with_text_alone(method: str, recipe: Recipe, given: dict) -> Recipe:
    """A rate for the text encoder trains it, unless `targets` say otherwise; a rate of 0 beside it trains it alone."""
    if method == "ti" or not given.get("text_lr"):
        return recipe
    if "text" not in recipe.targets:
        if "targets" in given:
            raise UserError(
                "there is a learning rate for the text encoder, which is not trained: add text to --targets."
            )
        recipe = replace(recipe, targets=(*recipe.targets, "text"))
    return replace(recipe, targets=("text",)) if recipe.lr == 0 and method == "lora" else recipe
