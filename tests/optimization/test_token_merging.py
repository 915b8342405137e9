"""Token merging: which places are merged, that they come back to where they were, and that nothing of it stays."""

import pytest
import torch
from reference_models import randomize

from sd.adapters.injection import eject, inject
from sd.adapters.variants import Difference
from sd.optimization.token_merging import MergeState, finest_transformers, merge_tokens, token_merging, unmerge_tokens
from sd.unet import CrossAttention, SpatialTransformer, UNetModel
from sd.utils.errors import UserError


def tokens(count: int, batch: int = 2, dim: int = 16, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, count, dim, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.6, 0.75])
@pytest.mark.parametrize("size", [(8, 8), (6, 10), (9, 7), (1, 5), (1, 1)])
def test_ratio_r_leaves_1_minus_r(ratio, size):
    count = size[0] * size[1]
    whole_cells = size[0] // 2 * (size[1] // 2)
    x = tokens(count)
    groups, left = MergeState(ratio, size).group_tokens(x)
    joining = min(int(ratio * count), count - whole_cells) if whole_cells else 0
    assert left == count - joining
    for row in groups:
        assert row.unique().tolist() == list(range(left))  # none is empty
    assert merge_tokens(x, groups, left).shape == (2, left, 16)


def test_unmerging_restores_positions():
    """Places hold their own number; what comes back at a place is the mean of those that are one with it."""
    size = (6, 8)
    x = torch.arange(48.0).expand(2, 48)[..., None]
    groups, left = MergeState(0.5, size).group_tokens(tokens(48))
    back = unmerge_tokens(merge_tokens(x, groups, left), groups)
    for row, of in zip(back[..., 0], groups):
        for place in range(48):
            same = (of == of[place]).nonzero().flatten().float()
            assert row[place] == pytest.approx(same.mean().item())
    alone = torch.stack([torch.bincount(of)[of] == 1 for of in groups])
    assert alone.any()
    assert torch.equal(back[alone], x[alone])  # to the bit


def test_the_most_alike_are_merged():
    """Written out with loops: cosines of all pairs, the best partner of each, the best of these first."""
    size, x = (4, 6), tokens(24, batch=1)
    groups, _ = MergeState(0.5, size).group_tokens(x)
    stays, others = MergeState(0.5, size).choose_destinations()  # the first lots are the same again
    unit = x[0] / x[0].norm(dim=-1, keepdim=True)
    partner = {i: max(stays.tolist(), key=lambda j: (unit[i] @ unit[j]).item()) for i in others.tolist()}
    ranked = sorted(partner, key=lambda i: -(unit[i] @ unit[partner[i]]).item())
    for rank, i in enumerate(ranked):
        assert (groups[0, i] == groups[0, partner[i]]) == (rank < 12)
    assert len({groups[0, i].item() for i in ranked[12:]} & set(range(len(stays)))) == 0


