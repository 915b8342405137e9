"""Files for the small pipeline of `conftest.make_pipe`: models that fit it, with random weights."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from reference_models import TINY, randomize
from safetensors.torch import save_file

from sd.control.controlnet import ControlNetModel
from sd.control.controlnet_files import save_controlnet
from sd.control.ip_adapter.network import ImageProjection, IPAdapterModel
from sd.control.t2i_adapter import T2IAdapter
from sd.vision.clip_vision import CLIPVisionModel
from sd.vision.image_encoder import ImageEncoder


def save_lora(path: Path, seed: int = 0) -> None:
    """A LoRA of one layer, whose change is about as large as the layer."""
    generator = torch.Generator().manual_seed(seed)
    layer = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"{layer}.lora_down.weight": torch.randn(2, 64, generator=generator),
        f"{layer}.lora_up.weight": torch.randn(64, 2, generator=generator),
    }
    save_file(tensors, path)


def save_control(path: Path, seed: int = 11) -> None:
    """A ControlNet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_controlnet(path, randomize(ControlNetModel(**TINY["unet"]), seed), {})


def save_t2i_adapter(path: Path, seed: int = 13) -> None:
    """A T2I-Adapter."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(randomize(T2IAdapter(widths=(32, 64)), seed).state_dict(), path)


def save_ip_adapter(path: Path, dims: Sequence[int] = (64,) * 4, text: int = 64, seed: int = 5) -> None:
    """An IP-Adapter. dims, text: the widths of another U-Net's cross-attentions and of its text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(randomize(IPAdapterModel(ImageProjection(40, text), text, list(dims)), seed).state_dict(), path)


def save_image_encoder(folder: Path, seed: int = 6) -> None:
    """The image encoder of that IP-Adapter with its config.json, as transformers writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    vision = CLIPVisionModel(image_size=28, patch_size=14, width=48, layers=2, heads=4)
    save_file(randomize(ImageEncoder(vision, 40), seed).state_dict(), folder / "model.safetensors")
    about = {"model_type": "clip_vision_model", "num_attention_heads": 4, "hidden_act": "gelu"}
    (folder / "config.json").write_text(json.dumps(about))
