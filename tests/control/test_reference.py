"""Reference-only control: its layers against the method written out, and that nothing of it remains."""

import copy
from collections import defaultdict

import pytest
import torch
from conftest import UNET
from reference_models import randomize

from sd.control.controlled_unet import ControlledUNet
from sd.control.reference import Reference, adain_layers, attention_layers
from sd.optimization.shared_cfg_prefix import share_prefix
from sd.optimization.small_maps.cached_text import cache_text
from sd.optimization.token_merging import token_merging
from sd.pipeline.tracing.attention_maps import AttentionMaps, observed
from sd.schedule import SD1_SCHEDULE
from sd.unet import BasicTransformerBlock, UNetModel

SIZES = UNET | {"attention_levels": (0, 1)}


@pytest.fixture(scope="module")
def unet():
    return randomize(UNetModel(**SIZES), 3).requires_grad_(False)


@pytest.fixture
def call():
    """(x, t, context) of two images of one prompt with guidance: rows without the prompt first."""
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(2, 4, 8, 8, generator=generator).repeat(2, 1, 1, 1)
    contexts = torch.randn(2, 7, 64, generator=generator).repeat_interleave(2, dim=0)
    return x, torch.full((4,), 501.0), contexts


@pytest.fixture
def hint():
    return torch.randn(1, 8, 8, 8, generator=torch.Generator().manual_seed(5))


def mean_and_std(x):
    return x.mean((2, 3), keepdim=True), x.std((2, 3), keepdim=True, correction=0)


def written_out(unet, call, hint, fidelity, attention_weight=0.0, adain_weight=0.0):
    """The extension's way: all rows of the batch run on the reference and fill banks, then on the image and read them.

    The weights choose the layers; 0 for none.
    """
    unet, (x, t, context), uncond = copy.deepcopy(unet), call, slice(0, 2)
    mode, banks = {}, defaultdict(list)
    blocks = [block for block in unet.modules() if isinstance(block, BasicTransformerBlock)]
    blocks.sort(key=lambda block: -block.norm1.normalized_shape[0])
    for i, block in enumerate(blocks):
        if i / len(blocks) < attention_weight:

            def forward(x, context, block=block):
                normed = block.norm1(x)
                if mode["writes"]:
                    banks[block].append(normed)
                    own = block.attn1(normed)
                else:
                    free = block.attn1(normed, torch.cat([normed, banks[block].pop()], dim=1))
                    strict = free.clone()
                    strict[uncond] = block.attn1(normed[uncond])
                    own = fidelity * strict + (1 - fidelity) * free
                x = x + own
                x = x + block.attn2(block.norm2(x), context)
                return x + block.ff(block.norm3(x))

            block.forward = forward
    # Of this small U-Net: the middle, the block after the only halving, and the one before the only doubling.
    for block, least in ((unet.middle_block, 0.0), (unet.input_blocks[3], 2.0), (unet.output_blocks[0], 0.0)):
        if least < adain_weight:

            def restyle(module, inputs, x):
                if mode["writes"]:
                    banks[module].append(x)
                    return x
                reference = banks[module].pop()
                means, stds = zip(*map(mean_and_std, (x, reference)))
                free = (x - means[0]) / stds[0] * stds[1] + means[1]
                strict = free.clone()
                strict[uncond] = x[uncond]
                return fidelity * strict + (1 - fidelity) * free

            block.register_forward_hook(restyle)
    alpha = SD1_SCHEDULE.alphas_cumprod[int(t[0])]
    noised = alpha.sqrt() * hint[:, :4] + (1 - alpha).sqrt() * hint[:, 4:]
    mode["writes"] = True
    unet(noised.expand(len(x), -1, -1, -1), t, context)
    mode["writes"] = False
    return unet(x, t, context)


