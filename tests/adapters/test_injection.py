"""Patches on layers: what they compute, alone and together, and that they leave no trace."""

import copy

import pytest
import torch
from make_adapters import SMALL, networks_of
from reference_models import relative_error
from torch import nn

from sd.adapters.injection import (
    PatchedLinear,
    adapter_names,
    deltas_of,
    eject,
    inject,
    merge_adapters,
    patchable_layers,
    patched_layers,
    set_strength,
    unmerge_adapters,
)
from sd.adapters.variants import DoRA, LoRA, build_delta
from sd.utils.errors import UserError


def fields_of(kind: str, weight: torch.Tensor, rank: int = 3) -> dict[str, torch.Tensor]:
    """Random tensors of each kind for a weight (out, in) or (out, in, k, k)."""
    out, inputs, *kernel = weight.shape
    size = weight[0].numel()
    shapes = {
        "LoRA": dict(lora_down=(rank, inputs, *kernel), lora_up=(out, rank, *[1] * len(kernel))),
        "Tucker": dict(
            lora_down=(rank, inputs, *[1] * len(kernel)),
            lora_up=(out, rank, *[1] * len(kernel)),
            lora_mid=(rank, rank, *kernel),
        ),
        "LoHa": dict(hada_w1_a=(out, rank), hada_w1_b=(rank, size), hada_w2_a=(out, rank), hada_w2_b=(rank, size)),
        "LoKr": dict(lokr_w1=(4, 4), lokr_w2_a=(out // 4, rank), lokr_w2_b=(rank, size // 4)),
        "Difference": dict(diff=tuple(weight.shape), diff_b=(out,)),
        "bias": dict(lora_down=(rank, inputs, *kernel), lora_up=(out, rank, *[1] * len(kernel)), diff_b=(out,)),
        "DoRA": dict(lora_down=(rank, inputs, *kernel), lora_up=(out, rank, *[1] * len(kernel)), dora_scale=(out,)),
    }[kind]
    return {name: torch.randn(shape) / shape[-1] ** 0.5 for name, shape in shapes.items()}


KINDS = ["LoRA", "Tucker", "LoHa", "LoKr", "Difference", "bias", "DoRA"]


def layers() -> dict[str, tuple[nn.Module, torch.Tensor]]:
    torch.manual_seed(0)
    round_ = nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular")
    return {
        "linear": (nn.Linear(8, 12), torch.randn(2, 5, 8)),
        "1x1": (nn.Conv2d(8, 12, 1), torch.randn(2, 8, 5, 4)),
        "3x3 stride 2": (nn.Conv2d(8, 12, 3, stride=2, padding=1), torch.randn(2, 8, 6, 4)),
        "seamless": (round_, torch.randn(2, 8, 6, 4)),
    }


class TestOneLayer:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("which", layers())
    def test_equals_the_changed_weight(self, kind, which):
        """Its output is that of the layer with W + strength · ΔW; merged too."""
        layer, x = layers()[which]
        patch = build_delta(fields_of(kind, layer.weight), scale=0.5)
        changed = copy.deepcopy(layer)
        changed.weight.data += 0.7 * patch.delta(layer.weight).detach()
        if patch.delta_bias() is not None:
            changed.bias.data += 0.7 * patch.delta_bias().detach()
        network = nn.Sequential(layer)
        inject(network, "a", {"0": patch}, 0.7)
        # Sums of at most 72 products, and the change is up to ten times as large as the weight.
        torch.testing.assert_close(network(x), changed(x), rtol=1e-5, atol=1e-5)
        merge_adapters(network)
        torch.testing.assert_close(network(x), changed(x), rtol=1e-5, atol=1e-5)
        assert type(network[0]) is type(changed)

    def test_delta_of_lora_written_out(self):
        """ΔW[o, i] = alpha / r · Σ_k up[o, k] down[k, i], by hand."""
        down, up = torch.tensor([[1.0, 2.0], [0.0, 3.0]]), torch.tensor([[1.0, 1.0], [4.0, 0.0], [0.0, 2.0]])
        patch = build_delta({"lora_down": down, "lora_up": up}, scale=0.5)
        expected = 0.5 * torch.tensor([[1.0, 5.0], [4.0, 8.0], [0.0, 6.0]])
        assert torch.equal(patch.delta(torch.zeros(3, 2)), expected)
        assert patch.alpha == 1.0
        assert patch.rank == 2

    def test_delta_of_others_written_out(self):
        """The formulas of the papers in the plainest words, for a linear layer and a convolution."""
        for weight in (torch.randn(8, 12), torch.randn(8, 12, 3, 3)):
            f = fields_of("LoHa", weight)
            expected = (f["hada_w1_a"] @ f["hada_w1_b"]) * (f["hada_w2_a"] @ f["hada_w2_b"])
            torch.testing.assert_close(build_delta(f).delta(weight), expected.reshape(weight.shape))
            f = fields_of("LoKr", weight)
            w2 = (f["lokr_w2_a"] @ f["lokr_w2_b"]).reshape(2, 3, *weight.shape[2:])
            expected = torch.stack(
                [torch.cat([f["lokr_w1"][i, j] * w2 for j in range(4)], dim=1) for i in range(4)]
            ).flatten(0, 1)
            torch.testing.assert_close(build_delta(f).delta(weight), expected)
            f = fields_of("DoRA", weight)
            changed = weight + build_delta({k: v for k, v in f.items() if k != "dora_scale"}).delta(weight)
            rows = [m * row / row.square().sum().sqrt() for m, row in zip(f["dora_scale"], changed)]
            torch.testing.assert_close(weight + build_delta(f).delta(weight), torch.stack(rows), rtol=1e-5, atol=1e-5)
        f = fields_of("Tucker", weight)
        expected = torch.einsum("nmkl,in,mj->ijkl", f["lora_mid"], f["lora_up"][..., 0, 0], f["lora_down"][..., 0, 0])
        torch.testing.assert_close(build_delta(f).delta(weight), expected)

    @pytest.mark.parametrize("kind", KINDS)
    def test_norm(self, kind):
        weight = torch.randn(12, 8, 3, 3)
        patch = build_delta(fields_of(kind, weight), scale=-0.5)
        assert patch.norm(weight) == pytest.approx(patch.delta(weight).norm().item(), rel=1e-5)

    def test_incomplete_fields(self):
        for fields in (["lora_down"], ["hada_w1_a", "hada_w1_b"], ["lokr_w1"], ["lora_down", "lora_up", "diff"], []):
            with pytest.raises(ValueError, match="alone"):
                build_delta({field: torch.ones(1, 1) for field in fields})

    def test_half_precision_base(self):
        """fp32 in the patch, the layer's dtype in and out, and no further from exact than rounding its weights is."""
        layer, x = layers()["linear"]
        network = nn.Sequential(layer).bfloat16()
        patch = build_delta(fields_of("LoRA", layer.weight))
        inject(network, "a", {"0": patch})
        half = network(x.bfloat16())
        assert half.dtype == torch.bfloat16
        assert patch.lora_down.dtype == torch.float32
        assert relative_error(half, network.float()(x)) < 2**-7  # bf16 has 8 bits


def random_patches(network: nn.Module, kinds: list[str], seed: int) -> dict:
    torch.manual_seed(seed)
    patches = {}
    for i, (path, layer) in enumerate(patchable_layers(network).items()):
        if isinstance(layer, (nn.Linear, nn.Conv2d)) and layer.weight.shape[0] % 4 == 0 == layer.weight.shape[1] % 4:
            fields = fields_of(kinds[i % len(kinds)], layer.weight)
            if layer.bias is None:
                fields.pop("diff_b", None)
            patches[path] = build_delta(fields, 0.1)
    return patches


@pytest.fixture
def unet():
    return networks_of(SMALL)[0]


@pytest.fixture
def inputs():
    torch.manual_seed(3)
    return torch.randn(1, 4, 8, 8), torch.tensor([500]), torch.randn(1, 7, 64)


class TestNetwork:
    def test_in_and_out_without_a_trace(self, unet, inputs):
        """All kinds at once: same bits, keys, repr, parameter objects and output afterwards."""
        text, before = repr(unet), {key: tensor.clone() for key, tensor in unet.state_dict().items()}
        parameters, output = dict(unet.named_parameters()), unet(*inputs)
        patches = random_patches(unet, KINDS, 1)
        inject(unet, "a", patches)
        assert relative_error(unet(*inputs), output) > 0.01
        assert unet.state_dict().keys() > before.keys()  # the base's own keys never change
        assert eject(unet, "a") == patches
        assert repr(unet) == text
        assert unet.state_dict().keys() == before.keys()
        assert all(torch.equal(before[key], tensor) for key, tensor in unet.state_dict().items())
        assert all(parameter is parameters[name] for name, parameter in unet.named_parameters())
        assert torch.equal(unet(*inputs), output)

    def test_several_add_up(self, unet):
        layer = unet.get_submodule("time_embed.2")
        x = torch.randn(2, layer.in_features)
        expected = layer(x)
        for name, strength in (("a", 0.3), ("b", -1.2)):
            patches = random_patches(unet, ["LoRA"], ord(name))
            expected = expected + strength * x @ patches["time_embed.2"].delta(layer.weight).T
            inject(unet, name, patches, strength)
        assert relative_error(layer(x), expected) < 1e-6  # the order of sums
        assert adapter_names(unet) == ["a", "b"]
        eject(unet, "a")
        assert adapter_names(unet) == ["b"]
        assert isinstance(layer, PatchedLinear)
        eject(unet, "b")
        assert patched_layers(unet) == {}

    def test_strength_zero_is_the_base(self, unet, inputs):
        output = unet(*inputs)
        inject(unet, "a", random_patches(unet, KINDS, 1), 0.0)
        assert torch.equal(unet(*inputs), output)
        set_strength(unet, "a", 1.0)
        assert not torch.equal(unet(*inputs), output)

    def test_merge_and_back(self, unet, inputs):
        plain = copy.deepcopy(unet)
        inject(unet, "a", random_patches(unet, KINDS, 1), 0.5)
        inject(unet, "b", random_patches(unet, ["LoRA"], 2), 0.5)
        patched, state = unet(*inputs), {key: tensor.clone() for key, tensor in unet.state_dict().items()}
        kept = merge_adapters(unet)
        assert repr(unet) == repr(plain)
        assert unet.state_dict().keys() == plain.state_dict().keys()
        assert relative_error(unet(*inputs), patched) < 1e-5  # other sums in 30 layers
        unmerge_adapters(unet, kept)
        assert torch.equal(unet(*inputs), patched)
        assert unet.state_dict().keys() == state.keys()
        assert all(torch.equal(state[key], tensor) for key, tensor in unet.state_dict().items())

    def test_merge_rounds_once(self, unet):
        """In bf16 the merged weight is the nearest one to the exact sum."""
        unet.bfloat16()
        for name in ("a", "b"):
            inject(unet, name, random_patches(unet, ["LoRA"], ord(name)), 0.3)
        layer = unet.get_submodule("time_embed.0")
        exact = layer.weight.float() + sum(0.3 * patch.delta(layer.weight) for patch in layer.deltas)
        merge_adapters(unet)
        assert torch.equal(layer.weight, exact.bfloat16())

    def test_one_training_step_moves_only_the_patch(self, unet, inputs):
        """A fresh LoRA changes nothing; after a step its `up` has moved, and no bit of the base."""
        before = {key: tensor.clone() for key, tensor in unet.state_dict().items()}
        output = unet(*inputs)
        generator = torch.Generator().manual_seed(0)
        paths = [path for path in patchable_layers(unet) if path.endswith(("to_k", "to_v", "in_layers.2"))]
        fresh = {path: LoRA.initialize(unet.get_submodule(path), 2, 1.0, generator) for path in paths}
        inject(unet, "new", fresh)
        assert torch.equal(unet(*inputs), output)
        parameters = [parameter for parameter in unet.parameters() if parameter.requires_grad]
        assert len(parameters) == 2 * len(fresh)
        optimizer = torch.optim.SGD(parameters, lr=0.1)
        unet(*inputs).square().mean().backward()
        optimizer.step()
        assert all(patch.lora_up.any() for patch in fresh.values())
        assert not torch.equal(unet(*inputs), output)
        eject(unet, "new")
        assert all(torch.equal(before[key], tensor) for key, tensor in unet.state_dict().items())

    def test_fresh_is_as_wide_as_a_linear_layer(self):
        """down ~ U(±1/sqrt(fan in)), so its standard deviation is that over sqrt(3)."""
        patch = LoRA.initialize(nn.Conv2d(64, 8, 3), 16, 4.0, torch.Generator().manual_seed(0))
        assert patch.lora_down.shape == (16, 64, 3, 3)
        assert patch.lora_down.abs().max() <= 1 / 24
        assert patch.lora_down.std().item() == pytest.approx(1 / 24 / 3**0.5, rel=0.03)  # 9,216 draws
        assert patch.scale == 0.25

    def test_name_in_use(self, unet):
        patches = random_patches(unet, ["LoRA"], 1)
        inject(unet, "a", patches)
        with pytest.raises(UserError, match="loaded already"):
            inject(unet, "a", random_patches(unet, ["LoRA"], 2))
        assert deltas_of(unet, "a") == patches

    def test_dora_strength_is_a_straight_line(self):
        weight = torch.randn(6, 4)
        patch = build_delta(fields_of("DoRA", weight))
        assert isinstance(patch, DoRA)
        layer = nn.Linear(4, 6, bias=False)
        layer.weight.data = weight
        network, x = nn.Sequential(layer), torch.randn(3, 4)
        inject(network, "a", {"0": patch})
        ends = {}
        for strength in (0.0, 0.5, 1.0):
            set_strength(network, "a", strength)
            ends[strength] = network(x)
        torch.testing.assert_close(ends[0.5], (ends[0.0] + ends[1.0]) / 2, rtol=1e-5, atol=1e-5)
