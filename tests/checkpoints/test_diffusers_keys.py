"""Our paths against diffusers' and transformers' own modules, on the meta device."""

import json
from pathlib import Path

import diffusers
import pytest
import torch
import transformers

from sd.checkpoints import diffusers_keys
from sd.clip import CLIPTextModel
from sd.unet import UNetModel
from sd.vae import AutoencoderKL

UNETS = [
    {},
    {"in_channels": 9},
    {"model_channels": 32, "channel_mult": (1, 2), "num_res_blocks": 1, "attention_levels": (1,), "context_dim": 64},
    {"model_channels": 32, "channel_mult": (1, 2, 3), "num_res_blocks": 3, "attention_levels": (0, 2)},
    {"model_channels": 32, "channel_mult": (1,), "num_res_blocks": 2, "attention_levels": (0,)},
    {"model_channels": 64, "channel_mult": (1, 2, 2), "num_res_blocks": 1, "attention_levels": ()},
]
VAES = [
    {},
    {"channels": 32, "channel_mult": (1, 2), "num_res_blocks": 1},
    {"channels": 32, "channel_mult": (1, 2, 2), "num_res_blocks": 3},
    {"channels": 32, "channel_mult": (1,), "num_res_blocks": 1, "z_channels": 8},
]


def diffusers_unet(in_channels=4, model_channels=320, channel_mult=(1, 2, 4, 4), num_res_blocks=2, **more):
    attention = [level in more.get("attention_levels", (0, 1, 2)) for level in range(len(channel_mult))]
    return diffusers.UNet2DConditionModel(
        in_channels=in_channels,
        block_out_channels=[mult * model_channels for mult in channel_mult],
        layers_per_block=num_res_blocks,
        down_block_types=["CrossAttnDownBlock2D" if here else "DownBlock2D" for here in attention],
        up_block_types=["CrossAttnUpBlock2D" if here else "UpBlock2D" for here in reversed(attention)],
        cross_attention_dim=more.get("context_dim", 768),
        attention_head_dim=8,
    )


def diffusers_vae(channels=128, channel_mult=(1, 2, 4, 4), num_res_blocks=2, z_channels=4):
    return diffusers.AutoencoderKL(
        block_out_channels=[mult * channels for mult in channel_mult],
        down_block_types=["DownEncoderBlock2D"] * len(channel_mult),
        up_block_types=["UpDecoderBlock2D"] * len(channel_mult),
        layers_per_block=num_res_blocks,
        latent_channels=z_channels,
    )


def shapes(state):
    return {key: tuple(tensor.shape) for key, tensor in state.items()}


def leaves(module):
    return {name: type(leaf).__name__ for name, leaf in module.named_modules() if list(leaf.parameters(recurse=False))}


@pytest.mark.parametrize("sizes", UNETS, ids=str)
def test_unet_keys_and_shapes_are_diffusers_and_come_back(sizes):
    with torch.device("meta"):
        ours, theirs = UNetModel(**sizes).state_dict(), diffusers_unet(**sizes).state_dict()
    renamed = diffusers_keys.unet_to_diffusers(ours)
    assert shapes(renamed) == shapes(theirs)
    assert shapes(diffusers_keys.unet_from_diffusers(theirs, ours)) == shapes(ours)


@pytest.mark.parametrize("sizes", VAES, ids=str)
def test_vae_keys_and_shapes_are_diffusers_and_come_back(sizes):
    with torch.device("meta"):
        ours, theirs = AutoencoderKL(**sizes).state_dict(), diffusers_vae(**sizes).state_dict()
    assert shapes(diffusers_keys.vae_to_diffusers(ours)) == shapes(theirs)
    assert shapes(diffusers_keys.vae_from_diffusers(theirs, ours)) == shapes(ours)


def test_vae_attention_of_old_diffusers_files():
    with torch.device("meta"):
        ours, theirs = AutoencoderKL().state_dict(), diffusers_vae().state_dict()
    old = {}
    for key, tensor in theirs.items():
        for now, before in [("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")]:
            key = key.replace(f"attentions.0.{now}.", f"attentions.0.{before}.")
        old[key] = tensor
    assert sum(".query." in key for key in old) == 4
    assert shapes(diffusers_keys.vae_from_diffusers(old, ours)) == shapes(ours)


@pytest.mark.parametrize("prefix", ["", "text_model."])
def test_clip_with_and_without_the_prefix(prefix):
    with torch.device("meta"):
        ours = CLIPTextModel().state_dict()
        theirs = transformers.CLIPTextModel(transformers.CLIPTextConfig(projection_dim=768)).state_dict()
    theirs = {prefix + key.removeprefix("text_model."): tensor for key, tensor in theirs.items()}
    assert set(diffusers_keys.clip_from_diffusers(theirs)) == set(ours)
    assert set(diffusers_keys.clip_to_diffusers(ours)) == {f"text_model.{key}" for key in ours}


def test_module_paths_reach_the_same_kinds_of_layer():
    """391 U-Net and 124 VAE modules, which is what LoRA files are named after."""
    with torch.device("meta"):
        unet, peer_unet, vae, peer_vae = UNetModel(), diffusers_unet(), AutoencoderKL(), diffusers_vae()
    ours, theirs = leaves(unet), leaves(peer_unet)
    table = diffusers_keys.unet_names(ours)
    assert len(table) == 391
    assert {table[path]: kind for path, kind in ours.items()} == theirs
    table = diffusers_keys.vae_names(leaves(vae))
    assert len(table) == 124
    assert set(table.values()) == set(leaves(peer_vae))


def test_containers_have_no_counterpart_or_the_right_one():
    with torch.device("meta"):
        unet, peer = UNetModel(), diffusers_unet()
    table = diffusers_keys.unet_names(name for name, _ in unet.named_modules())
    assert "" not in table
    assert "output_blocks.2.1" not in table  # an Upsample here; attention at the same place of other blocks
    assert (
        table["input_blocks.4.1.transformer_blocks.0.attn2"] == "down_blocks.1.attentions.0.transformer_blocks.0.attn2"
    )
    there = dict(peer.named_modules())
    holders = [path for path, module in unet.named_modules() if path in table and list(module.parameters())]
    assert len(holders) > 391
    assert [path for path in holders if table[path] not in there] == []


def test_all_keys_of_the_published_file():
    listing = Path(__file__).resolve().parents[3] / "shared" / "v1-5-keys.json"
    if not listing.exists():
        pytest.skip("the list of v1-5's keys is not here")
    published = {key: tuple(shape) for key, shape in json.loads(listing.read_text()).items()}
    prefix = "model.diffusion_model."
    unet = {key.removeprefix(prefix): shape for key, shape in published.items() if key.startswith(prefix)}
    with torch.device("meta"):
        assert shapes(UNetModel().state_dict()) == unet
    assert len(diffusers_keys.unet_names(unet)) == 686
