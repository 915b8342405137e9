"""IP-Adapter files.

image_proj.proj.weight, ip_adapter.1.to_k_ip.weight     .safetensors
{"image_proj": {...}, "ip_adapter": {...}}              .bin, with the same names inside
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sd.checkpoints.config import block_numbers, skip_init
from sd.checkpoints.discovery import IMAGE_ENCODER, Models
from sd.checkpoints.foreign_files import reads_file
from sd.checkpoints.model_files import content_of
from sd.checkpoints.weight_files import read_weights
from sd.control.ip_adapter.kept_encoder import KeptEncoder
from sd.control.ip_adapter.network import (
    HEAD_WIDTH,
    FullProjection,
    ImageProjection,
    IPAdapterModel,
    PatchProjection,
    Resampler,
    cross_attentions,
)
from sd.unet import UNetModel
from sd.utils.errors import UserError
from sd.vision.clip_vision import clip_pixels
from sd.vision.image_encoder import ImageEncoder

USE_ANOTHER = "give an IP-Adapter for Stable Diffusion 1.x, such as ip-adapter_sd15"
OTHER_BASES = {1024: "Stable Diffusion 2", 2048: "Stable Diffusion XL"}  # by the width of their text
V1_TEXT = 768  # the width of Stable Diffusion 1.x's text
PARTS = ("image_proj", "ip_adapter")
FACE_ID = re.compile(r"image_proj\.perceiver_resampler\.|ip_adapter\.\d+\.to_\w+_lora\.")
ENCODER_FILES = ("model.safetensors", "pytorch_model.bin")
BESIDE = "image_encoder"  # the encoder's folder beside an adapter, as the adapters are published


class IPAdapter:
    """A loaded IP-Adapter. encoder: what it reads images with; several adapters may share one."""

    def __init__(self, path: Path, network: IPAdapterModel, encoder: KeptEncoder):
        self.path, self.network, self.encoder = path, network, encoder
        self.last: tuple[Tensor, list[tuple[Tensor, Tensor]]] | None = None

    def read_image(self, image: Tensor) -> list[tuple[Tensor, Tensor]]:
        """image: (1, 3, H, W) in [-1, 1]. Returns the `layers` of an `ImagePrompt`; those of the last image are kept.

        Raises UserError for an image encoder that does not fit the adapter.
        """
        if self.last is None or not torch.equal(self.last[0], image):
            self.last = image, self.encode(image)
        return self.last[1]

    @torch.no_grad()
    def encode(self, image: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Do what `read_image` does, without a memory."""
        projection, weight = self.network.image_proj, next(self.network.parameters())
        with self.encoder.ready() as encoder:
            self.check_encoder(encoder)
            pixels = clip_pixels(image, encoder.vision_model.image_size).to(weight.device, weight.dtype)
            both = torch.cat([projection.embed_nothing(encoder, pixels), projection.embed(encoder, pixels)])
        return self.network(projection(both))

    def check_encoder(self, encoder: ImageEncoder) -> None:
        """Raises UserError where the adapter was trained with another image encoder."""
        out, wide = encoder.visual_projection.weight.shape
        of_patches = isinstance(self.network.image_proj, PatchProjection)
        needed = width_of(self.network.state_dict())
        if needed != (wide if of_patches else out):
            raise UserError(
                f"{self.path} reads embeddings of width {needed}, and those of {self.encoder.path} have "
                f"{wide if of_patches else out}: give the image encoder that the adapter was trained with."
            )


@reads_file
def read_ip_adapter(path: str | Path) -> dict[str, Tensor]:
    """Reads a file of either layout. Raises UserError for what holds no IP-Adapter of Stable Diffusion 1.x."""
    content: Any = read_weights(Path(path).expanduser()).content
    entries = content.items() if isinstance(content, dict) else ()
    tensors = {str(key): one for key, one in entries if isinstance(one, Tensor)}
    for part in PARTS:
        inner = content.get(part) if isinstance(content, dict) else None
        if isinstance(inner, dict):
            tensors |= {f"{part}.{key}": one for key, one in inner.items() if isinstance(one, Tensor)}
    keys = [tensor for key, tensor in tensors.items() if re.fullmatch(r"ip_adapter\.\d+\.to_k_ip\.weight", key)]
    if not keys or any(tensor.dim() != 2 for tensor in keys):
        raise UserError(f"{path} is no IP-Adapter: {USE_ANOTHER}.")
    if family := OTHER_BASES.get(keys[0].shape[1]):
        raise UserError(f"{path} is an IP-Adapter for {family}: {USE_ANOTHER}.")
    first = tensors.get("image_proj.proj.0.weight")
    if any(map(FACE_ID.match, tensors)) or (first is not None and "image_proj.proj.3.weight" not in tensors):
        raise UserError(f"{path} is an IP-Adapter for face identities (FaceID), not supported: {USE_ANOTHER}.")
    return tensors


