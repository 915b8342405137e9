"""How well does teaching work? The bundled model is taught things and a style that it never saw, and asked for them.

Each concept's pictures are few, its prompts are not among the captions, and the measure is CLIP-I: are the drawings
more like the pictures than those of the nearest words that the model knew before?
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from sd.evaluate import Scorer, clip_i
from sd.image import from_tensor
from sd.pipeline import StableDiffusion
from sd.training.data import Emoji, EmojiPictures, with_article
from sd.training.emoji import HELD_OUT_STYLE
from sd.training.personalize import teach
from sd.training.preparing import load_to_teach
from sd.training.recipes import recipe_for

# Names that were held out, each with the nearest one that was not.
OBJECTS = {
    "poodle": "dog",
    "rat": "mouse",
    "dove": "bird",
    "mango": "peach",
    "hospital": "house",
    "scooter": "motorcycle",
    "newspaper": "open book",
}
OBJECT_STYLES = ("fluent 3d emoji", "fluent flat emoji", "noto emoji")
OBJECT_PROMPTS = ("a {}, fxemoji", "{}, fxemoji", "fxemoji of a {}", "a {}")  # a style that its pictures are not in
# The pictures of the held-out style: 15, all of names that the model draws in other styles.
STYLE_NAMES = (
    "dog face, lion, pig, frog, penguin, fish, tulip, tree, banana, strawberry, hamburger, house, car, umbrella, star"
).split(", ")
STYLE_PROMPTS = tuple(  # and what is asked for in it, of which no picture was shown
    f"{with_article(name)}, {{}}"
    for name in ("cat face", "panda", "red apple", "carrot", "pizza", "bus", "key", "gift")
)
SEEDS = 8  # drawings of a concept


@dataclass(frozen=True)
class Concept:
    """pictures: what it is taught with. known: the words that come nearest among those the model knows.

    captions: one a picture, prompts: unseen ones; in both {} is where the word goes.
    """

    name: str
    kind: str
    known: str
    pictures: list[Image.Image]
    captions: list[str]
    prompts: tuple[str, ...]

    def write(self, folder: Path, word: str) -> Path:
        """The pictures with a caption beside each, as people bring them."""
        folder.mkdir(parents=True, exist_ok=True)
        for i, (picture, caption) in enumerate(zip(self.pictures, self.captions)):
            picture.save(folder / f"{i:02}.png")
            (folder / f"{i:02}.txt").write_text(caption.format(word), encoding="utf-8")
        return folder

    def draw(self, pipe: StableDiffusion, word: str) -> list[Image.Image]:
        """SEEDS drawings of the prompts in turn, always at the same seeds."""
        asked = dict(steps=30, guidance_scale=4.0, sampler="dpmpp_2m")
        prompts = [self.prompts[k % len(self.prompts)].format(word) for k in range(SEEDS)]
        return [pipe(prompt, seed=k, **asked).images[0] for k, prompt in enumerate(prompts)]


def concepts(data: Path) -> list[Concept]:
    """The held-out style, then the held-out things, from the prepared dataset."""
    drawn = EmojiPictures(data, ("name", "style"))

    def pictures(names: tuple[str, ...] | list[str], styles: tuple[str, ...]) -> tuple[list[Image.Image], list[Emoji]]:
        places = [i for i, emoji in enumerate(drawn.emoji) if emoji.name in names and emoji.style in styles]
        return from_tensor(drawn.images(places)), [drawn.emoji[i] for i in places]

    shown, emoji = pictures(STYLE_NAMES, (HELD_OUT_STYLE,))
    captions = [f"{with_article(one.name)}, {{}}" for one in emoji]
    found = [Concept(HELD_OUT_STYLE, "style", "noto emoji", shown, captions, STYLE_PROMPTS)]
    for name, known in OBJECTS.items():
        shown, emoji = pictures((name,), OBJECT_STYLES)
        captions = [f"a {{}}, {one.style}" for one in emoji]
        found.append(Concept(name, "object", known, shown, captions, OBJECT_PROMPTS))
    return found


@dataclass
class Taught:
    """What came of one concept: drawings and CLIP-I by what they are of ("known", "ti", "lora")."""

    concept: Concept
    drawings: dict[str, list[Image.Image]]
    likeness: dict[str, float]


def teach_concept(concept: Concept, run: Path, scorer: Scorer, say: Callable[[str], None] = print) -> Taught:
    """The concept by textual inversion and by LoRA, each with the defaults, beside the words known before."""
    pipe = load_to_teach("lora")
    drawings = {"known": concept.draw(pipe, concept.known)}
    for method, word in (("ti", f"<{concept.name}>"), ("lora", f"sks {concept.known}")):
        name = word if method == "ti" else concept.name
        images = concept.write(run / f"{concept.name}-{method}" / "pictures", word)
        init = {"init": concept.known} if method == "ti" else {"word": word}
        recipe = recipe_for(method, pipe, name, kind=concept.kind, saves=1, prompts=concept.prompts[:2], **init)
        where = run / f"{concept.name}-{method}"
        taught = teach(method, images, name, pipe, recipe, run=where, output=where / "result.safetensors", say=say)
        (pipe.load_embedding if method == "ti" else pipe.load_lora)(taught.path)
        drawings[method] = concept.draw(pipe, word)
        pipe.unload()
    likeness = {what: clip_i(scorer, made, concept.pictures) for what, made in drawings.items()}
    return Taught(concept, drawings, likeness)


def keep_class(concept: Concept, run: Path, scorer: Scorer, prior_weight: float) -> dict[str, float]:
    """DreamBooth of a thing: CLIP-I of its drawings to its pictures, and of its class' drawings to those before."""
    pipe = load_to_teach("dreambooth")
    before = concept.draw(pipe, concept.known)
    word = f"sks {concept.known}"
    where = run / f"{concept.name}-dreambooth-{prior_weight:g}"
    images = concept.write(where / "pictures", word)
    given = dict(word="sks", class_word=concept.known, saves=1, prompts=concept.prompts[:2], prior_weight=prior_weight)
    recipe = recipe_for("dreambooth", pipe, concept.name, **given)
    teach("dreambooth", images, concept.name, pipe, recipe, run=where, output=where / "result.safetensors")
    return {
        "thing": clip_i(scorer, concept.draw(pipe, word), concept.pictures),
        "thing before": clip_i(scorer, before, concept.pictures),
        "class": sum(clip_i(scorer, [now], [then]) for now, then in zip(concept.draw(pipe, concept.known), before))
        / SEEDS,
    }
