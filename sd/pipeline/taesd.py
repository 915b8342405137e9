"""TAESD, the tiny autoencoder: a latent to an approximate image and back at a fraction of the VAE's cost.

Ollin Boer Bohan, https://github.com/madebyollin/taesd. It is used for previews, and for decoding
if memory or time is short. It is two sequences of 3x3 convolutions; a layer's index in its sequence is its key in the
published files, `taesd_encoder.safetensors` and `taesd_decoder.safetensors`.

TAESD takes *scaled* latents, the `x` of the U-Net and the samplers, of standard deviation near 1. Never multiply or
divide them by `LATENT_SCALE`, which belongs to the VAE.
"""

import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from sd.checkpoints.foreign_files import reads_file
from sd.utils.errors import UserError

WIDTH = 64
NAMES = (
    "taesd_encoder.safetensors",
    "taesd_decoder.safetensors",
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.fp16.safetensors",
)
DIFFUSERS_KEY = re.compile(r"(encoder|decoder)\.layers\.(\d+)\.(.+)")


def conv(in_channels: int, out_channels: int, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, padding=1, **options)


class Block(nn.Module):
    """Three convolutions with a residual connection; (B, 64, h, w) to the same shape."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(conv(WIDTH, WIDTH), nn.ReLU(), conv(WIDTH, WIDTH), nn.ReLU(), conv(WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(x) + x)


class Clamp(nn.Module):
    """Soft clamp, 3 tanh(x / 3): limits outliers, which would otherwise cause blown-out pixels."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / 3) * 3


def blocks(count: int) -> list[nn.Module]:
    return [Block() for _ in range(count)]


def down() -> list[nn.Module]:
    return [conv(WIDTH, WIDTH, stride=2, bias=False)]


def up() -> list[nn.Module]:
    return [nn.Upsample(scale_factor=2), conv(WIDTH, WIDTH, bias=False)]


class TAESD(nn.Module):
    """The encoder and the decoder. `encoder` is None if only the decoder's weights were given."""

    downsample = 8

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            *(conv(3, WIDTH), *blocks(1)),
            *(*down(), *blocks(3)),
            *(*down(), *blocks(3)),
            *(*down(), *blocks(3)),
            conv(WIDTH, 4),
        )
        self.decoder = nn.Sequential(
            *(Clamp(), conv(4, WIDTH), nn.ReLU()),
            *(*blocks(3), *up()),
            *(*blocks(3), *up()),
            *(*blocks(3), *up()),
            *(*blocks(1), conv(WIDTH, 3)),
        )

    def encode(self, image: Tensor) -> Tensor:
        """Encodes images (B, 3, H, W) in [-1, 1] to scaled latents (B, 4, H/8, W/8)."""
        if self.encoder is None:
            raise UserError("this TAESD can only decode: put taesd_encoder.safetensors beside its decoder file.")
        return self.encoder((image + 1) / 2)  # the network's images are in [0, 1]

    def decode(self, latent: Tensor) -> Tensor:
        """Decodes scaled latents (B, 4, h, w) to images (B, 3, 8h, 8w), in [-1, 1] except for overshoot."""
        return self.decoder(latent) * 2 - 1


@reads_file
def load_taesd(path: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> TAESD:
    """Loads TAESD.

    path: either of the two published files (the other one is read too if it lies beside it), the file of a diffusers
    `AutoencoderTiny`, or a folder with either kind.
    Raises UserError for a file that is missing, unreadable, or made for another model than SD 1.x.
    """
    parts: dict[str, dict[str, Tensor]] = {}
    for file in find_files(Path(path)):
        parts |= read_part(file)
    if "decoder" not in parts:
        raise UserError(f"{path} holds no TAESD decoder: give taesd_decoder.safetensors or its folder.")
    with torch.device("meta"):
        model = TAESD()
    if "encoder" not in parts:
        model.encoder = None
    for part, tensors in parts.items():
        network = getattr(model, part)
        if tensor_shapes(tensors) != tensor_shapes(network.state_dict()):
            raise UserError(f"the {part} in {path} is not TAESD for SD 1.x, but one for another model or size.")
        network.load_state_dict(tensors, assign=True)
    return model.to(device, dtype).eval().requires_grad_(False)


def find_files(path: Path) -> list[Path]:
    """Returns the weight files at a path. Raises UserError where there are none."""
    if path.is_dir():
        found = [path / name for name in NAMES if (path / name).is_file()]
        if not found:
            raise UserError(f"the folder {path} holds no TAESD: it needs one of {', '.join(NAMES)}.")
        return found
    if not path.is_file():
        raise UserError(f"file not found: {path}; use TAESD's .safetensors file or its folder.")
    others = [path.with_name(path.name.replace(*pair)) for pair in (("encoder", "decoder"), ("decoder", "encoder"))]
    return [path, *(other for other in others if other != path and other.is_file())]


def read_part(file: Path) -> dict[str, dict[str, Tensor]]:
    """Returns {"encoder": tensors, "decoder": tensors}, either or both, under the keys of TAESD's own files."""
    try:
        tensors = load_file(file)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} is not a whole file of safetensors ({error}): download it again.") from error
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if match := DIFFUSERS_KEY.fullmatch(key):
            part, index, rest = match.groups()
            # diffusers has no clamp in the sequence, so that its decoder's indices are smaller by one.
            parts.setdefault(part, {})[f"{int(index) + (part == 'decoder')}.{rest}"] = tensor
    return parts or {"encoder" if "0.weight" in tensors else "decoder": tensors}


def tensor_shapes(tensors: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {key: tensor.shape for key, tensor in tensors.items()}
