"""Scenes: reproducible by seed, with true captions, and without held-out combinations in training."""

import hashlib
import random
import re

import numpy as np
import pytest
from conftest import ROOT
from scene_data import STYLES, make_cutouts

from sd.training.pretrain.emoji_dataset import SIZE, read_names
from sd.training.pretrain.scenes import vocabulary
from sd.training.pretrain.scenes.backgrounds import FLAT, LANDSCAPES, Background, draw_background
from sd.training.pretrain.scenes.colors import COLORS, color_word, main_color
from sd.training.pretrain.scenes.cutouts import Cutouts
from sd.training.pretrain.scenes.grammar import SHARES, Grammar, usual_style
from sd.training.pretrain.scenes.layout import overlap, relation_holds
from sd.training.pretrain.scenes.render import masks, render, render_object
from sd.training.pretrain.scenes.sheets import captioned_sheet
from sd.training.pretrain.scenes.stream import SceneStream
from sd.training.pretrain.scenes.vocabulary import COUNT_WORDS, pair_is_held_out, relation_is_held_out, scene_names
from sd.training.pretrain.scenes.wording import Content, body_wordings, captions
from sd.utils.errors import UserError

DATA = ROOT / "data" / "emoji"
prepared = pytest.mark.skipif(not (DATA / "cutouts.jsonl").exists(), reason="the cut-outs are not prepared")
SEEDS = range(300)


@pytest.fixture(scope="module")
def cutouts(tmp_path_factory):
    return make_cutouts(tmp_path_factory.mktemp("cutouts"))


@pytest.fixture(scope="module")
def scenes(cutouts):
    return [Grammar(cutouts).scene(seed) for seed in SEEDS]


def test_the_held_out_lists_are_fixed():
    text = vocabulary.SCENE_NAMES.read_bytes()
    assert hashlib.sha256(text).hexdigest()[:16] == "ecb00ebbdfa9c5c8"
    names = scene_names()
    assert len(names) >= 300
    held = [name for name in read_names() if name.held_out == "name"]
    assert not {name.name for name in held} & set(names)
    assert len({name.plural for name in names.values() if name.plural}) == sum(bool(n.plural) for n in names.values())


def test_a_tenth_and_a_half_of_each_kind_of_combination_is_held_out():
    names = list(scene_names())
    pairs = [(a, b) for a in names for b in names if a < b]
    assert np.mean([pair_is_held_out(a, b) for a, b in pairs]) == pytest.approx(0.15, abs=0.01)
    assert np.mean([relation_is_held_out(a, "left", b) for a, b in pairs]) == pytest.approx(0.15, abs=0.01)
    countable = [name for name in scene_names().values() if name.plural]
    counts = [len(name.held_out_counts) / len(COUNT_WORDS) for name in countable]
    assert np.mean(counts) == pytest.approx(0.15, abs=0.02)
    assert max(counts) < 0.4  # each name is seen with two other counts


def test_the_same_fact_in_other_words_is_held_out_as_well():
    for a, b in (("cat", "dog"), ("star", "house"), ("car", "tree"), ("key", "lock")):
        assert pair_is_held_out(a, b) == pair_is_held_out(b, a)
        assert relation_is_held_out(a, "left", b) == relation_is_held_out(b, "right", a)
        assert relation_is_held_out(a, "below", b) == relation_is_held_out(b, "above", a)


def test_the_same_seed_gives_the_same_scene_and_pixels(cutouts):
    first, again = (Grammar(cutouts).scene(7) for _ in range(2))
    assert first == again
    assert (np.asarray(render(first, cutouts)) == np.asarray(render(again, cutouts))).all()
    assert len({Grammar(cutouts).scene(seed).objects for seed in range(20)}) == 20


def test_every_kind_has_its_share(scenes):
    for kind, share in SHARES.items():  # 300 draws: three standard errors are at most 0.083
        assert np.mean([scene.content.kind == kind for scene in scenes]) == pytest.approx(share, abs=0.083)


def test_training_scenes_and_their_twins_show_nothing_held_out(cutouts, scenes):
    grammar = Grammar(cutouts)
    twins = [grammar.twins(seed)[1] for seed in SEEDS[:100]]
    for scene in scenes + twins:
        names = [scene_names()[name] for name in scene.content.names]
        for name, color in zip(names, scene.content.colors):
            assert color not in name.held_out_colors
        assert scene.content.count not in names[0].held_out_counts
        if len(names) == 2:
            assert not pair_is_held_out(*scene.content.names)
        if scene.content.relation:
            first, second = scene.content.names
            assert not relation_is_held_out(first, scene.content.relation, second)


