"""Files for the small pipeline of `conftest.make_pipe`: models that fit it, with random weights."""

from pathlib import Path

import torch
from safetensors.torch import save_file


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
