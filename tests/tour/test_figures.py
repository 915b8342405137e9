"""What the figures' helpers claim: merges, skips and attention are those of the networks, which stay as they were."""

import copy

import pytest
import torch

from sd.attention import attention_written_out
from sd.tokenizer import Tokenizer
from sd.unet import BasicTransformerBlock, CrossAttention, UNetModel
from tour.figures.text import merge_steps
from tour.figures.unet import recording, without_skip
from tour.figures.words import recording_attention
from tour.images import sheet_images

SIZES = dict(model_channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_levels=(1,), context_dim=8)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return UNetModel(**SIZES, num_heads=2).requires_grad_(False)


def run(unet):
    torch.manual_seed(1)
    return unet(torch.randn(1, 4, 8, 8), torch.tensor([500.0]), torch.randn(1, 5, 8))


@pytest.mark.parametrize("word", ["snowglobe", "apple", "xylophonist", "e"])
def test_merge_steps_end_in_the_tokenizers_pieces(word):
    tokenizer = Tokenizer()
    assert tuple(merge_steps(tokenizer, word)[-1][0]) == tokenizer.merge_pairs(word)


def test_without_skip_is_a_network_whose_weights_for_it_are_zero(network):
    """Zeros at the skip's channels, in the concatenation of the second block on the way up."""
    before = run(network)
    with without_skip(network, 1):
        cut = run(network)
    assert torch.equal(run(network), before)

    changed = copy.deepcopy(network)
    below = network.output_blocks[0][0].out_layers[-1].out_channels
    changed.output_blocks[1].register_forward_pre_hook(
        lambda module, inputs: (torch.cat([inputs[0][:, :below], 0 * inputs[0][:, below:]], 1), *inputs[1:])
    )
    assert torch.equal(run(changed), cut)
    assert not torch.equal(cut, before)


def test_recorded_attention_rows_sum_to_1_and_the_output_stays(network):
    before = run(network)
    with recording_attention(network) as maps:
        assert torch.equal(run(network), before)
    assert maps
    for one in maps:
        assert one.shape[2] == 5  # the tokens of the context
        torch.testing.assert_close(one.sum(dim=2), torch.ones(one.shape[:2]), rtol=0, atol=1e-5)  # sum of 5 roundings
    assert all("attend" not in vars(module) for module in network.modules() if isinstance(module, CrossAttention))
    count = len(maps)
    run(network)
    assert len(maps) == count


def test_recorded_attention_is_that_of_the_written_out_twin():
    torch.manual_seed(0)
    layer = CrossAttention(8, 8, heads=2).requires_grad_(False)
    unet = torch.nn.ModuleList()
    q, k = torch.randn(1, 3, 8), torch.randn(1, 8, 8)
    values = torch.eye(8)[None, :, :4].repeat(1, 1, 2)  # the output of each head is its weights of the first 4 keys
    expected = attention_written_out(q, k, values, 2).unflatten(2, (2, 4)).mean(dim=2)
    block = BasicTransformerBlock(8, 8, 2)
    block.attn2 = layer
    unet.append(block)
    with recording_attention(unet) as maps:
        layer.attend(q, k, values)
    torch.testing.assert_close(maps[0][..., :4], expected, rtol=0, atol=1e-6)  # float32, sums of 8


def test_recording_keeps_outputs_and_removes_its_hooks(network):
    with recording(network, ("middle_block", "output_blocks.1")) as outputs:
        run(network)
    assert set(outputs) == {"middle_block", "output_blocks.1"}
    assert all(not module._forward_hooks for module in network.modules())


def test_the_sheet_is_cut_into_seventy_whole_images():
    images = sheet_images()
    assert len(images) == 70
    assert {image.size for image in images} == {(128, 128)}
