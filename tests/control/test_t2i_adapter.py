"""T2I-Adapter and the U-Net with it against diffusers, with the same random weights; its files."""

import pytest
import torch
from conftest import UNET
from diffusers import T2IAdapter as PeerAdapter
from reference_models import peer_unet, randomize, relative_error
from safetensors.torch import save_file

from sd.checkpoints.diffusers_keys import unet_to_diffusers
from sd.checkpoints.model_files import content_of
from sd.control.controlled_unet import AdapterControl, Control, ControlledUNet
from sd.control.controlnet import ControlNetModel
from sd.control.t2i_adapter import T2IAdapter
from sd.control.t2i_adapter_files import load_t2i_adapter
from sd.pipeline.sampling.tiled_diffusion import TiledUNet
from sd.unet import UNetModel
from sd.utils.errors import UserError

SIZES = UNET | {"attention_levels": (0,)}  # diffusers adds features within a resolution only where it has attention
CONFIG = dict(SIZES, in_channels=4, out_channels=4, num_heads=8)
WIDTHS = (32, 64)
KINDS = {"full": {}, "gray": {"in_channels": 1}, "light": {"light": True, "blocks": 4}}
# fp32 sums in another order: 1e-6 was seen.
CLOSE = 1e-5


@pytest.fixture(scope="module")
def unet():
    return randomize(UNetModel(**SIZES), seed=3)


@pytest.fixture(scope="module")
def adapters():
    return {kind: randomize(T2IAdapter(widths=WIDTHS, **more), seed=7) for kind, more in KINDS.items()}


def peer_names(network):
    """Our parameters by diffusers' names, written out level by level."""
    named, state = {}, network.state_dict()
    blocks = len(network.body) // network.levels
    for key, tensor in state.items():
        first, *rest = key.split(".")
        if first == "body" and network.light:
            name = key.replace(".body.", ".resnets.")
        elif first == "body":
            level, number = divmod(int(rest[0]), blocks)
            inner = ".".join(rest[1:])
            name = f"body.{level}.{inner}" if rest[1] == "in_conv" else f"body.{level}.resnets.{number}.{inner}"
        else:
            name = key
        named[f"adapter.{name}"] = tensor.clone()
    return named


def load_peer(network):
    peer = PeerAdapter(in_channels=network.in_channels, channels=list(WIDTHS))
    peer.load_state_dict(peer_names(network), strict=True)
    return peer.eval()


def inputs(batch=2, height=8, width=10):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, 4, height, width, generator=generator)
    context = torch.randn(batch, 77, 64, generator=generator)
    hint = torch.rand(1, 3, 8 * height, 8 * width, generator=generator)
    return x, torch.full((batch,), 501.0), context, hint


def control_of(network, hint, **more):
    return AdapterControl(network, network.embed_hint(hint), **more)


@pytest.mark.parametrize("size", [(8, 10), (9, 7)])
@pytest.mark.parametrize("kind", ["full", "gray"])
@torch.no_grad()
def test_the_features_are_diffusers(adapters, kind, size):
    network = adapters[kind]
    hint = inputs(1, *size)[-1]
    theirs = load_peer(network)(hint if network.in_channels == 3 else hint.mean(dim=1, keepdim=True))
    ours = network(network.embed_hint(hint))
    assert [one.shape for one in ours] == [one.shape for one in theirs]
    assert all(relative_error(one, other) < CLOSE for one, other in zip(ours, theirs))


@torch.no_grad()
def test_the_light_variants_features_are_diffusers():
    """Diffusers' has one resolution more than its list of widths, of the last width."""
    network = randomize(T2IAdapter(widths=(32, 64, 64), light=True, blocks=4), seed=8)
    peer = PeerAdapter(channels=[32, 64], num_res_blocks=4, adapter_type="light_adapter")
    peer.load_state_dict(peer_names(network), strict=True)
    hint = inputs()[-1]
    for one, other in zip(network(network.embed_hint(hint)), peer.eval()(hint)):
        assert relative_error(one, other) < CLOSE


def test_the_defaults_are_those_of_v1_5():
    with torch.device("meta"):
        network, peer = T2IAdapter(), PeerAdapter()
    sizes = [sum(parameter.numel() for parameter in one.parameters()) for one in (network, peer)]
    assert sizes[0] == sizes[1] == 77_369_280


