"""A benchmark of fine-tuning: the bundled model is trained on objects and a style that it has never seen.

Each concept is a folder of images and a word; everything else has its default. The prompts of the evaluation occur in
no caption and no preview, and have their own seeds. The measure is CLIP-I: are the generated images more similar to the
concept's images than those for the nearest words that the model knew before?
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from sd.evaluation.clip_score import FeatureExtractor, clip_i
from sd.pipeline.stable_diffusion import StableDiffusion
from sd.training.finetune.finetune import finetune
from sd.training.finetune.recipes import recipe_for
from sd.training.finetune.setup import load_for_training
from sd.training.pretrain.dataset import EmojiDataset, with_article
from sd.training.pretrain.emoji_dataset import HELD_OUT_STYLE
from sd.utils.images import from_tensor

# Held-out names, each with the nearest name that was trained.
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
# The training images of the held-out style: 15 names that the model knows in other styles.
STYLE_NAMES = (
    "dog face, lion, pig, frog, penguin, fish, tulip, tree, banana, strawberry, hamburger, house, car, umbrella, star"
).split(", ")
EVALUATION_NAMES = ("panda", "tiger", "carrot", "pizza", "bus", "key", "gift", "rose")  # in no image and no preview
STYLE_PROMPTS = tuple(f"{with_article(name)}, {{}}" for name in EVALUATION_NAMES)
SEEDS = range(100, 108)  # of the evaluation; previews have 0 to 3


@dataclass(frozen=True)
class Concept:
    """An object or style to train.

    known: the nearest words that the model knows.
    images: the training images by file name.
    captions: one for each image; none for the style, where file names describe the images.
    other_images: images of the concept outside of training, in other styles or of other objects: the ceiling for
        generated images.
    prompts: of the evaluation. In captions and prompts {} stands for the word.
    """

    name: str
    kind: str
    known: str
    images: dict[str, Image.Image]
    captions: list[str]
    other_images: list[Image.Image]
    prompts: tuple[str, ...]

    @property
    def file_name(self) -> str:
        return self.name.replace(" ", "-")

    @property
    def training_images(self) -> list[Image.Image]:
        return list(self.images.values())

    def write(self, folder: Path, word: str) -> Path:
        """Write the images to a folder as a user would have them, with a caption file beside each if there is one."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, image in self.images.items():
            image.save(folder / f"{name}.png")
        for name, caption in zip(self.images, self.captions):
            (folder / f"{name}.txt").write_text(caption.format(word), encoding="utf-8")
        return folder

    def generate(self, pipe: StableDiffusion, word: str) -> list[Image.Image]:
        """Generate an image for each of SEEDS, with the prompts in turn and the settings that suit the model best."""
        settings: dict[str, Any] = dict(steps=20, guidance_scale=3.0, sampler="dpmpp_2m")
        prompts = [self.prompts[k % len(self.prompts)].format(word) for k in range(len(SEEDS))]
        return [pipe(prompt, seed=seed, **settings).images[0] for prompt, seed in zip(prompts, SEEDS)]


def concepts(data: Path) -> list[Concept]:
    """Return the held-out style, then the held-out objects, from the prepared dataset."""
    dataset = EmojiDataset(data, ("name", "style"))

    def select(names, styles) -> dict[tuple[str, str], Image.Image]:
        indices = [i for i, emoji in enumerate(dataset.emoji) if emoji.name in names and emoji.style in styles]
        keys = [(dataset.emoji[i].name, dataset.emoji[i].style) for i in indices]
        return dict(zip(keys, from_tensor(dataset.images(indices))))

    training_images = {name: image for (name, _), image in select(STYLE_NAMES, (HELD_OUT_STYLE,)).items()}
    other_images = list(select(EVALUATION_NAMES, (HELD_OUT_STYLE,)).values())
    found = [Concept(HELD_OUT_STYLE, "style", "noto emoji", training_images, [], other_images, STYLE_PROMPTS)]
    for name, known in OBJECTS.items():
        training_images = {style: image for (_, style), image in select((name,), OBJECT_STYLES).items()}
        captions = [f"a {{}}, {style}" for style in training_images]
        other_images = list(select((name,), ("fxemoji", HELD_OUT_STYLE)).values())
        found.append(Concept(name, "object", known, training_images, captions, other_images, OBJECT_PROMPTS))
    return found


@dataclass
class ConceptResult:
    """The result of one concept: generated images by method ("known", "ti", "lora").

    clip_i_scores: CLIP-I by feature extractor and method, and that of images outside of training ("real").
    """

    concept: Concept
    generated: dict[str, list[Image.Image]]
    clip_i_scores: dict[str, dict[str, float]]


def finetune_concept(
    concept: Concept, run: Path, feature_extractors: list[FeatureExtractor], say: Callable[[str], None] = print
) -> ConceptResult:
    """Train the concept by textual inversion and by LoRA, each with the defaults, and compare with the known words."""
    pipe = load_for_training("lora")
    generated = {"known": concept.generate(pipe, concept.known)}
    for method, name in (("ti", f"<{concept.file_name}>"), ("lora", concept.file_name)):
        recipe = recipe_for(method, pipe, name, kind=concept.kind, **word_settings(method, concept))
        where = run / f"{concept.file_name}-{method}"
        folder, output = concept.write(where / "images", recipe.phrase), where / "result.safetensors"
        result = finetune(method, folder, name, pipe, recipe, run=where, output=output, say=say)
        (pipe.load_embedding if method == "ti" else pipe.load_lora)(result.path)
        generated[method] = concept.generate(pipe, recipe.phrase)
        pipe.unload()
    compared = generated | {"real": concept.other_images}
    clip_i_scores = {
        extractor.name: {what: clip_i(extractor, images, concept.training_images) for what, images in compared.items()}
        for extractor in feature_extractors
    }
    return ConceptResult(concept, generated, clip_i_scores)


def word_settings(method: str, concept: Concept) -> dict[str, str]:
    """Return a new word that is initialized with the known ones, or a rare word before them."""
    return {"init": concept.known} if method == "ti" else {"word": "sks", "class_word": concept.known}


def measure_prior_preservation(
    concept: Concept, run: Path, feature_extractors: list[FeatureExtractor], prior_weight: float
) -> dict[str, dict[str, float]]:
    """Measure what DreamBooth of an object does to its class, by feature extractor.

    The CLIP-I scores are those of the object before and after, of class images to those before (each pair with its own
    prompt and seed), and of class images to the object's images.
    """
    pipe = load_for_training("dreambooth")
    before = concept.generate(pipe, concept.known)
    where = run / f"{concept.file_name}-dreambooth-{prior_weight:g}"
    given = word_settings("dreambooth", concept) | {"prior_weight": prior_weight}
    recipe = recipe_for("dreambooth", pipe, concept.file_name, **given)
    folder, output = concept.write(where / "images", recipe.phrase), where / "result.safetensors"
    result = finetune("dreambooth", folder, concept.file_name, pipe, recipe, run=where, output=output)
    pipe = StableDiffusion.from_pretrained(result.path)
    images, class_images = concept.generate(pipe, recipe.phrase), concept.generate(pipe, concept.known)
    return {
        extractor.name: {
            "thing": clip_i(extractor, images, concept.training_images),
            "thing before": clip_i(extractor, before, concept.training_images),
            "class kept": sum(clip_i(extractor, [now], [then]) for now, then in zip(class_images, before))
            / len(before),
            "class taken over": clip_i(extractor, class_images, concept.training_images)
            - clip_i(extractor, before, concept.training_images),
        }
        for extractor in feature_extractors
    }
