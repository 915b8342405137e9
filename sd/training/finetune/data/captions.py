"""Captions for training a new word: the image's own caption with the word in it, or a template."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sd.training.finetune.data.image_folder import ImageFile, ImageFolder
from sd.training.pretrain.dataset import with_article
from sd.utils.errors import UserError

# Many wordings, so that their common part, the word, learns the common part of the images (Gal et al. 2022, "An Image
# is Worth One Word", section 4). They state nothing that an image could contradict.
OBJECT = (
    "a photo of a {}",
    "a photo of the {}",
    "a photo of one {}",
    "a photo of my {}",
    "a photo of this {}",
    "a photo with a {} in it",
    "a photo that shows a {}",
    "a photograph of a {}",
    "a photograph of the {}",
    "a picture of a {}",
    "a picture of the {}",
    "a picture of one {}",
    "a picture of my {}",
    "a picture that shows the {}",
    "an image of a {}",
    "an image of the {}",
    "an image that shows a {}",
    "a snapshot of a {}",
    "a snapshot of my {}",
    "a good photo of a {}",
    "a clear picture of the {}",
    "a view of a {}",
    "a look at the {}",
    "this is a {}",
    "here is the {}",
)
STYLE = (
    "a painting in the style of {}",
    "a picture in the style of {}",
    "a drawing in the style of {}",
    "an image in the style of {}",
    "an illustration in the style of {}",
    "a work in the style of {}",
    "a work of art in the style of {}",
    "an artwork in the style of {}",
    "a piece in the style of {}",
    "a scene in the style of {}",
    "a design in the style of {}",
    "a composition in the style of {}",
    "a study in the style of {}",
    "one painting in the style of {}",
    "one picture in the style of {}",
    "this painting in the style of {}",
    "a picture made in the style of {}",
    "something made in the style of {}",
    "art in the style of {}",
    "the style of {}",
)


@dataclass(frozen=True)
class Kind:
    """How a word enters a caption."""

    templates: tuple[str, ...]  # for an image without a caption
    beside: str  # for a caption that does not contain the word


KINDS = {
    "object": Kind(OBJECT, "{name}, {caption}"),
    "style": Kind(STYLE, "{caption}, in the style of {name}"),
    # Like the captions of the bundled model: "a red apple, fluent 3d emoji".
    "plain object": Kind(("{}", "a {}"), "{name}, {caption}"),
    "plain style": Kind(("{}",), "{caption}, {name}"),
    # Like those of Ruiz et al. 2022, "DreamBooth", section 3.2: one sentence, with the class after the word.
    "dreambooth": Kind(("a photo of {}",), "{name}, {caption}"),
}
GENERIC_NAMES = set(
    "img image photo pic picture dsc dscn dscf pxl vid scan screenshot untitled unnamed download".split()
)


class Captions:
    """The possible captions of each image; `sample` chooses one of them.

    folder: the images.
    word: the word to train, a placeholder or a rare word; None leaves the captions unchanged, and every image needs
        one.
    kind: one of KINDS. The plain ones suit the bundled model, whose captions never contain "a photo".
    class_word: the class of the object, which follows the word: "a photo of sks dog". In a caption with the class word
        the new word goes before it: "a dog in the snow" becomes "a sks dog in the snow".
    empty: the fraction of captions left empty, 0 to 1, which trains the unconditional prediction too.
    fits: whether a text is short enough; a caption that is not is truncated, and the word stays in it.

    shortened: the images whose captions are truncated. wordings: a list of captions for each image.
    Raises UserError where there is neither a word nor a caption.
    """

    def __init__(
        self,
        folder: ImageFolder,
        word: str | None = None,
        kind: str = "object",
        class_word: str | None = None,
        empty: float = 0.0,
        fits: Callable[[str], bool] | None = None,
    ):
        without = sum(not (image.captions or image.folder_caption) for image in folder.images)
        if word is None and without:
            raise UserError(
                f"{without} of {len(folder)} images have no caption: write captions, or give a new word with --word."
            )
        kind = "dreambooth" if kind == "object" and class_word else kind
        self.wordings = [wordings(image, word, kind, class_word, fits) for image in folder.images]
        whole = self.wordings if fits is None else [wordings(one, word, kind, class_word) for one in folder.images]
        self.shortened = [image for image, some, all_ in zip(folder.images, self.wordings, whole) if some != all_]
        self.empty = empty

    def sample(self, indices: Tensor | list[int], generator: torch.Generator) -> list[str]:
        """Return a caption for each image, with all randomness from `generator`."""
        captions = []
        for i in map(int, indices):
            empty = torch.rand((), generator=generator) < self.empty
            k = torch.randint(len(self.wordings[i]), (), generator=generator)
            captions.append("" if empty else self.wordings[i][k])
        return captions


def wordings(
    image: ImageFile,
    word: str | None,
    kind: str,
    class_word: str | None = None,
    fits: Callable[[str], bool] | None = None,
) -> list[str]:
    """Return all captions of one image."""
    fits = fits or (lambda text: True)
    captions = image.captions
    if not captions and image.folder_caption and (word is None or word_pattern(word).search(image.folder_caption)):
        captions = [image.folder_caption]
    if word is None:
        return [truncate_caption(caption, fits) for caption in captions]
    name = f"{word} {class_word}" if class_word else word
    if kind == "plain style" and not captions and (shown := words_from_file_name(image.path)):
        captions = [with_article(shown)]

    def insert(caption: str) -> str:
        return insert_word(caption, word, name, class_word, KINDS[kind].beside)

    if captions:
        return [insert(truncate_caption(caption, lambda cut: fits(insert(cut)))) for caption in captions]
    return [template.format(name) for template in KINDS[kind].templates]


def truncate_caption(caption: str, fits: Callable[[str], bool]) -> str:
    """Return the caption, or as much of its beginning as fits, up to a nearby end of a word."""
    if fits(caption):
        return caption
    short, long = 0, len(caption)  # characters: the first fits, the other does not
    while long - short > 1:
        middle = (short + long) // 2
        short, long = (middle, long) if fits(caption[:middle]) else (short, middle)
    cut, space, last = caption[:short].rpartition(" ")
    at_a_word = space and len(last) < 20 and not caption[short : short + 1].isspace()
    return (cut if at_a_word and fits(cut) else caption[:short]).rstrip(" ,")


def insert_word(caption: str, word: str, name: str, class_word: str | None, beside: str) -> str:
    """Return the caption with the smallest change that puts the word into it."""
    changed, times = word_pattern(word).subn(lambda _: word, caption)  # in the exact case, which placeholders need
    if times == 0 and class_word:
        changed, times = word_pattern(class_word).subn(lambda _: name, caption, count=1)
    return changed if times else beside.format(name=name, caption=caption)


def word_pattern(word: str) -> re.Pattern:
    return re.compile(rf"(?<!\w){re.escape(word)}(?!\w)", re.IGNORECASE)


def words_from_file_name(path: Path) -> str | None:
    """Return "red apple" for red-apple_2.png; None for IMG_1234.jpg, 00.jpg and other names without a meaning."""
    words = [word.rstrip("0123456789") for word in re.split(r"[\W_]+", path.stem.lower())]
    words = [word for word in words if word and word not in ("a", "an")]
    if not words or not all(word.isalpha() and len(word) > 1 for word in words) or GENERIC_NAMES & set(words):
        return None
    return " ".join(words)