@torch.no_grad()
def test_the_unet_with_one_and_two_is_diffusers(unet, adapters):
    x, t, context, hint = inputs()
    other = randomize(T2IAdapter(widths=WIDTHS), seed=9)
    peer = peer_unet(unet, unet_to_diffusers, **SIZES)
    for networks, weights in (([adapters["full"]], [0.8]), ([adapters["full"], other], [0.8, 1.3])):
        controls = [control_of(one, hint, weight=weight) for one, weight in zip(networks, weights)]
        ours = ControlledUNet(unet, controls, batch=2)(x, t, context)
        lists = [[one * weight for one in load_peer(network)(hint)] for network, weight in zip(networks, weights)]
        added = [sum(features).expand(2, -1, -1, -1) for features in zip(*lists)]
        theirs = peer(x, t, context, down_intrablock_additional_residuals=added).sample
        assert relative_error(ours, theirs) < CLOSE
        assert relative_error(ours, unet(x, t, context)) > 0.05, "the adapter does nothing, so the test tests nothing."


@torch.no_grad()
def test_an_adapter_and_a_controlnet_work_together(unet, adapters):
    x, t, context, hint = inputs()
    net = randomize(ControlNetModel(**SIZES), seed=11)
    control = Control(net, net.embed_hint(hint))
    both = ControlledUNet(unet, [control, control_of(adapters["full"], hint)], batch=2)(x, t, context)
    alone = ControlledUNet(unet, [control], batch=2)(x, t, context)
    nothing = ControlledUNet(unet, [control, control_of(adapters["full"], hint, weight=0.0)], batch=2)(x, t, context)
    assert torch.equal(alone, nothing)
    assert not torch.allclose(both, alone)


@torch.no_grad()
def test_modes_and_intervals(unet, adapters):
    x, t, context, hint = inputs()
    plain = ControlledUNet(unet, [], batch=1)(x, t, context)
    matters = ControlledUNet(unet, [control_of(adapters["full"], hint, mode="control")], batch=1)(x, t, context)
    torch.testing.assert_close(matters[:1], plain[:1])  # the row without a prompt; rounding
    assert not torch.allclose(matters[1:], plain[1:])
    soft = control_of(adapters["full"], hint, mode="prompt").additions(2, 1)
    full = control_of(adapters["full"], hint).additions(2, 1)
    torch.testing.assert_close(soft, [full[0] * 0.825, full[1]])
    assert torch.equal(
        ControlledUNet(unet, [control_of(adapters["full"], hint, start=0.6)], batch=1)(x, t, context), plain
    )


@torch.no_grad()
def test_each_window_of_tiled_diffusion_has_its_part(unet, adapters):
    x, t, context, hint = inputs(height=8, width=16)
    control = control_of(adapters["full"], hint)
    tiled = TiledUNet(unet, 8, 0.0, [control], batch=2)(x, t, context)
    right = control_of(adapters["full"], hint[..., 64:])
    torch.testing.assert_close(
        tiled[..., 8:], ControlledUNet(unet, [right], batch=2)(x[..., 8:], t, context)
    )  # rounding


# Files


LAYOUTS = [(layout, kind) for layout in ("original", "diffusers", "folder", "pth") for kind in KINDS]


@pytest.mark.parametrize(("layout", "kind"), [one for one in LAYOUTS if one != ("folder", "light")])
def test_a_file_of_any_layout_is_the_network(tmp_path, unet, adapters, layout, kind):
    network, path = adapters[kind], tmp_path / "x.safetensors"
    state = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    if layout == "original":
        save_file(state, path)
    elif layout == "diffusers":
        save_file(peer_names(network), path)
    elif layout == "pth":
        torch.save(state, path := tmp_path / "x.pth")
    else:
        load_peer(network).save_pretrained(path := tmp_path / "folder")
    assert content_of(path).what == "a T2I-Adapter"
    assert content_of(path).kind == "ControlNet"
    loaded = load_t2i_adapter(path, unet, CONFIG).network
    expected = network.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in loaded.state_dict().items())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: {"x": torch.zeros(1)}, "is no T2I-Adapter"),
        (lambda s: s | {"conv_in.weight": torch.zeros(32, 768, 3, 3)}, "for Stable Diffusion XL"),
        (lambda s: s | {"more.weight": torch.zeros(8)}, "does not fit"),
        (lambda s: {key: one for key, one in s.items() if not key.startswith("body.3.")}, "does not fit"),
        (lambda s: s | {"body.0.block1.weight": torch.zeros(8, 8, 3, 3)}, "does not fit"),
    ],
)
def test_what_is_no_adapter_for_this_unet_is_refused_by_name(tmp_path, unet, adapters, change, said):
    state = {key: tensor.clone() for key, tensor in adapters["full"].state_dict().items()}
    save_file(change(state), tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=said):
        load_t2i_adapter(tmp_path / "x.safetensors", unet, CONFIG)
