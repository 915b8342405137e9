"""The share of a noun's attention that lies on its object, where it is known beforehand."""

from dataclasses import replace

import pytest
import torch
from conftest import ROOT
from scene_data import make_cutouts

from sd.pipeline.stable_diffusion import StableDiffusion
from sd.pipeline.tracing.words import Word
from sd.training.pretrain.scenes.attention import attention_share, box_mask, noun_entry
from sd.training.pretrain.scenes.grammar import Grammar
from sd.training.pretrain.scenes.layout import Placed


@pytest.fixture(scope="module")
def cutouts(tmp_path_factory):
    return make_cutouts(tmp_path_factory.mktemp("cutouts"))


def test_a_box_covers_whole_cells_and_parts_of_cells():
    placed = Placed("dog", "noto emoji", None, left=8, top=16, width=12, height=8, side=12)
    mask = box_mask(placed, (16, 16))  # cells of 8 x 8 pixels
    assert mask[2, 1] == 1
    assert mask[2, 2] == 0.5
    assert mask.sum() == 1.5
    assert box_mask(placed, (4, 4))[0, 0] == pytest.approx(12 * 8 / 32**2)


def test_a_noun_is_found_by_its_last_word_and_only_where_it_stands_once():
    words = [Word(text, (k + 1,)) for k, text in enumerate("a hot dog and a cat".split())]
    assert noun_entry(words, "hot dog") == 3
    assert noun_entry(words, "cat") == 6
    assert noun_entry(words, "fish") is None
    assert noun_entry([*words, words[-1]], "cat") is None


def test_uniform_attention_has_the_density_one(cutouts):
    pipe = StableDiffusion.from_pretrained(ROOT / "weights" / "emoji.safetensors")
    for name, weight in pipe.unet.named_parameters():
        if "attn2.to_q" in name:
            weight.data.zero_()  # every key gets the same score at every position
    grammar = Grammar(cutouts, shares={"pair": 1})
    scenes = [grammar.scene(seed) for seed in range(3)]
    scenes = [replace(scene, caption=f"a {scene.content.names[0]} and a {scene.content.names[1]}") for scene in scenes]
    share = attention_share(pipe, scenes, cutouts)
    assert share.objects >= 3
    # The sums of 256 equal fp32 numbers round in the seventh digit.
    torch.testing.assert_close(share.inside, share.area, rtol=1e-5, atol=0)
    assert 0.02 < share.area < 0.4