def test_one_place_of_each_cell_stays():
    merging = MergeState(0.5, (6, 9))
    drawn = [merging.choose_destinations() for _ in range(2)]
    for stays, others in drawn:
        assert sorted(stays.tolist() + others.tolist()) == list(range(54))
        cells = {(place // 9 // 2, place % 9 // 2) for place in stays.tolist()}
        assert cells == {(row, column) for row in range(3) for column in range(4)}
    assert not torch.equal(drawn[0][0], drawn[1][0])  # destinations are sampled again every time


def attention(seed: int = 1) -> CrossAttention:
    return randomize(CrossAttention(16, 16, heads=2), seed=seed)


@torch.no_grad()
def test_merging_equal_tokens_is_exact():
    """Four kinds of places, each four times, in cells of one kind: with 3/4 merged, one of each kind is left."""
    kinds = tokens(4)
    x = kinds[:, [0, 0, 1, 1, 0, 0, 1, 1, 2, 2, 3, 3, 2, 2, 3, 3]]  # 4x4 places
    groups, left = MergeState(0.75, (4, 4)).group_tokens(x)
    assert left == 4
    layer = attention()
    merged = unmerge_tokens(layer(merge_tokens(x, groups, left)), groups)
    # Softmax over four of each is that over one of each, but for fp32 rounding of sums of values near 1.
    assert torch.allclose(merged, layer(x), atol=1e-6)


def test_only_the_highest_resolution_is_merged():
    sizes = dict(model_channels=32, channel_mult=(1, 2, 2), num_res_blocks=1, num_heads=2, context_dim=8)
    with torch.device("meta"):
        all_levels = UNetModel(**sizes, attention_levels=(0, 1, 2))
        lower_levels = UNetModel(**sizes, attention_levels=(1, 2))
        v1_5 = UNetModel()
    assert [layer.norm.num_channels for layer in finest_transformers(v1_5)] == [320] * 5
    assert finest_transformers(all_levels) == [
        layer
        for block in (all_levels.input_blocks[1], all_levels.output_blocks[5], all_levels.output_blocks[4])
        for layer in block
        if isinstance(layer, SpatialTransformer)
    ]
    assert finest_transformers(lower_levels) == [
        lower_levels.input_blocks[3][1],
        lower_levels.output_blocks[3][1],
        lower_levels.output_blocks[2][1],
    ]


def test_ratio_0_is_off_and_nothing_stays(pipe):
    pipe.optimize()  # as the first call does
    keys, text = list(pipe.unet.state_dict()), repr(pipe.unet)
    before = pipe("a dog", seed=2, steps=3).latents
    merged = pipe("a dog", seed=2, steps=3, token_merging=0.5).latents
    assert not torch.allclose(merged, before)
    assert torch.equal(pipe("a dog", seed=2, steps=3, token_merging=0.5).latents, merged)
    assert torch.equal(pipe("a dog", seed=2, steps=3, token_merging=0.0).latents, before)
    assert (list(pipe.unet.state_dict()), repr(pipe.unet)) == (keys, text)
    assert all("merging" not in vars(layer) for layer in pipe.unet.modules())


def test_it_comes_off_after_an_error(pipe):
    pipe.optimize()
    text = repr(pipe.unet)

    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipe("a dog", seed=2, steps=3, token_merging=0.5, on_step=stop)
    assert repr(pipe.unet) == text


def test_the_attention_sees_fewer_places(pipe):
    seen = []
    for layer in finest_transformers(pipe.unet):
        layer.transformer_blocks[0].attn1.to_q.register_forward_hook(lambda module, given, out: seen.append(out.shape))
    pipe("a dog", seed=2, steps=1, token_merging=0.5, width=128, height=64)
    assert {shape[1] for shape in seen} == {16}  # latents of 8x16, attention from 4x8 on: 32 places


@pytest.mark.parametrize("sampler", ["ddpm", "heun"])
def test_an_image_does_not_depend_on_its_batch(pipe, sampler):
    asked = dict(steps=3, sampler=sampler, token_merging=0.5)
    three = pipe("a dog", seed=5, num_images=3, **asked)
    assert torch.equal(pipe("a dog", seed=7, **asked).latents, three.latents[2:])
    at_once = pipe("a dog", seed=5, num_images=3, batch_size=3, **asked).latents
    # A batch of three rounds otherwise than three of one, and a tie decided otherwise would differ in the first digit.
    assert torch.allclose(at_once, three.latents, atol=1e-3)


def test_a_lora_inside_comes_and_goes_while_it_is_on(pipe):
    path, asked = "input_blocks.3.1.transformer_blocks.0.attn1.to_q", dict(seed=2, steps=2, token_merging=0.5)
    before, text = pipe("a dog", **asked).latents, repr(pipe.unet)
    change = torch.eye(pipe.unet.get_submodule(path).in_features)
    with token_merging(pipe.unet, 0.5):
        inject(pipe.unet, "eye", {path: Difference({"diff": change})})
    assert not torch.allclose(pipe("a dog", **asked).latents, before)
    with token_merging(pipe.unet, 0.25):
        eject(pipe.unet, "eye")
    assert torch.equal(pipe("a dog", **asked).latents, before)
    assert repr(pipe.unet) == text


@pytest.mark.parametrize("value", [-0.1, 0.8, float("nan"), "half"])
def test_what_cannot_be_is_said(pipe, value):
    with pytest.raises(UserError, match="token_merging must be"):
        pipe("x", token_merging=value)
