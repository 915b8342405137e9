"""ControlNet and the U-Net under its control against diffusers, with the same random weights."""

import pytest
import torch
from conftest import UNET
from diffusers import ControlNetModel as PeerControlNet
from reference_models import peer_unet, randomize, relative_error
from safetensors.torch import save_file

from sd.checkpoints.diffusers_keys import unet_to_diffusers
from sd.control.controlled_unet import Control, ControlledUNet
from sd.control.controlnet import ControlNetModel, controlnet_from_unet
from sd.control.controlnet_files import PREFIX, controlnet_names, load_controlnet, read_controlnet, save_controlnet
from sd.denoiser import Guidance
from sd.unet import UNetModel
from sd.utils.errors import UserError

CONFIG = dict(UNET, in_channels=4, out_channels=4, num_heads=8)
# fp32 sums in another order: 1e-6 was seen.
CLOSE = 1e-5


@pytest.fixture(scope="module")
def unet():
    return randomize(UNetModel(**UNET), seed=3)


@pytest.fixture(scope="module")
def networks():
    return [randomize(ControlNetModel(**UNET), seed=seed) for seed in (11, 12)]


def diffusers_state(network):
    names = controlnet_names(network.state_dict())
    return {names[key]: tensor.clone() for key, tensor in network.state_dict().items()}


def peer_control(network):
    peer = PeerControlNet(
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        attention_head_dim=8,
        cross_attention_dim=64,
    )
    peer.load_state_dict(diffusers_state(network), strict=True)
    return peer.eval()


def inputs(batch=2, height=8, width=10):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, 4, height, width, generator=generator)
    context = torch.randn(batch, 77, 64, generator=generator)
    hint = torch.rand(1, 3, 8 * height, 8 * width, generator=generator)
    return x, torch.full((batch,), 501.0), context, hint


def control_of(network, hint, **more):
    return Control(network, network.embed_hint(hint), **more)


