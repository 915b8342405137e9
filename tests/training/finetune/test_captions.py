"""Captions contain the word, with as few other changes as possible."""

import re
from pathlib import Path

import pytest
import torch

from sd.training.finetune.data.captions import KINDS, OBJECT, STYLE, Captions, wordings, words_from_file_name
from sd.training.finetune.data.image_folder import ImageFile
from sd.utils.errors import UserError


class Folder:
    """Like `ImageFolder`, without files."""

    def __init__(self, *captions, names=None):
        names = names or [f"{i:02}.jpg" for i in range(len(captions))]
        self.images = [ImageFile(Path(name), list(said), (64, 64)) for name, said in zip(names, captions)]

    def __len__(self):
        return len(self.images)


def said(*captions, **options):
    """All wordings of one image with these captions."""
    (one,) = Captions(Folder(captions), **options).wordings
    return one


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_templates_are_many_different_and_have_one_place_each():
    assert len(set(OBJECT)) == len(OBJECT) == 25
    assert len(set(STYLE)) == len(STYLE) == 20
    for kind in KINDS.values():
        assert all(template.count("{}") == 1 for template in kind.templates)
        assert sorted(re.findall("{.*?}", kind.beside)) == ["{caption}", "{name}"]


def test_without_captions_the_templates():
    assert said(word="<cat>") == [template.replace("{}", "<cat>") for template in OBJECT]
    assert said(word="<ink>", kind="style")[0] == "a painting in the style of <ink>"
    assert said(word="<cat>", kind="plain object") == ["<cat>", "a <cat>"]
    assert said(word="<ink>", kind="plain style") == ["<ink>"]
    assert said(word="sks", class_word="dog") == ["a photo of sks dog"]
    assert said(word="sks", kind="plain object", class_word="dog") == ["sks dog", "a sks dog"]


@pytest.mark.parametrize(
    ("caption", "options", "wanted"),
    [
        ("a <cat> on a sofa", {}, "a <cat> on a sofa"),
        ("A <CAT> on a sofa", {}, "A <cat> on a sofa"),  # placeholders are found as they are written
        ("a sofa", {}, "<cat>, a sofa"),
        ("a sofa", {"kind": "plain object"}, "<cat>, a sofa"),
        ("a sofa", {"kind": "style"}, "a sofa, in the style of <cat>"),
        ("a sofa", {"kind": "plain style"}, "a sofa, <cat>"),
        ("a sofa as <cat> drew it", {"kind": "style"}, "a sofa as <cat> drew it"),
        ("a dog and a dog", {"class_word": "dog"}, "a <cat> dog and a dog"),
        ("a hotdog", {"class_word": "dog"}, "<cat> dog, a hotdog"),
        ("a Dog", {"class_word": "dog"}, "a <cat> dog"),
        ("a <cat>", {"class_word": "dog"}, "a <cat>"),
    ],
)
def test_a_caption_gets_the_word(caption, options, wanted):
    assert said(caption, word="<cat>", **options) == [wanted]


def test_a_word_inside_another_is_not_the_word():
    assert said("a catalogue", word="cat") == ["cat, a catalogue"]
    assert said("50% (cat)", word="cat") == ["50% (cat)"]
    assert said("x", word=r"\1.*") == [r"\1.*, x"]


def test_a_style_uses_the_words_of_the_file_name():
    photo = ImageFile(Path("red-apple_2.png"), [], (64, 64))
    assert wordings(photo, "<ink>", "plain style") == ["a red apple, <ink>"]
    assert wordings(photo, "<ink>", "style")[0] == "a painting in the style of <ink>"
    photo.captions = ["grapes"]
    assert wordings(photo, "<ink>", "plain style") == ["grapes, <ink>"]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("red-apple.png", "red apple"),
        ("Red_Apple (2).PNG", "red apple"),
        ("dog5.jpg", "dog"),
        ("an-owl.webp", "owl"),
        ("00.jpg", None),
        ("IMG_1234.jpg", None),
        ("photo of me.jpg", None),
        ("3f2a9c1b-77d0.png", None),
        ("x.png", None),
    ],
)
def test_what_a_file_name_says(name, shown):
    assert words_from_file_name(Path(name)) == shown


def test_captions_as_they_are():
    assert said("one", "two", word=None) == ["one", "two"]
    with pytest.raises(UserError, match="1 of 2 images have no caption"):
        Captions(Folder(["a dog"], []))


def test_samples_are_uniform_and_the_same_for_a_seed():
    captions = Captions(Folder(["one", "two"], []), word="<w>", kind="plain object")
    indices = torch.tensor([0, 1]).repeat(2000)
    drawn = captions.sample(indices, generator(1))
    assert drawn == captions.sample(indices.tolist(), generator(1))
    assert drawn != captions.sample(indices, generator(2))
    for one in ("<w>, one", "<w>, two", "<w>", "a <w>"):
        # 2,000 draws of one half: 1,000 with a deviation of 22; five of them.
        assert drawn.count(one) == pytest.approx(1000, abs=110)


def test_the_share_of_empty_captions():
    drawn = Captions(Folder(["one"]), word="<w>", empty=0.25).sample(torch.zeros(4000).long(), generator())
    # 4,000 draws of a quarter: 1,000 with a deviation of 27; five of them.
    assert drawn.count("") == pytest.approx(1000, abs=137)
    assert set(drawn) == {"", "<w>, one"}
