"""ControlNet and T2I-Adapter at v1-5's size against diffusers, with the same random weights, at 256 x 256 pixels.

By hand: python -m pytest -m slow tests/control/test_full_size.py -s, in 7 GB of memory.
"""

import pytest
import torch
from diffusers import ControlNetModel as PeerControlNet
from diffusers import T2IAdapter as PeerAdapter
from reference_models import peer_unet, randomize, relative_error

from sd.checkpoints.diffusers_keys import unet_to_diffusers
from sd.control.controlled_unet import AdapterControl, Control, ControlledUNet
from sd.control.controlnet import ControlNetModel
from sd.control.controlnet_files import controlnet_names
from sd.control.t2i_adapter import T2IAdapter
from sd.unet import UNetModel

pytestmark = pytest.mark.slow
CLOSE = 1e-5  # fp32 sums in another order
SIDE = 32  # positions of the latent: 256 pixels


def made_on_meta(network, seed):
    """Random weights without PyTorch's own initialization first, which takes a minute."""
    with torch.device("meta"):
        made = network()
    return randomize(made.to_empty(device="cpu").apply(norms_at_one), seed)


def norms_at_one(module):
    for name, parameter in module.named_parameters(recurse=False):
        if parameter.dim() == 1:
            torch.nn.init.constant_(parameter, float("norm" in type(module).__name__.lower() and name == "weight"))


@pytest.fixture(scope="module")
def unet():
    return made_on_meta(UNetModel, 3)


@pytest.fixture(scope="module")
def given():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 4, SIDE, SIDE, generator=generator)
    context = torch.randn(2, 77, 768, generator=generator)
    return x, torch.full((2,), 501.0), context, torch.rand(1, 3, 8 * SIDE, 8 * SIDE, generator=generator)


def sibling(network):
    """Another ControlNet, which shares the tensors of the encoder to save memory: the zero convolutions differ."""
    with torch.device("meta"):
        other = ControlNetModel()
    generator = torch.Generator().manual_seed(12)
    state = {
        key: torch.randn(tensor.shape, generator=generator) / 20
        if key.startswith(("zero_", "middle_block_out"))
        else tensor
        for key, tensor in network.state_dict().items()
    }
    other.load_state_dict(state, strict=True, assign=True)
    return other.eval()


def peer_control(network):
    """Diffusers' network with the very tensors of ours, which takes no further memory."""
    with torch.device("meta"):
        peer = PeerControlNet(
            cross_attention_dim=768,
            down_block_types=(*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"),
            attention_head_dim=8,
        )
    names = controlnet_names(network.state_dict())
    state = {names[key]: tensor for key, tensor in network.state_dict().items()}
    peer.load_state_dict(state, strict=True, assign=True)
    return peer.eval()


@torch.no_grad()
def residuals(networks, weights, x, t, context, hint, guess=False):
    """The sums of what diffusers' ControlNets add, as its MultiControlNetModel makes them."""
    rows = slice(1, None) if guess else slice(None)
    whole = None
    for network, weight in zip(networks, weights):
        peer = peer_control(network)
        down, middle = peer(x[rows], t[rows], context[rows], hint, weight, guess_mode=guess, return_dict=False)
        if guess:
            down, middle = ([torch.cat([torch.zeros_like(one), one]) for one in part] for part in (down, [middle]))
            (middle,) = middle
        whole = (down, middle) if whole is None else ([a + b for a, b in zip(whole[0], down)], whole[1] + middle)
    return {"down_block_additional_residuals": whole[0], "mid_block_additional_residual": whole[1]}


@torch.no_grad()
def test_controlnets_are_diffusers(unet, given):
    x, t, context, hint = given
    first = made_on_meta(ControlNetModel, 11)
    networks = [first, sibling(first)]
    peer = peer_unet(unet, unet_to_diffusers)
    plain = unet(x, t, context)
    for name, count, mode in (("one", 1, "balanced"), ("two", 2, "balanced"), ("guess mode", 1, "control")):
        weights = [0.8, 1.3][:count] if mode == "balanced" else [1.0]
        controls = [
            Control(one, one.embed_hint(hint), weight, mode=mode) for one, weight in zip(networks[:count], weights)
        ]
        ours = ControlledUNet(unet, controls, batch=1)(x, t, context)
        theirs = peer(x, t, context, **residuals(networks[:count], weights, *given, guess=mode == "control")).sample
        error = relative_error(ours, theirs)
        print(f"ControlNet, {name}: relative error {error:.1e}")
        assert error < CLOSE
        assert relative_error(ours[1:], plain[1:]) > 0.01, "the control does nothing, so the test tests nothing."


@torch.no_grad()
def test_a_t2i_adapter_is_diffusers(unet, given):
    x, t, context, hint = given
    network = made_on_meta(T2IAdapter, 7)
    with torch.device("meta"):
        adapter = PeerAdapter()
    state = {}
    for key, tensor in network.state_dict().items():
        first, number, *rest = key.split(".")
        level, place = divmod(int(number), 2) if first == "body" else (0, 0)
        inner = "in_conv" if "in_conv" in key else f"resnets.{place}"
        bare = ".".join(rest).removeprefix("in_conv.")
        state[f"adapter.body.{level}.{inner}.{bare}" if first == "body" else f"adapter.{key}"] = tensor
    adapter.load_state_dict(state, strict=True, assign=True)
    ours = ControlledUNet(unet, [AdapterControl(network, network.embed_hint(hint), 0.8)], batch=1)(x, t, context)
    features = [(one * 0.8).expand(2, -1, -1, -1) for one in adapter.eval()(hint)]
    theirs = peer_unet(unet, unet_to_diffusers)(x, t, context, down_intrablock_additional_residuals=features).sample
    error = relative_error(ours, theirs)
    print(f"T2I-Adapter: relative error {error:.1e}")
    assert error < CLOSE
    assert relative_error(ours, unet(x, t, context)) > 0.01, "the adapter does nothing, so the test tests nothing."
