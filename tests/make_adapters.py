"""Networks small enough for tests whose layers have v1-5's shapes, and adapters for them under the peers' names."""

import torch
from diffusers.loaders import StableDiffusionLoraLoaderMixin as Loader
from reference_models import TINY, peer_unet, randomize
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPTextConfig
from transformers import CLIPTextModel as PeerText

from sd.adapters.injection import deltas_of, patchable_layers
from sd.checkpoints.diffusers_keys import unet_names, unet_to_diffusers
from sd.clip import CLIPTextModel
from sd.unet import UNetModel

# v1-5's first level alone: layers of 320, 640, 1280, 2560 and 768, and 26 million parameters; few words.
WIDE = {
    "unet": dict(model_channels=320, channel_mult=(1,), num_res_blocks=1, attention_levels=(0,), context_dim=768),
    "clip": dict(width=768, layers=1, heads=12, vocab_size=100),
}
SMALL = {"unet": TINY["unet"], "clip": dict(width=64, layers=2, heads=4, vocab_size=100)}
LAYERS = (nn.Linear, nn.Conv2d)


def networks_of(sizes: dict) -> tuple[UNetModel, CLIPTextModel]:
    unet, clip = randomize(UNetModel(**sizes["unet"]), 0), randomize(CLIPTextModel(**sizes["clip"]), 1)
    return unet.requires_grad_(False), clip.requires_grad_(False)


def peers_of(sizes: dict, unet: UNetModel, clip: CLIPTextModel):
    s = sizes["clip"]
    config = CLIPTextConfig(
        hidden_size=s["width"],
        intermediate_size=4 * s["width"],
        num_hidden_layers=s["layers"],
        num_attention_heads=s["heads"],
        vocab_size=s["vocab_size"],
    )
    text = PeerText(config).eval()
    prefix = "text_model." if any(key.startswith("text_model.") for key in text.state_dict()) else ""
    text.load_state_dict({prefix + key: tensor for key, tensor in clip.state_dict().items()}, strict=False)
    return peer_unet(unet, unet_to_diffusers, **sizes["unet"]), text


def hollow(network: nn.Module) -> nn.Module:
    """A network built on `meta` gets values without memory for them: each parameter is one number, seen many times."""
    for module in network.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            one = nn.Parameter(torch.full((1,), 0.02).expand(parameter.shape), requires_grad=False)
            setattr(module, name, one)
    return network


def hollow_v15() -> tuple[UNetModel, CLIPTextModel]:
    with torch.device("meta"):
        unet, clip = UNetModel(), CLIPTextModel()
    return hollow(unet), hollow(clip)


def peer_layers(network: nn.Module, within=("attentions", "self_attn", "mlp")) -> dict[str, nn.Module]:
    """The peer's layers that kohya's LoRA is usually of, by the peer's names."""
    layers = network.named_modules()
    return {name: layer for name, layer in layers if isinstance(layer, LAYERS) and any(w in name for w in within)}


def low_rank(layer: nn.Module, rank: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """(down, up) with a ΔW about as large as W."""
    out, inputs, *kernel = layer.weight.shape
    down = torch.randn(rank, inputs, *kernel, generator=generator) / layer.weight[0].numel() ** 0.5
    return down, torch.randn(out, rank, *[1] * len(kernel), generator=generator) / rank**0.5


def kohya_tensors(unet_layers: dict, clip_layers: dict, rank=4, alpha=2.0) -> dict[str, torch.Tensor]:
    """A kohya file for layers by the peers' names; `alpha` None leaves it out."""
    generator, tensors = torch.Generator().manual_seed(0), {}
    for prefix, layers in (("lora_unet_", unet_layers), ("lora_te_", clip_layers)):
        for name, layer in layers.items():
            key = prefix + name.replace(".", "_")
            tensors[f"{key}.lora_down.weight"], tensors[f"{key}.lora_up.weight"] = low_rank(layer, rank, generator)
            if alpha is not None:
                tensors[f"{key}.alpha"] = torch.tensor(alpha)
    return tensors


def write(path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None):
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path, metadata)
    return path


def load_in_diffusers(path, unet=None, text_encoder=None) -> None:
    state, alphas, metadata = Loader.lora_state_dict(str(path), return_lora_metadata=True)
    if unet is not None:
        Loader.load_lora_into_unet(state, alphas, unet, adapter_name="default", metadata=metadata)
    if text_encoder is not None:
        Loader.load_lora_into_text_encoder(
            state, alphas, text_encoder, prefix="text_encoder", adapter_name="default", metadata=metadata
        )


def peer_deltas(network: nn.Module) -> dict[str, torch.Tensor]:
    """ΔW of every adapted layer of a peer, as peft computes it, by the peer's names."""
    return {
        name.replace("base_model.model.", "").removeprefix("text_model."): layer.get_delta_weight("default").detach()
        for name, layer in network.named_modules()
        if hasattr(layer, "get_delta_weight")
    }


def our_deltas(network: nn.Module, name: str) -> dict[str, torch.Tensor]:
    """ΔW of every layer that the adapter changes, by the peers' names."""
    layers = patchable_layers(network)
    names = unet_names(layers) if isinstance(network, UNetModel) else {path: path for path in layers}
    return {names[path]: patch.delta(layers[path].weight) for path, patch in deltas_of(network, name).items()}


def largest_error(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """max |ours - theirs| / max |theirs|, the largest of all layers; both must name the same layers."""
    assert ours.keys() == theirs.keys()
    assert ours
    errors = []
    for name, delta in theirs.items():
        assert ours[name].shape == delta.shape
        errors.append(((ours[name] - delta).abs().max() / delta.abs().max()).item())
    return max(errors)
