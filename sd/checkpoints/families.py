"""Recognizes the family and the kind of a model by the names of its tensors.

File names say little about what a file holds. A reader that is given another kind of model than its own names that kind
in its error message.
"""

import re
from collections.abc import Iterable
from typing import Any

from torch import Tensor

from sd.checkpoints.pickles.objects import ScriptObject

PEFT_CONFIG = "adapter_config.json"

EMBEDDING_NAMES = ("learned_embeds.safetensors", "learned_embeds.bin")  # in a folder that diffusers made

T2I_ADAPTER = "a T2I-Adapter"
IP_ADAPTER = "an IP-Adapter"
ENCODER = "a CLIP with its image encoder"
UNET, VAE, CLIP = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer."
VERSIONS = [  # whole checkpoints, by how any key begins
    (r"conditioner\.embedders\.1\.", "Stable Diffusion XL"),
    (r"conditioner\.embedders\.0\.model\.", "a Stable Diffusion XL refiner"),
    (r"conditioner\.embedders\.", "Stable Diffusion XL"),
    (r"cond_stage_model\.model\.", "Stable Diffusion 2"),
    (r"(model\.diffusion_model\.)?joint_blocks\.|transformer_blocks\.\d+\.attn\.add_q_proj\.", "Stable Diffusion 3"),
    (r"(model\.diffusion_model\.)?(double_blocks|single_blocks|single_transformer_blocks)\.", "Flux"),
    (r"(model\.diffusion_model\.)?(y_embedder\.y_embedding|adaln_single\.)", "PixArt"),
    (r"(model\.diffusion_model\.)?(clip_txt_mapper|effnet_mapper)\.", "Stable Cascade"),
    (r"vquantizer\.", "the stage A of Stable Cascade"),
    (r"(model\.diffusion_model\.)?double_layers\.", "AuraFlow"),
    (r"(model\.diffusion_model\.)?mlp_t5\.", "Hunyuan-DiT"),
]
PARTS = [  # all others
    (r"control_model\.|controlnet_|input_hint_block\.", "a ControlNet"),
    (r"lllite_", "ControlNet-LLLite, which is for Stable Diffusion XL"),
    (r"image_proj(\.|$)|ip_adapter(\.|$)", IP_ADAPTER),
    (r"lora_(unet|te\d?)_|(unet|text_encoder):\d+:|.*[._](lora[._]\w|hada_w|lokr_w)", "a LoRA"),
    (r"lycoris_|.*\.(dora_scale|oft_blocks|oft_diag|on_input)$|bundle_emb\.", "a LoRA"),
    (r"string_to_(token|param)$|emb_params$|clip_[lg]$", "a textual inversion embedding"),
    (r".*motion_modules\.", "a motion module of AnimateDiff"),
    (r"(adapter\.)?body\.\d+\.((resnets|body)\.\d+\.)?block[12]\.|adapter\.conv_in\.", T2I_ADAPTER),
    (r"style_embedding$|transformer_layes\.", "a style adapter, which reads no control image"),
    (r"conv_first\.|model\.1\.sub\.\d+\.|RRDB_trunk\.|layers\.\d+\.residual_group\.", "an upscaler"),
    (r"params(_ema)?$", "an upscaler"),
    (r"(taesd_)?(encoder\.|decoder\.)?(layers\.)?\d+\.conv\.\d+\.", "TAESD, the small autoencoder"),
    (r"input_blocks\.|down_blocks\.", "a U-Net alone"),
    (r"(vae\.|first_stage_model\.)?(encoder|decoder)\.(conv_in|conv_out)\.", "a VAE alone"),
    (r"(.*\.)?(vision_model|visual)\.|visual_projection\.", ENCODER),
    (r"(.*\.)?(text_model\.|embeddings\.token_embedding\.|transformer\.resblocks\.)", "a text encoder alone"),
    (r"(encoder|decoder)\.block\.\d+\.layer\.|(.*\.)?encoder\.block\.\d+\.layer\.", "a T5 text encoder"),
]
KINDS = [  # how the description of a file begins, and the kind of model that it is
    ("a LoRA", "LoRA"),
    ("a textual inversion embedding", "embedding"),
    ("a VAE alone", "VAE"),
    ("a ControlNet", "ControlNet"),
    (T2I_ADAPTER, "ControlNet"),
    (IP_ADAPTER, "ControlNet"),
    (ENCODER, "image encoder"),
    ("an upscaler", "upscaler"),
]
EMBEDDING_WIDTHS = {768, 1024, 1280}  # of Stable Diffusion 1, 2 and XL
VIT_H = (1024, 1280)  # the shape of its projection
MOST_VECTORS = 10  # the most tensors in a file that holds nothing but embeddings
CHANNELS = {
    5: "with a depth map",
    7: "an upscaler",
    9: "for inpainting",
}  # a U-Net's inputs beside the latent, by its channels


