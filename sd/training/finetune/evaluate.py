"""How well does teaching work? The bundled model is taught things and a style that it never saw, and asked for them.

Each concept is a folder of pictures and a word; all else is left to the defaults. What is asked for then, no caption
said and no preview showed, at seeds of its own. The measure is CLIP-I: are the drawings more like the pictures than
those of the nearest words that the model knew before?
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from sd.evaluation.clip_score import clip_i
from sd.pipeline.stable_diffusion import StableDiffusion
from sd.training.finetune.finetune import teach
from sd.training.finetune.recipes import recipe_for
from sd.training.finetune.setup import load_to_teach
from sd.training.pretrain.dataset import EmojiPictures, with_article
from sd.training.pretrain.emoji_dataset import HELD_OUT_STYLE
from sd.training.pretrain.imagenet_features import Judge
from sd.utils.images import from_tensor

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
OBJECT_PROMPTS = ("{}, fluent 3d emoji", "fluent flat emoji of a {}", "noto emoji, {}", "a {}, fxemoji")
# The pictures of the held-out style: 15, all of names that the model draws in other styles.
STYLE_NAMES = (
    "dog face, lion, pig, frog, penguin, fish, tulip, tree, banana, strawberry, hamburger, house, car, umbrella, star"
).split(", ")
SHOWN_IN_NO_PICTURE = ("panda", "tiger", "carrot", "pizza", "bus", "key", "gift", "rose")  # and in no preview
STYLE_PROMPTS = tuple(f"{with_article(name)}, {{}}" for name in SHOWN_IN_NO_PICTURE)
SEEDS = range(100, 108)  # of the drawings of a concept; previews have 0 to 3


@dataclass(frozen=True)
class Concept:
    """known: the words that come nearest among those the model knows.

    pictures: what it is taught with, by file name. captions: one each; none for the style, where the names say what is
    shown. prompts: of the drawings. In both {} is where the word goes. others: pictures of it that are not shown, in
    other styles or of other things: what the best of drawings would look like.
    """

    name: str
    kind: str
    known: str
    pictures: dict[str, Image.Image]
    captions: list[str]
    others: list[Image.Image]
    prompts: tuple[str, ...]

    @property
    def file_name(self) -> str:
        return self.name.replace(" ", "-")

    @property
    def shown(self) -> list[Image.Image]:
        return list(self.pictures.values())

    def write(self, folder: Path, word: str) -> Path:
        """The pictures as people bring them, a caption beside each where there is one."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, picture in self.pictures.items():
            picture.save(folder / f"{name}.png")
        for name, caption in zip(self.pictures, self.captions):
            (folder / f"{name}.txt").write_text(caption.format(word), encoding="utf-8")
        return folder

    def draw(self, pipe: StableDiffusion, word: str) -> list[Image.Image]:
        """A drawing for each of SEEDS, of the prompts in turn, as the model draws best."""
        asked = dict(steps=20, guidance_scale=3.0, sampler="dpmpp_2m")
        prompts = [self.prompts[k % len(self.prompts)].format(word) for k in range(len(SEEDS))]
        return [pipe(prompt, seed=seed, **asked).images[0] for prompt, seed in zip(prompts, SEEDS)]


def concepts(data: Path) -> list[Concept]:
    """The held-out style, then the held-out things, from the prepared dataset."""
    drawn = EmojiPictures(data, ("name", "style"))

    def pictures(names, styles) -> dict[tuple[str, str], Image.Image]:
        places = [i for i, emoji in enumerate(drawn.emoji) if emoji.name in names and emoji.style in styles]
        keys = [(drawn.emoji[i].name, drawn.emoji[i].style) for i in places]
        return dict(zip(keys, from_tensor(drawn.images(places))))

    shown = {name: picture for (name, _), picture in pictures(STYLE_NAMES, (HELD_OUT_STYLE,)).items()}
    others = list(pictures(SHOWN_IN_NO_PICTURE, (HELD_OUT_STYLE,)).values())
    found = [Concept(HELD_OUT_STYLE, "style", "noto emoji", shown, [], others, STYLE_PROMPTS)]
    for name, known in OBJECTS.items():
        shown = {style: picture for (_, style), picture in pictures((name,), OBJECT_STYLES).items()}
        captions = [f"a {{}}, {style}" for style in shown]
        others = list(pictures((name,), ("fxemoji", HELD_OUT_STYLE)).values())
        found.append(Concept(name, "object", known, shown, captions, others, OBJECT_PROMPTS))
    return found


@dataclass
class Taught:
    """What came of one concept: drawings by what they are of ("known", "ti", "lora").

    likeness: their CLIP-I, and that of pictures of the concept which were not shown ("real"), by the judge's name.
    """

    concept: Concept
    drawings: dict[str, list[Image.Image]]
    likeness: dict[str, dict[str, float]]


def teach_concept(concept: Concept, run: Path, judges: list[Judge], say: Callable[[str], None] = print) -> Taught:
    """The concept by textual inversion and by LoRA, each with the defaults, beside the words known before."""
    pipe = load_to_teach("lora")
    drawings = {"known": concept.draw(pipe, concept.known)}
    for method, name in (("ti", f"<{concept.file_name}>"), ("lora", concept.file_name)):
        recipe = recipe_for(method, pipe, name, kind=concept.kind, **words(method, concept))
        where = run / f"{concept.file_name}-{method}"
        images, output = concept.write(where / "pictures", recipe.said), where / "result.safetensors"
        taught = teach(method, images, name, pipe, recipe, run=where, output=output, say=say)
        (pipe.load_embedding if method == "ti" else pipe.load_lora)(taught.path)
        drawings[method] = concept.draw(pipe, recipe.said)
        pipe.unload()
    compared = drawings | {"real": concept.others}
    likeness = {
        judge.name: {what: clip_i(judge, made, concept.shown) for what, made in compared.items()} for judge in judges
    }
    return Taught(concept, drawings, likeness)


def words(method: str, concept: Concept) -> dict[str, str]:
    """A new word that starts as the known ones, or a rare one before them."""
    return {"init": concept.known} if method == "ti" else {"word": "sks", "class_word": concept.known}


def keep_class(concept: Concept, run: Path, judges: list[Judge], prior_weight: float) -> dict[str, dict[str, float]]:
    """DreamBooth of a thing, by the judge's name: CLIP-I of its drawings to its pictures, before and after, and of the
    class' drawings to those before, each to that of its own prompt and seed, and to the thing's pictures.
    """
    pipe = load_to_teach("dreambooth")
    before = concept.draw(pipe, concept.known)
    where = run / f"{concept.file_name}-dreambooth-{prior_weight:g}"
    given = words("dreambooth", concept) | {"prior_weight": prior_weight}
    recipe = recipe_for("dreambooth", pipe, concept.file_name, **given)
    images, output = concept.write(where / "pictures", recipe.said), where / "result.safetensors"
    taught = teach("dreambooth", images, concept.file_name, pipe, recipe, run=where, output=output)
    pipe = StableDiffusion.from_pretrained(taught.path)
    thing, kept = concept.draw(pipe, recipe.said), concept.draw(pipe, concept.known)
    return {
        judge.name: {
            "thing": clip_i(judge, thing, concept.shown),
            "thing before": clip_i(judge, before, concept.shown),
            "class kept": sum(clip_i(judge, [now], [then]) for now, then in zip(kept, before)) / len(before),
            "class taken over": clip_i(judge, kept, concept.shown) - clip_i(judge, before, concept.shown),
        }
        for judge in judges
    }