@pytest.mark.parametrize("fidelity", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(
    ("weight", "attention", "adain"),
    [(1.0, True, False), (0.4, True, False), (1.0, False, True), (1.0, True, True)],
)
def test_it_is_the_method_written_out(unet, call, hint, fidelity, weight, attention, adain):
    one = Reference(hint, SD1_SCHEDULE, weight, fidelity=fidelity, attention=attention, adain=adain)
    made = ControlledUNet(unet, [one], 2)(*call)
    expected = written_out(unet, call, hint, fidelity, weight * attention, weight * adain)
    # The same sums in another order, in fp32; the outputs are of the order of 1.
    torch.testing.assert_close(made, expected, rtol=1e-5, atol=1e-5)
    assert (made - unet(*call)).abs().mean() > 1e-3


def test_the_unet_is_as_before(unet, call, hint):
    before, text = {key: value.clone() for key, value in unet.state_dict().items()}, repr(unet)
    kinds, plain = [type(layer) for layer in unet.modules()], unet(*call)
    ControlledUNet(unet, [Reference(hint, SD1_SCHEDULE, adain=True)], 2)(*call)
    assert [type(layer) for layer in unet.modules()] == kinds
    assert not any(name in vars(layer) for layer in unet.modules() for name in ("record", "references", "fidelity"))
    assert repr(unet) == text
    assert all(torch.equal(before[key], value) for key, value in unet.state_dict().items())
    assert torch.equal(unet(*call), plain)


def test_the_unet_is_as_before_after_an_error(unet, call, hint):
    x, t, context = call
    with pytest.raises(RuntimeError):
        ControlledUNet(unet, [Reference(hint, SD1_SCHEDULE, adain=True)], 2)(x, t, context[..., :5])
    assert torch.equal(unet(*call), copy.deepcopy(unet)(*call))


def test_at_fidelity_1_the_rows_without_the_prompt_are_plain(unet, call, hint):
    for adain in (False, True):
        one = Reference(hint, SD1_SCHEDULE, fidelity=1.0, adain=adain)
        made, plain = ControlledUNet(unet, [one], 2)(*call), unet(*call)
        torch.testing.assert_close(made[:2], plain[:2], rtol=0, atol=1e-6)  # another batch in the attention: rounding
        assert (made[2:] - plain[2:]).abs().mean() > 1e-3


def test_it_works_between_its_start_and_end(unet, call, hint):
    x, _, context = call
    one = Reference(hint, SD1_SCHEDULE, start=0.2, end=0.6)
    for t, works in ((900.0, False), (600.0, True), (300.0, False)):
        inputs = x, torch.full((4,), t), context
        assert torch.equal(ControlledUNet(unet, [one], 2)(*inputs), unet(*inputs)) is not works


def test_two_references_are_read_together(unet, call, hint):
    """An attention to two equal references and to one differ; with the same reference twice AdaIN is that of one."""
    one, twin = (Reference(hint, SD1_SCHEDULE, adain=True, attention=False) for _ in range(2))
    twice = ControlledUNet(unet, [one, twin], 2)(*call)
    torch.testing.assert_close(twice, ControlledUNet(unet, [one], 2)(*call), rtol=1e-5, atol=1e-5)
    other = Reference(hint.flip(-1), SD1_SCHEDULE)
    alone = ControlledUNet(unet, [other], 2)(*call)
    together = ControlledUNet(unet, [other, Reference(hint, SD1_SCHEDULE)], 2)(*call)
    assert (together - alone).abs().mean() > 1e-3


def test_it_works_beside_the_patches_of_the_unet(unet, call, hint):
    x, t, context = (part[::2].contiguous() for part in call)  # one image
    run = lambda network: ControlledUNet(network, [Reference(hint, SD1_SCHEDULE)], 1)(x, t, context)  # noqa: E731
    patched = copy.deepcopy(unet)
    share_prefix(patched)
    cache_text(patched)
    with torch.no_grad():
        torch.testing.assert_close(run(patched), run(unet), rtol=1e-5, atol=1e-5)
        with token_merging(patched, 0.5):
            merged = run(patched)
            plain = ControlledUNet(patched, [], 1)(x, t, context)
    assert (merged - plain).abs().mean() > 1e-3, "the reference is read with merged tokens too"
    torch.testing.assert_close(run(patched), run(unet), rtol=1e-5, atol=1e-5)


def test_what_observes_the_attention_sees_the_image_alone(unet, call, hint):
    maps = AttentionMaps((8, 8), torch.eye(7))
    with observed(unet, maps):
        maps.row = 0
        unet(*call)
        plain = maps.layers
        maps.take()
        maps.row = 0
        ControlledUNet(unet, [Reference(hint, SD1_SCHEDULE)], 2)(*call)
    assert maps.layers == plain > 0


def test_an_inpainting_unet_reads_the_whole_reference(hint):
    unet = randomize(UNetModel(**SIZES, in_channels=9), 3)
    seen = Reference(hint, SD1_SCHEDULE).noised(torch.tensor([0.0]), torch.zeros(1, 9, 8, 8))
    assert torch.equal(seen[:, 5:], hint[:, :4])
    assert not seen[:, 4].any()
    assert unet(seen, torch.tensor([0.0]), torch.zeros(1, 7, 64)).isfinite().all()


def test_the_layers_of_v1_5_are_the_extensions():
    with torch.device("meta"):
        unet = UNetModel()
    names = {layer: name for name, layer in unet.named_modules()}
    adain = {names[layer]: least for layer, least in adain_layers(unet)}
    assert list(adain) == [
        "middle_block",
        *(f"input_blocks.{i}" for i in (4, 5, 7, 8, 10, 11)),
        *(f"output_blocks.{i}" for i in range(8)),
    ]
    assert (adain["middle_block"], adain["input_blocks.4"], adain["output_blocks.4"]) == (0, 2, 1)
    attention = attention_layers(unet)
    assert len(attention) == 16
    widths = [layer.to_q.in_features for layer, _ in attention]
    assert widths == sorted(widths, reverse=True)
    assert [least for _, least in attention] == [i / 16 for i in range(16)]