def describe_contents(content: Any) -> str | None:
    """Describes weights in a few words; None for a Stable Diffusion 1.x checkpoint, or where they are unknown."""
    if isinstance(content, list) and content and all(isinstance(value, Tensor) for value in content):
        return describe_list(content)
    if isinstance(content, ScriptObject):
        return "a TorchScript program, such as OpenAI's CLIP"
    if not isinstance(content, dict):
        return "a file without weights"
    if is_hypernetwork(content):
        return "a hypernetwork"
    keys = [str(key) for key in content]
    if what := match_first(VERSIONS, keys):
        return what + describe_variant(content)
    has_unet = any(key.startswith(UNET) for key in keys)
    if what := match_first(PARTS[:1] if has_unet else PARTS, keys):
        return what
    tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        return "a file without weights"
    return "a textual inversion embedding" if are_embeddings(tensors) else None


def describe_list(tensors: list[Tensor]) -> str:
    """Describes a list of tensors: cloneofsimo's .pt is a LoRA as [up, down, ...], whose widths show its model."""
    widths = {tensor.shape[-1] for tensor in tensors[1::2] if tensor.dim() > 1}
    if 768 not in widths:
        if 2048 in widths:
            return "a LoRA for Stable Diffusion XL"
        if 1024 in widths:
            return "a LoRA for Stable Diffusion 2"
    return "a LoRA"


def is_hypernetwork(content: dict) -> bool:
    """Returns whether this is the webui's format: pairs of small networks by the width of the layer they change."""
    return any(isinstance(key, int) and isinstance(value, (list, tuple)) for key, value in content.items()) or any(
        re.match(r"(320|640|768|1024|1280)\.[01]\.linear", str(key)) for key in content
    )


def channels_of(content: dict) -> int:
    """Returns the number of input channels of a checkpoint's U-Net."""
    weight = content.get(UNET + "input_blocks.0.0.weight")
    return weight.shape[1] if isinstance(weight, Tensor) and weight.dim() == 4 else 4


def describe_variant(content: dict) -> str:
    """Describes a U-Net's inputs beside the latent, in words that follow the family's name."""
    channels = channels_of(content)
    return f", {CHANNELS[channels]}" if channels in CHANNELS else ""


def match_first(table: list[tuple[str, str]], keys: Iterable[str]) -> str | None:
    return next((what for pattern, what in table if any(map(re.compile(pattern).match, keys))), None)


def are_embeddings(tensors: dict[str, Tensor]) -> bool:
    """Returns whether the tensors are a few embeddings, each a table of vectors under its token."""
    return len(tensors) < MOST_VECTORS and all(
        0 < tensor.dim() <= 2
        and tensor.is_floating_point()
        and (tensor.shape[-1] in EMBEDDING_WIDTHS or ("." not in word and is_width(tensor.shape[-1])))
        for word, tensor in tensors.items()
    )


def is_width(size: int) -> bool:
    """Returns whether a text encoder may have that width: its attention heads have 64 channels."""
    return size > 0 and size % 64 == 0


def kind_of(content: Any) -> tuple[str, str]:
    """Returns (kind, description). The kind is that of `Content`."""
    while isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    keys = {str(key): value for key, value in content.items()} if isinstance(content, dict) else {}
    what = describe_contents(content)
    if what is None and any(key.startswith(UNET) for key in keys):
        if not any(key.startswith(CLIP) for key in keys):
            return "other", "a U-Net without its text encoder"
        return describe_checkpoint(channels_of(keys))
    if what is None or what == "a file without weights":
        return "", what or "a file of an unknown kind"
    if what == ENCODER and not is_vit_h(keys):
        return "other", what
    return next((kind for beginning, kind in KINDS if what.startswith(beginning)), "other"), what


def is_vit_h(tensors: dict[str, Any]) -> bool:
    """Returns whether a CLIP in transformers' layout has the image encoder of IP-Adapters, OpenCLIP's ViT-H/14."""
    weight = tensors.get("visual_projection.weight")
    return isinstance(weight, Tensor) and weight.shape == VIT_H


def describe_checkpoint(channels: object) -> tuple[str, str]:
    """Returns what `kind_of` does for a Stable Diffusion 1.x model, by the number of its U-Net's input channels."""
    if channels in (4, 9):
        return "checkpoint", "a checkpoint" if channels == 4 else "a checkpoint for inpainting"
    return "other", unsupported_unet(channels)


def unsupported_unet(channels: object) -> str:
    """Describes a U-Net that takes neither 4 channels nor the 9 of inpainting."""
    if channels == 8:
        return "an instruct-pix2pix model, whose U-Net takes 8 channels"
    return f"a model whose U-Net takes {channels} channels, neither 4 nor the 9 of inpainting"
