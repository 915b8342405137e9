"""The loss on the attention of phrases: its values at known attentions, its gradient, and the layers as before."""

import pytest
import torch
from scene_data import make_cutouts

from sd.tokenizer import Tokenizer
from sd.training.pretrain.scene_latents import grounded_phrases, wordings
from sd.training.pretrain.scenes.attention_loss import AttentionLoss, box_masks, collecting, find_tokens
from sd.training.pretrain.scenes.grammar import Grammar
from sd.unet import BasicTransformerBlock, CrossAttention, UNetModel

LEFT = torch.tensor([[1.0, 0.0], [1.0, 0.0]])  # a mask of 2 x 2 cells


def loss_of(scores, masks=LEFT[None, None], weights=(1.0,)):
    """scores: (B, 4, 2) of 2 x 2 places and two text vectors, of which the second one is the phrase."""
    members = torch.tensor([[[0.0, 1.0]]]).expand(len(scores), -1, -1)
    loss = AttentionLoss()
    loss.expect(members, masks.expand(len(scores), -1, -1, -1), torch.tensor(weights))
    k = torch.eye(2).expand(len(scores), -1, -1)
    loss.add(scores * 2**0.5, k, heads=1)  # the layer divides by sqrt(2)
    return loss.value().item()


def test_uniform_attention_costs_the_area_outside():
    assert loss_of(torch.zeros(1, 4, 2)) == pytest.approx(0.25)  # (1 - 1/2)^2


def test_attention_on_the_object_costs_nothing_and_elsewhere_one():
    inside = torch.tensor([[[0.0, 40.0], [40.0, 0.0], [0.0, 40.0], [40.0, 0.0]]])
    assert loss_of(inside) == pytest.approx(0, abs=1e-6)
    assert loss_of(-inside) == pytest.approx(1, abs=1e-6)


def test_examples_count_by_their_weights():
    both = torch.tensor([[[0.0, 40.0], [40.0, 0.0], [0.0, 40.0], [40.0, 0.0]], [[0.0, 0.0]] * 4])
    assert loss_of(both, weights=(1.0, 3.0)) == pytest.approx(0.75 * 0.25, abs=1e-6)


def test_masks_are_the_shares_of_cells_inside_any_box():
    mask = box_masks([(0, 0, 64, 64), (96, 64, 16, 64)], cells=2)  # cells of 64 x 64 pixels
    assert mask.tolist() == [[1, 0], [0, 0.25]]


def test_a_phrase_is_found_where_it_occurs_once():
    encode = Tokenizer().encode
    caption = encode("a red car and a blue heart")
    assert find_tokens(caption, encode("blue heart")) == range(5, 7)
    assert find_tokens(caption, encode("a")) is None  # twice
    assert find_tokens(caption, encode("blue car")) is None


@pytest.fixture(scope="module")
def grammar(tmp_path_factory):
    return Grammar(make_cutouts(tmp_path_factory.mktemp("cutouts")))


def test_the_phrases_of_a_scene_are_in_all_of_its_captions(grammar):
    encode = Tokenizer().encode
    found = set()
    for seed in range(60):
        scene = grammar.scene(seed)
        phrases = grounded_phrases(scene)
        assert sum(len(boxes) for _, boxes in phrases) == len(scene.objects)
        for phrase, _ in phrases:
            assert all(find_tokens(encode(caption), encode(phrase)) for caption in wordings(scene)), phrase
        found.add(scene.content.kind)
    assert len(found) == 6


def test_the_gradient_moves_the_attention_and_the_layers_are_as_before():
    torch.manual_seed(0)
    unet = UNetModel(
        model_channels=32, channel_mult=(1, 1), num_res_blocks=1, attention_levels=(0, 1), context_dim=32, num_heads=2
    )
    layers = [block.attn2 for block in unet.modules() if isinstance(block, BasicTransformerBlock)]
    inputs = torch.randn(2, 4, 8, 8), torch.tensor([5, 500]), torch.randn(2, 77, 32)
    members = torch.zeros(2, 2, 77)
    members[:, 0, 3] = members[:, 1, 7] = 1
    masks = torch.stack([box_masks([(0, 0, 64, 128)], 8), box_masks([(64, 0, 64, 128)], 8)]).expand(2, -1, -1, -1)
    with torch.no_grad():
        plain = unet(*inputs)
    optimizer = torch.optim.Adam([p for n, p in unet.named_parameters() if "attn2.to_" in n], 1e-2)
    values = []
    for _ in range(20):
        loss = AttentionLoss()
        loss.expect(members, masks, torch.ones(2))
        with collecting(unet, loss):
            out = unet(*inputs)
        if not values:
            assert torch.equal(out, plain)
        values.append(loss.value().item())
        optimizer.zero_grad()
        loss.value().backward()
        optimizer.step()
    assert values[-1] < 0.6 * values[0]  # both phrases at half of the image each: 0.25 at random
    assert {type(layer) for layer in layers} == {CrossAttention}
