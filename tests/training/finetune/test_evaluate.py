"""The fine-tuning benchmark keeps training and evaluation apart, and its features measure similarity."""

from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from PIL import Image

from sd.training.finetune.data.captions import Captions
from sd.training.finetune.data.image_folder import ImageFolder
from sd.training.finetune.evaluate import OBJECT_PROMPTS, SEEDS, Concept, concepts
from sd.training.finetune.recipes import EMOJI_PROMPTS
from sd.training.pretrain.dataset import with_article
from sd.training.pretrain.emoji_dataset import HELD_OUT_STYLE, read_names
from sd.training.pretrain.imagenet_features import ImageNetFeatures

DATA = ROOT / "data" / "emoji"
prepared = pytest.mark.skipif(not (DATA / "index.jsonl").exists(), reason="the emoji are not prepared")


def concept(captions=("a {}, noto emoji",), kind="object"):
    return Concept("sea dog", kind, "dog", {"tulip": Image.new("RGB", (8, 8))}, list(captions), [], OBJECT_PROMPTS)


def test_images_are_written_with_caption_files(tmp_path):
    def said(concept, **given):
        folder = concept.write(tmp_path / concept.kind, "sks dog")
        return Captions(ImageFolder(folder, say=lambda _: None), "sks", f"plain {concept.kind}", "dog").wordings

    assert said(concept()) == [["a sks dog, noto emoji"]]
    assert said(concept(captions=(), kind="style")) == [["a tulip, sks dog"]]  # by its file's name


def test_images_have_the_prompts_in_turn_and_distinct_seeds(pipe):
    asked = []

    def generate(prompt, seed, **settings):
        asked.append((prompt, seed))
        return SimpleNamespace(images=[None])

    assert len(concept().generate(generate, "<x>")) == len(SEEDS)
    assert asked[0] == ("<x>, fluent 3d emoji", SEEDS[0])
    assert asked[5] == ("fluent flat emoji of a <x>", SEEDS[5])
    assert not set(SEEDS) & set(range(len(EMOJI_PROMPTS["object"])))  # previews', by which a step is advised


@prepared
def test_no_evaluation_prompt_occurs_in_training():
    held_out = {one.name for one in read_names() if one.held_out == "name"}
    found = concepts(DATA)
    assert len(found) == 8
    for one in found:
        assert 3 <= len(one.images) <= 15
        assert one.other_images
        asked, previews = set(one.prompts), set(EMOJI_PROMPTS[one.kind])
        assert not asked & (set(one.captions) | previews)
        if one.kind == "style":
            assert one.name == HELD_OUT_STYLE
            assert not any(f"{with_article(name)}, {{}}" in asked for name in one.images)
        else:
            assert one.name in held_out
            assert one.known not in held_out


def test_imagenet_features_distinguish_similar_from_different_images():
    pytest.importorskip("efficientnet_lite_pytorch")
    extractor = ImageNetFeatures()
    y, x = torch.meshgrid(torch.linspace(-1, 1, 64), torch.linspace(-1, 1, 64), indexing="ij")

    def disc(radius):
        return Image.fromarray((x**2 + y**2 > radius).byte().mul(255).numpy()).convert("RGB")

    stripes = Image.fromarray(((x * 8).int() % 2 == 0).byte().mul(255).numpy()).convert("RGB")
    rows = extractor.embed_images([disc(0.4), disc(0.45), stripes])
    assert rows.norm(dim=1).tolist() == pytest.approx([1, 1, 1], abs=1e-5)  # fp32
    assert rows[0] @ rows[1] > rows[0] @ rows[2] + 0.2