def test_held_out_scenes_show_one_held_out_combination_each(cutouts):
    grammar = Grammar(cutouts, held_out=True, shares=dict.fromkeys(("counted", "placed", "recolored"), 1))
    assert all(grammar.scene(seed).content.is_held_out for seed in range(40))


def test_a_twin_differs_in_what_it_says(cutouts):
    for seed in range(40):
        scene, twin = Grammar(cutouts).twins(seed)
        assert scene.content != twin.content


def test_objects_are_as_many_as_the_caption_says(scenes):
    words = {word: count for count, word in COUNT_WORDS.items()} | {str(count): count for count in COUNT_WORDS}
    counted = [scene for scene in scenes if scene.content.kind == "counted"]
    assert counted
    for scene in counted:
        said = re.search(r"\b(two|three|four|2|3|4)\b", scene.caption).group()
        assert len(scene.objects) == words[said]
        assert scene_names()[scene.content.names[0]].plural in scene.caption
    assert all(len(scene.objects) == 2 for scene in scenes if len(scene.content.names) == 2)


def test_objects_are_whole_and_apart(cutouts, scenes):
    for scene in scenes:
        for k, placed in enumerate(scene.objects):
            assert placed.left >= 0 <= placed.top
            assert placed.left + placed.width <= SIZE >= placed.top + placed.height
            assert not any(overlap(placed, other) for other in scene.objects[:k])
    for scene in scenes[:40]:
        seen = masks(scene, cutouts)
        assert seen.any(axis=(1, 2)).all()
        assert seen.sum(axis=0).max() == 1


def test_each_object_stands_where_the_caption_says(scenes):
    placed = [scene for scene in scenes if scene.content.kind == "placed"]
    assert placed
    for scene in placed:
        nouns = [scene_names()[name].noun for name in scene.content.names]
        caption = re.split(" on (?!the (left|right))| in | at | under a starry", scene.caption.split(",")[0])[0]
        if caption.startswith(("noto", "fluent")):
            caption = caption.split(" of ", 1)[1]
        words = next(word for word in ("left", "right", "above", "over", "below", "under") if f" {word} " in caption)
        relation = {"over": "above", "under": "below"}.get(words, words)
        first, second = scene.objects
        if caption.index(nouns[0]) > caption.index(nouns[1]):
            first, second = second, first
        assert relation_holds(relation, first, second), scene.caption


def test_a_caption_without_a_style_means_the_first_usual_style(cutouts, scenes):
    assert usual_style(["cat", "dog"], cutouts) == "fluent emoji"
    assert usual_style(["unknown"], cutouts) is None
    plain = [scene for scene in scenes if "emoji" not in scene.caption]
    assert len(plain) > 100
    assert {scene.content.style for scene in plain} == {"fluent emoji"}
    assert {scene.content.style for scene in scenes} == set(STYLES)
    stream = SceneStream(cutouts, single_emoji=1.0)
    plain = [scene for scene in map(stream.scene, range(100)) if "emoji" not in scene.caption]
    assert plain
    assert {scene.content.style for scene in plain} == {"fluent emoji"}


def test_two_objects_mostly_stand_in_the_order_of_the_caption(scenes):
    pairs = [scene for scene in scenes if len(scene.objects) == 2 and len(scene.content.names) == 2]
    pairs = [scene for scene in pairs if not scene.content.relation]
    left = [relation_holds("left", *scene.objects, across=0.2) for scene in pairs]
    assert np.mean(left) > 0.7  # 0.85 of them, and some of the others


def test_the_color_in_the_image_is_the_color_in_the_caption(cutouts, scenes):
    colored = [scene for scene in scenes if any(scene.content.colors)]
    right = []
    for scene in colored:
        for placed, color in zip(scene.objects, scene.content.colors):
            assert f"{color} {scene_names()[placed.name].noun}" in scene.caption
            right.append(color_word(main_color(np.asarray(render_object(placed, cutouts)))) == color)
    assert len(right) > 60
    assert np.mean(right) == 1  # the shapes have one color each