def test_a_large_hint_is_embedded_in_tiles_as_in_one_piece(networks, monkeypatch):
    """The sums are the same; convolutions of other shapes may order them differently. A smaller margin is too small."""
    hint = torch.rand(1, 3, 8 * 21, 8 * 34, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        whole = networks[0].embed_hint(hint)
        monkeypatch.setattr("sd.control.controlnet.WHOLE_UP_TO", 0)
        monkeypatch.setattr("sd.control.controlnet.HINT_TILE", 8)
        assert relative_error(networks[0].embed_hint(hint), whole) < CLOSE
        monkeypatch.setattr("sd.control.controlnet.HINT_MARGIN", 2)
        assert relative_error(networks[0].embed_hint(hint), whole) > 10 * CLOSE


@torch.no_grad()
def peers_answer(unet, networks, x, t, context, hint, weights, guess=False):
    """What diffusers' U-Net gives with the sums of its ControlNets; in guess mode only the second row has a prompt."""
    whole = None
    rows = slice(len(x) // 2, None) if guess else slice(None)
    for network, weight in zip(networks, weights):
        down, middle = peer_control(network)(
            *(x[rows], t[rows], context[rows], hint), weight, guess_mode=guess, return_dict=False
        )
        if guess:
            down = [torch.cat([torch.zeros_like(one), one]) for one in down]
            middle = torch.cat([torch.zeros_like(middle), middle])
        whole = (down, middle) if whole is None else ([a + b for a, b in zip(whole[0], down)], whole[1] + middle)
    peer = peer_unet(unet, unet_to_diffusers, **UNET)
    return peer(
        *(x, t, context), down_block_additional_residuals=whole[0], mid_block_additional_residual=whole[1]
    ).sample


@pytest.mark.parametrize("count", [1, 2])
@torch.no_grad()
def test_one_and_two_are_diffusers(unet, networks, count):
    x, t, context, hint = inputs()
    weights = [0.8, 1.3][:count]
    controls = [control_of(one, hint, weight=weight) for one, weight in zip(networks, weights)]
    ours = ControlledUNet(unet, controls, batch=2)(x, t, context)
    theirs = peers_answer(unet, networks[:count], x, t, context, hint, weights)
    assert relative_error(ours, theirs) < CLOSE
    assert relative_error(ours, unet(x, t, context)) > 0.05, "the control does nothing, so the test tests nothing."


@torch.no_grad()
def test_control_matters_more_is_diffusers_guess_mode(unet, networks):
    x, t, context, hint = inputs()
    ours = ControlledUNet(unet, [control_of(networks[0], hint, mode="control")], batch=1)(x, t, context)
    assert relative_error(ours, peers_answer(unet, networks[:1], x, t, context, hint, [1.0], guess=True)) < CLOSE
    assert torch.equal(ours[:1], ControlledUNet(unet, [], batch=1)(x, t, context)[:1])


@torch.no_grad()
def test_prompt_matters_more_weakens_the_fine_outputs_to_a_tenth(networks):
    x, t, context, hint = inputs()
    plain, weaker = (
        control_of(networks[0], hint, mode=mode).outputs(x, t, context, 1) for mode in ("balanced", "prompt")
    )
    assert torch.equal(weaker[-1], plain[-1])
    torch.testing.assert_close(weaker[0], 0.1 * plain[0])  # rounding
    assert all(torch.allclose(one / other, (one / other).mean()) for one, other in zip(weaker, plain))


@torch.no_grad()
def test_an_untrained_copy_changes_nothing(unet):
    x, t, context, hint = inputs()
    fresh = controlnet_from_unet(unet, CONFIG)
    assert torch.equal(fresh.input_blocks[1][0].in_layers[2].weight, unet.input_blocks[1][0].in_layers[2].weight)
    assert torch.equal(ControlledUNet(unet, [control_of(fresh, hint)], batch=2)(x, t, context), unet(x, t, context))


@pytest.mark.parametrize(
    ("start", "end", "active"), [(0, 1, [999, 500, 0]), (0.5, 1, [499, 0]), (0, 0.5, [999, 500]), (0.2, 0.6, [700])]
)
@torch.no_grad()
def test_it_works_between_start_and_end_only(unet, networks, start, end, active):
    x, _, context, hint = inputs()
    controlled = ControlledUNet(unet, [control_of(networks[0], hint, start=start, end=end)], batch=2)
    for time in (999, 700, 500, 499, 0):
        t = torch.full((2,), float(time))
        same = torch.equal(controlled(x, t, context), unet(x, t, context))
        if (start, end) != (0, 1):
            assert same == (not (1 - end) * 999 <= time <= (1 - start) * 999), time
        assert same != (time in active) or time not in active


@torch.no_grad()
def test_global_pooling_gives_every_position_the_mean(networks):
    x, t, context, hint = inputs()
    plain, pooled = (control_of(networks[0], hint, global_pool=on).outputs(x, t, context, 0) for on in (False, True))
    torch.testing.assert_close(pooled[3].squeeze(), plain[3].mean(dim=(2, 3)))  # rounding


@torch.no_grad()
def test_guidance_controls_both_rows_or_one(unet, networks):
    """Without guidance the one row has the prompt and is controlled in every mode."""
    x, _, context, hint = inputs(batch=1)
    for mode in ("balanced", "control"):
        controlled = ControlledUNet(unet, [control_of(networks[0], hint, mode=mode)], batch=1)
        alone = Guidance(controlled, context, context, 1.0)(x, 2.0)
        assert not torch.equal(alone, Guidance(unet, context, context, 1.0)(x, 2.0))


@torch.no_grad()
def test_an_inpainting_unet_is_controlled_by_the_latent_alone(networks):
    x, t, context, hint = inputs()
    unet = randomize(UNetModel(**UNET | {"in_channels": 9}), seed=4)
    nine = torch.cat([x, torch.randn(2, 5, *x.shape[2:])], dim=1)
    control = control_of(networks[0], hint)
    ControlledUNet(unet, [control], batch=2)(nine, t, context)
    assert torch.equal(control.outputs(nine[:, :4], t, context, 0)[0], control.outputs(x, t, context, 0)[0])


# Files


def layouts(network, unet):
    state = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    base = unet.state_dict()
    differences = {key: tensor - base[key] if key in base else tensor for key, tensor in state.items()}
    return {
        "original": {PREFIX + key: tensor for key, tensor in state.items()},
        "bare": state,
        "diffusers": diffusers_state(network),
        "difference": {PREFIX + key: tensor for key, tensor in differences.items()} | {"difference": torch.zeros(0)},
        "whole": {PREFIX + key: tensor for key, tensor in state.items()}
        | {f"model.diffusion_model.{key}": tensor.clone() for key, tensor in base.items()},
    }


@pytest.mark.parametrize("layout", ["original", "bare", "diffusers", "difference", "whole"])
def test_a_file_of_any_layout_is_the_network(tmp_path, unet, networks, layout):
    path = tmp_path / "x.safetensors"
    save_file(layouts(networks[0], unet)[layout], path)
    loaded = load_controlnet(path, unet, CONFIG).network
    expected = networks[0].state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    for key, tensor in loaded.state_dict().items():  # a difference was rounded once
        torch.testing.assert_close(tensor, expected[key], rtol=0, atol=1e-6 if layout == "difference" else 0)


def test_a_torch_file_with_a_state_dict(tmp_path, unet, networks):
    torch.save({"state_dict": layouts(networks[0], unet)["original"]}, tmp_path / "x.pth")
    loaded = load_controlnet(tmp_path / "x.pth", unet, CONFIG)
    assert torch.equal(loaded.network.zero_convs[1][0].weight, networks[0].zero_convs[1][0].weight)


def test_a_diffusers_folder_names_the_pooling(tmp_path, unet, networks):
    peer = peer_control(networks[0])
    peer.register_to_config(global_pool_conditions=True)
    peer.save_pretrained(tmp_path / "x")
    loaded = load_controlnet(tmp_path / "x", unet, CONFIG)
    assert loaded.global_pool
    assert torch.equal(loaded.network.middle_block_out[0].weight, networks[0].middle_block_out[0].weight)


def test_saved_and_read_again(tmp_path, networks):
    save_controlnet(tmp_path / "x.safetensors", networks[0], {})
    tensors = read_controlnet(tmp_path / "x.safetensors").tensors
    assert all(torch.equal(tensors[key], tensor) for key, tensor in networks[0].state_dict().items())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: {"lora_unet_x.lora_down.weight": torch.zeros(4, 8)}, "is a LoRA"),
        (lambda s: s | {PREFIX + "input_blocks.1.1.attn2.to_k.weight": torch.zeros(8, 1024)}, "for Stable Diffusion 2"),
        (lambda s: s | {PREFIX + "input_blocks.1.1.attn2.to_k.weight": torch.zeros(8, 2048)}, "Stable Diffusion XL"),
        (lambda s: s | {PREFIX + "label_emb.0.0.weight": torch.zeros(8)}, "for another family"),
        (lambda s: s | {"task_embedding": torch.zeros(8)}, "several tasks"),
        (lambda s: s | {PREFIX + "more.weight": torch.zeros(8)}, "does not fit"),
        (lambda s: s | {PREFIX + "time_embed.0.bias": torch.zeros(8)}, r"time_embed.0.bias differ\)"),
    ],
)
def test_what_is_no_controlnet_for_this_unet_is_refused_by_name(tmp_path, unet, networks, change, said):
    save_file(change(layouts(networks[0], unet)["original"]), tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=said):
        load_controlnet(tmp_path / "x.safetensors", unet, CONFIG)
