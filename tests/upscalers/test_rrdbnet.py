"""RRDBNet against its formula on plain tensors, its files in each layout, and its tiles against the whole."""

import pytest
import torch
import torch.nn.functional as F
from reference_models import randomize
from safetensors.torch import save_file

from sd.upscalers.rrdbnet import RRDBNet, upscaled_tiles
from sd.upscalers.upscaler_files import load_upscaler
from sd.utils.errors import UserError

SMALL = dict(width=8, blocks=2, growth=4)


def network(**more):
    return randomize(RRDBNet(**SMALL | more), seed=5)


def by_formula(state, x, blocks=2, doublings=2, shrink=1):
    """ESRGAN as functions of its weights, in fp64."""
    state = {key: tensor.double() for key, tensor in state.items()}

    def conv(name, x):
        return F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], padding=1)

    def dense(name, x):
        seen = x
        for i in range(1, 5):
            seen = torch.cat([seen, F.leaky_relu(conv(f"{name}.conv{i}", seen), 0.2)], 1)
        return 0.2 * conv(f"{name}.conv5", seen) + x

    x = x.double()
    if shrink > 1:
        b, c, h, w = x.shape
        x = x.view(b, c, h // shrink, shrink, w // shrink, shrink).permute(0, 1, 3, 5, 2, 4)
        x = x.reshape(b, c * shrink**2, h // shrink, w // shrink)
    first = conv("conv_first", x)
    y = first
    for i in range(blocks):
        inner = y
        for k in (1, 2, 3):
            inner = dense(f"body.{i}.rdb{k}", inner)
        y = 0.2 * inner + y
    y = first + conv("conv_body", y)
    for i in range(1, doublings + 1):
        y = F.leaky_relu(conv(f"conv_up{i}", y.repeat_interleave(2, 2).repeat_interleave(2, 3)), 0.2)
    return conv("conv_last", F.leaky_relu(conv("conv_hr", y), 0.2))


@pytest.mark.parametrize(("doublings", "shrink"), [(2, 1), (1, 1), (2, 2), (0, 1), (3, 1)])
@torch.no_grad()
def test_it_is_its_formula(doublings, shrink):
    net = network(doublings=doublings, shrink=shrink)
    x = torch.rand(1, 3, 6, 10, generator=torch.Generator().manual_seed(0))
    expected = by_formula(net.state_dict(), x, doublings=doublings, shrink=shrink)
    assert net(x).shape[-1] == 10 * 2**doublings // shrink == 10 * net.scale
    torch.testing.assert_close(net(x).double(), expected, rtol=1e-4, atol=1e-5)  # fp32 against fp64


def test_the_full_size_has_the_published_number_of_parameters():
    with torch.device("meta"):
        assert sum(tensor.numel() for tensor in RRDBNet().parameters()) == 16_697_987


def old_names(state, blocks=2, doublings=2):
    outer = {"conv_first": 0} | {f"conv_up{i + 1}": 3 + 3 * i for i in range(doublings)}
    end = 3 * doublings + 2
    outer |= {"conv_hr": end, "conv_last": end + 2}
    renamed = {}
    for key, tensor in state.items():
        first, *rest = key.split(".")
        if first == "body":
            number, dense, conv, kind = rest
            renamed[f"model.1.sub.{number}.{dense.upper()}.{conv}.0.{kind}"] = tensor
        elif first == "conv_body":
            renamed[f"model.1.sub.{blocks}.{rest[0]}"] = tensor
        else:
            renamed[f"model.{outer[first]}.{rest[0]}"] = tensor
    return renamed


def own_names(state):
    names = {"conv_body": "trunk_conv", "conv_hr": "HRconv", "body": "RRDB_trunk"}
    names |= {f"conv_up{i}": f"upconv{i}" for i in (1, 2)}
    renamed = {}
    for key, tensor in state.items():
        first, dot, rest = key.partition(".")
        renamed[names.get(first, first) + dot + rest.replace("rdb", "RDB")] = tensor
    return renamed


@pytest.mark.parametrize("doublings", [0, 1, 2])
@pytest.mark.parametrize("layout", ["new", "params", "params_ema", "old", "own", "safetensors"])
def test_a_file_of_any_layout_is_the_network(tmp_path, layout, doublings):
    net = network(doublings=doublings)
    state, path = net.state_dict(), tmp_path / "x.pth"
    if layout == "safetensors":
        path = tmp_path / "x.safetensors"
        save_file(state, path)
    else:
        content = {"old": old_names(state, doublings=doublings), "own": own_names(state), "new": state}.get(layout)
        torch.save(content if content is not None else {layout: state}, path)
    loaded = load_upscaler(path)
    assert loaded.scale == net.scale
    assert all(torch.equal(loaded.state_dict()[key], tensor) for key, tensor in state.items())


@pytest.mark.parametrize("shrink", [1, 2])
@torch.no_grad()
def test_tiles_are_the_whole_where_the_margin_is_what_the_network_sees(shrink):
    """Two blocks of 15 convolutions and 5 more see 35 positions. Shrunk by 2, the margin is 20."""
    net = network(shrink=shrink)
    image = torch.rand(1, 3, 70, 91, generator=torch.Generator().manual_seed(1))
    padded = F.pad(image, (0, -91 % shrink, 0, -70 % shrink), mode="replicate")
    whole = net(padded)[..., : 70 * net.scale, : 91 * net.scale]
    tiled = torch.full_like(whole, float("nan"))
    for rows, columns, part in upscaled_tiles(net, image, tile=32, margin=40):
        tiled[..., rows, columns] = part
    assert (tiled - whole).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: {"lora_unet_x.lora_down.weight": torch.zeros(4, 8)}, "is a LoRA"),
        (lambda s: {"params": {"body.0.weight": torch.zeros(4, 8)}}, "an upscaler of another kind"),
        (lambda s: s | {"body.0.rdb1.conv1x1.weight": torch.zeros(4, 8, 1, 1)}, "of another kind .body.0.rdb1.conv1x1"),
        (lambda s: s | {"conv_first.weight": torch.zeros(8, 4, 3, 3)}, "of another kind"),
    ],
)
def test_what_is_no_rrdbnet_is_refused(tmp_path, change, said):
    torch.save(change(network().state_dict()), tmp_path / "x.pth")
    with pytest.raises(UserError, match=said):
        load_upscaler(tmp_path / "x.pth")