@reads_file
def load_ip_adapter(path: str | Path, unet: UNetModel, config: dict, encoder: KeptEncoder) -> IPAdapter:
    """Loads an IP-Adapter for a U-Net, on its device and in its dtype.

    config: the U-Net's, as in `sd.checkpoints.config`. encoder: of the file that `find_encoder` finds. Raises UserError
    for another file, and for one for another U-Net.
    """
    path = Path(path)
    tensors = read_ip_adapter(path)
    dims, text = [layer.to_q.in_features for layer in cross_attentions(unet)], config["context_dim"]
    numbers = sorted(block_numbers(r"ip_adapter\.(\d+)\.to_k_ip", tensors))
    theirs = [tuple(tensors[f"ip_adapter.{number}.to_k_ip.weight"].shape) for number in numbers]
    if theirs != [(dim, text) for dim in dims]:
        base = "Stable Diffusion 1.x as it was published" if theirs[0][1] == V1_TEXT else "another U-Net"
        raise UserError(
            f"{path} is an IP-Adapter for {base} (its text has {theirs[0][1]} channels and it changes {len(theirs)} "
            f"layers), and this checkpoint's U-Net has {text} and {len(dims)}: use it with another checkpoint."
        )
    try:
        with torch.device("meta"), skip_init():
            network = IPAdapterModel(projection_for(tensors, text), text, dims)
    except (KeyError, RuntimeError, ValueError, ZeroDivisionError) as error:
        raise UserError(f"{path} is not a whole IP-Adapter: {USE_ANOTHER}.") from error
    expected = network.state_dict()
    wrong = sorted(tensors.keys() ^ expected.keys())
    wrong += [key for key, place in expected.items() if key in tensors and tensors[key].shape != place.shape]
    wrong += [key for key, tensor in tensors.items() if not tensor.is_floating_point()]
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise UserError(f"{path} is an IP-Adapter of an unknown kind ({wrong[0]}{more} differ): {USE_ANOTHER}.")
    weight = unet.out[2].weight
    state = {key: tensors[key].to(weight.device, weight.dtype) for key in expected}
    network.load_state_dict(state, strict=True, assign=True)
    return IPAdapter(path, network.eval().requires_grad_(False), encoder)


def projection_for(tensors: dict[str, Tensor], context_dim: int) -> ImageProjection | PatchProjection:
    """Returns the projection, without its weights, that the shapes in a file show."""
    width = width_of(tensors)
    if "image_proj.latents" in tensors:
        _, tokens, dim = tensors["image_proj.latents"].shape
        heads = tensors["image_proj.layers.0.0.to_q.weight"].shape[0] // HEAD_WIDTH
        depth = len(block_numbers(r"image_proj\.layers\.(\d+)\.", tensors))
        return Resampler(width, context_dim, dim, heads, depth, tokens)
    if "image_proj.proj.0.weight" in tensors:
        return FullProjection(width, context_dim)
    return ImageProjection(width, context_dim, tensors["image_proj.proj.weight"].shape[0] // context_dim)


def width_of(tensors: dict[str, Tensor]) -> int:
    """Returns the width of the embeddings that an adapter reads."""
    names = [f"image_proj.{name}.weight" for name in ("proj_in", "proj.0", "proj")]
    found = [tensors[name].shape[1] for name in names if name in tensors]
    if not found:
        raise ValueError("it has no projection")
    return found[0]


def find_encoder(adapter: Path, name: str, models: Models, find: Callable[[str, str], Path]) -> Path:
    """Returns the file or folder of an adapter's image encoder.

    name: its name, for `find(kind, name)`, or "" for the one beside the adapter, else the only one among the models.
    Raises UserError, which says what to download, where there is none, and where several are not told apart.
    """
    folder = adapter.parent / BESIDE
    beside = [folder, *(folder / name for name in ENCODER_FILES), *sorted(adapter.parent.glob("*.safetensors"))]
    near = next((path for path in beside if content_of(path).kind == IMAGE_ENCODER), None)
    if near:
        own_names = ["", near.name.lower(), near.stem.lower()]
        if folder in (near, near.parent):
            own_names.append(BESIDE)
        if name.lower() in own_names:
            return near
    if name:
        return find(IMAGE_ENCODER, name)
    found = models.names(IMAGE_ENCODER)
    if len(found) == 1:
        return next(iter(found.values()))
    if found:
        names = ", ".join(found)
        raise UserError(f"{adapter.name} needs an image encoder: name one with encoder=NAME; choose from {names}.")
    raise UserError(
        f"{adapter.name} needs the image encoder OpenCLIP ViT-H/14, and there is none: download the folder "
        f"models/image_encoder of h94/IP-Adapter (2.5 GB) to a folder {BESIDE} beside the adapter."
    )
