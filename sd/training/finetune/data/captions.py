"""What is said of each picture while a word for them is learnt: its own caption with the word in it, or a template."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sd.training.finetune.data.image_folder import Photo, Photos
from sd.training.pretrain.dataset import with_article
from sd.utils.errors import UserError

# Many wordings, so that what they have in common, the word, takes up what the pictures have in common
# (Gal et al. 2022, "An Image is Worth One Word", section 4). They claim nothing that a picture could contradict.
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
    """How a word comes into a caption."""

    templates: tuple[str, ...]  # where the picture has no caption
    beside: str  # where it has one, in which the word is not


KINDS = {
    "object": Kind(OBJECT, "{name}, {caption}"),
    "style": Kind(STYLE, "{caption}, in the style of {name}"),
    # As the captions of the bundled model: "a red apple, fluent 3d emoji".
    "plain object": Kind(("{}", "a {}"), "{name}, {caption}"),
    "plain style": Kind(("{}",), "{caption}, {name}"),
    # As in Ruiz et al. 2022, "DreamBooth", section 3.2: one sentence, with the class after the word.
    "dreambooth": Kind(("a photo of {}",), "{name}, {caption}"),
}
NOTHING_SAID = set(
    "img image photo pic picture dsc dscn dscf pxl vid scan screenshot untitled unnamed download".split()
)


class Captions:
    """The wordings of each picture; each `draw` says one of them.

    photos: whose pictures.
    word: what is learnt, a placeholder or a rare word; None to keep the captions as they are, which all must have.
    kind: one of KINDS. The plain ones suit the bundled model, whose captions never say "a photo".
    class_word: what the thing is, said after the word: "a photo of sks dog". Where a caption says it, the word comes
        before it there: "a dog in the snow" becomes "a sks dog in the snow".
    empty: the share of captions left empty, 0 to 1, which keeps the unconditional picture in training.
    fits: whether a text can be read whole; a caption that cannot is cut at its end, and the word stays in it.

    shortened: the photos whose captions were cut. wordings: a list for each picture.
    Raises UserError where there is neither a word nor a caption.
    """

    def __init__(
        self,
        photos: Photos,
        word: str | None = None,
        kind: str = "object",
        class_word: str | None = None,
        empty: float = 0.0,
        fits: Callable[[str], bool] | None = None,
    ):
        without = sum(not (photo.captions or photo.folder_caption) for photo in photos.photos)
        if word is None and without:
            raise UserError(
                f"{without} of {len(photos)} pictures have no caption: write them, or name a word to learn."
            )
        kind = "dreambooth" if kind == "object" and class_word else kind
        self.wordings = [wordings(photo, word, kind, class_word, fits) for photo in photos.photos]
        whole = self.wordings if fits is None else [wordings(one, word, kind, class_word) for one in photos.photos]
        self.shortened = [one for one, said, all_of_it in zip(photos.photos, self.wordings, whole) if said != all_of_it]
        self.empty = empty

    def draw(self, indices: Tensor | list[int], generator: torch.Generator) -> list[str]:
        """A caption for each picture, all that is random from `generator`."""
        drawn = []
        for i in map(int, indices):
            empty = torch.rand((), generator=generator) < self.empty
            k = torch.randint(len(self.wordings[i]), (), generator=generator)
            drawn.append("" if empty else self.wordings[i][k])
        return drawn


def wordings(
    photo: Photo,
    word: str | None,
    kind: str,
    class_word: str | None = None,
    fits: Callable[[str], bool] | None = None,
) -> list[str]:
    """All that may be said of one picture."""
    fits = fits or (lambda text: True)
    captions = photo.captions
    if not captions and photo.folder_caption and (word is None or whole_word(word).search(photo.folder_caption)):
        captions = [photo.folder_caption]
    if word is None:
        return [longest_that_fits(caption, fits) for caption in captions]
    name = f"{word} {class_word}" if class_word else word
    if kind == "plain style" and not captions and (shown := what_it_shows(photo.path)):
        captions = [with_article(shown)]

    def said(caption: str) -> str:
        return with_word(caption, word, name, class_word, KINDS[kind].beside)

    if captions:
        return [said(longest_that_fits(caption, lambda cut: fits(said(cut)))) for caption in captions]
    return [template.format(name) for template in KINDS[kind].templates]


def longest_that_fits(caption: str, fits: Callable[[str], bool]) -> str:
    """The caption, or as much of its beginning as fits, up to the end of a word where one is near."""
    if fits(caption):
        return caption
    short, long = 0, len(caption)  # characters: the first fits, the other does not
    while long - short > 1:
        middle = (short + long) // 2
        short, long = (middle, long) if fits(caption[:middle]) else (short, middle)
    cut, space, last = caption[:short].rpartition(" ")
    at_a_word = space and len(last) < 20 and not caption[short : short + 1].isspace()
    return (cut if at_a_word and fits(cut) else caption[:short]).rstrip(" ,")


def with_word(caption: str, word: str, name: str, class_word: str | None, beside: str) -> str:
    """The caption, changed as little as brings the word into it."""
    said, times = whole_word(word).subn(lambda _: word, caption)  # also as it is written: placeholders are exact
    if times == 0 and class_word:
        said, times = whole_word(class_word).subn(lambda _: name, caption, count=1)
    return said if times else beside.format(name=name, caption=caption)


def whole_word(word: str) -> re.Pattern:
    return re.compile(rf"(?<!\w){re.escape(word)}(?!\w)", re.IGNORECASE)


def what_it_shows(path: Path) -> str | None:
    """ "red apple" for red-apple_2.png; None for IMG_1234.jpg, 00.jpg and other names that say nothing."""
    words = [word.rstrip("0123456789") for word in re.split(r"[\W_]+", path.stem.lower())]
    words = [word for word in words if word and word not in ("a", "an")]
    if not words or not all(word.isalpha() and len(word) > 1 for word in words) or NOTHING_SAID & set(words):
        return None
    return " ".join(words)
