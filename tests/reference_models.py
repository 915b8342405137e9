"""Independent peers with our weights in them: transformers for CLIP, diffusers for the VAE and the U-Net."""

import torch
from diffusers import AutoencoderKL as PeerVAE
from diffusers import UNet2DConditionModel as PeerUNet
from transformers import CLIPTextConfig
from transformers import CLIPTextModel as PeerText

TINY = {
    "unet": dict(model_channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_levels=(1,), context_dim=64),
    "vae": dict(channels=32, channel_mult=(1, 2), num_res_blocks=1),
    "clip": dict(width=64, layers=3, heads=4),
}


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """|ours - theirs| / |theirs|, in the 2-norm over everything."""
    ours, theirs = ours.double(), theirs.double()
    return ((ours - theirs).norm() / theirs.norm()).item()


def randomize(module: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Weights that leave no parameter at 0 or 1, so that a forgotten bias or norm shows."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() > 1:
            parameter.data = noise / parameter[0].numel() ** 0.5
        else:
            parameter.data = parameter.data.round() + 0.1 * noise  # norms' weights stay near 1, biases near 0
    return module.eval()


def peer_text(ours, **sizes) -> PeerText:
    defaults = dict(width=768, layers=12, heads=12) | sizes
    config = CLIPTextConfig(
        hidden_size=defaults["width"],
        intermediate_size=4 * defaults["width"],
        num_hidden_layers=defaults["layers"],
        num_attention_heads=defaults["heads"],
        hidden_act="quick_gelu",
        projection_dim=64,
    )
    peer = PeerText(config).eval()
    state = ours.state_dict()
    if any(key.startswith("text_model.") for key in peer.state_dict()):
        state = {f"text_model.{key}": value for key, value in state.items()}
    missing, unexpected = peer.load_state_dict(state, strict=False)
    assert not unexpected
    assert all("position_ids" in key for key in missing)
    return peer


def peer_unet(ours, unet_to_diffusers, **sizes) -> PeerUNet:
    """unet_to_diffusers: our state dict to diffusers' names."""
    s = dict(model_channels=320, channel_mult=(1, 2, 4, 4), num_res_blocks=2, attention_levels=(0, 1, 2), num_heads=8)
    s |= dict(in_channels=4, out_channels=4, context_dim=768) | sizes
    levels = range(len(s["channel_mult"]))
    with torch.device("meta"):
        peer = PeerUNet(
            in_channels=s["in_channels"],
            out_channels=s["out_channels"],
            block_out_channels=[s["model_channels"] * mult for mult in s["channel_mult"]],
            layers_per_block=s["num_res_blocks"],
            down_block_types=["CrossAttnDownBlock2D" if i in s["attention_levels"] else "DownBlock2D" for i in levels],
            up_block_types=["CrossAttnUpBlock2D" if i in s["attention_levels"] else "UpBlock2D" for i in levels][::-1],
            attention_head_dim=s["num_heads"],  # in SD 1 configs this says the number of heads
            cross_attention_dim=s["context_dim"],
        )
    peer.load_state_dict(unet_to_diffusers(ours.state_dict()), strict=True, assign=True)
    return peer.eval()


def peer_vae(ours, vae_to_diffusers, **sizes) -> PeerVAE:
    s = dict(channels=128, channel_mult=(1, 2, 4, 4), num_res_blocks=2, z_channels=4) | sizes
    levels = len(s["channel_mult"])
    peer = PeerVAE(
        block_out_channels=[s["channels"] * mult for mult in s["channel_mult"]],
        layers_per_block=s["num_res_blocks"],
        latent_channels=s["z_channels"],
        down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
    )
    peer.load_state_dict(vae_to_diffusers(ours.state_dict()), strict=True)
    return peer.eval()