def test_captions_read_as_people_write():
    def said(*args, **kwargs):
        return captions(Content(*args, **kwargs), styled=False)

    assert said("single", "noto emoji", ("cactus",))[0] == "a cactus"
    assert said("recolored", "noto emoji", ("red apple",), ("orange",))[0] == "an orange apple"
    assert said("counted", "noto emoji", ("mouse",), count=3) == ["three mice", "3 mice"]
    pair = said("pair", "noto emoji", ("cat", "dog"), (None, None))
    assert pair == ["a cat and a dog", "a cat next to a dog", "a cat with a dog"]
    placed = said("placed", "noto emoji", ("cat", "tree"), (None, None), relation="left")
    assert placed[:2] == ["a cat left of a tree", "a tree right of a cat"]
    colored = said("colored_pair", "noto emoji", ("car", "red heart"), ("red", "blue"))
    assert colored[0] == "a red car and a blue heart"
    snow = Content("single", "noto emoji", ("dog",), background=Background("snow"))
    assert captions(snow, styled=True)[0] == "a dog in the snow, noto emoji"
    assert captions(snow, styled=True)[-1] == "noto emoji of a dog in the snow"
    assert "grapes" in body_wordings(Content("single", "noto emoji", ("grapes",)))


@pytest.mark.parametrize("word", FLAT)
def test_a_flat_background_has_its_color(word):
    image = draw_background(Background("flat", (word,)), 32, random.Random(0))
    assert color_word(main_color(np.dstack([image, np.full((32, 32), 255, np.uint8)]))) == word


@pytest.mark.parametrize("kind", LANDSCAPES)
def test_a_landscape_is_the_same_for_the_same_seed(kind):
    first, again, other = (draw_background(Background(kind), 64, random.Random(seed)) for seed in (1, 1, 2))
    assert first.shape == (64, 64, 3)
    assert (first == again).all()
    assert (first != other).any()


def test_outside_of_its_objects_a_scene_is_its_background(cutouts):
    scene = next(s for s in map(Grammar(cutouts).scene, range(99)) if s.content.background.kind == "white")
    free = ~masks(scene, cutouts).any(axis=0)
    assert np.asarray(render(scene, cutouts))[free].min() > 225  # soft edges of at most 6 % opacity remain


def test_a_sheet_has_every_scene_and_marks_right_and_wrong(cutouts, scenes):
    images = [render(scene, cutouts) for scene in scenes[:3]]
    sheet = captioned_sheet(images, [scene.caption for scene in scenes[:3]], columns=2, right=[True, False, True])
    assert sheet.size == (2 * (SIZE + 8), 2 * (SIZE + 44))
    assert {(30, 140, 50), (200, 40, 40)} <= {color for _, color in sheet.getcolors(10**6)}


def test_single_emoji_stay_in_the_stream(cutouts):
    stream = SceneStream(cutouts)
    kinds = [stream.scene(k).content.kind for k in range(200)]
    assert np.mean([kind == "emoji" for kind in kinds]) == pytest.approx(0.5, abs=0.106)  # three standard errors
    for each in (scene.objects[0] for scene in map(SceneStream(cutouts, single_emoji=1.0).scene, range(200))):
        drawn = cutouts[each.name, each.style]
        assert (each.left, each.top, each.width, each.height) == (drawn.left, drawn.top, drawn.width, drawn.height)
        assert not each.flip
    images, texts = stream.images(np.arange(3))
    assert images.shape == (3, 3, SIZE, SIZE)
    assert len(texts) == 3
    assert images.max() <= 1


def test_without_cutouts_one_sentence_says_what_to_run(tmp_path):
    with pytest.raises(UserError, match=r"prepare_scenes\.py"):
        Cutouts(tmp_path)


@prepared
def test_real_cutouts_cover_the_names_and_keep_held_out_pairs_out():
    cutouts = Cutouts(DATA)
    assert set(scene_names()) <= set(cutouts.styles)
    split = {name.name: name for name in read_names()}
    assert all(split[name].split(style) == "train" for name, style in cutouts.cutouts)
    colors = [color for cutout in cutouts.cutouts.values() for color in cutout.colors]
    assert set(colors) == set(COLORS)
    for seed in range(20):
        scene = Grammar(cutouts).scene(seed)
        assert not scene.content.is_held_out
