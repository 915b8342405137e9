"""Textual inversion files of every format: a few vectors of the text encoder's width, and their token."""

import base64
import binascii
import io
import json
import re
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sd.adapters.lora_files import WIDTHS, AdapterFile, token_keys
from sd.checkpoints.families import EMBEDDING_NAMES
from sd.checkpoints.foreign_files import reads_file
from sd.checkpoints.pickles.objects import InertObject
from sd.checkpoints.weight_files import describe_contents, read_weights, write_safetensors
from sd.utils.errors import UserError
from sd.utils.files import replacing
from sd.utils.images import open_image

PNG_KEY = "sd-ti-embedding"
MAX_HIDDEN_BYTES = 1 << 24  # bytes of the unpacked content
MAX_CARD = 1 << 23  # pixels of an image that holds an embedding: the webui makes them 512 wide, plus the margins
MAX_MARGIN = 1 << 21  # bytes of each margin: 75 vectors of 768 numbers need a fifth of it


@dataclass
class EmbeddingFile:
    """The content of an embedding file.

    vectors: (n, D) fp32 by word. about: the metadata on its training, as text. warnings: sentences."""

    format: str
    vectors: dict[str, Tensor]
    about: str
    warnings: list[str]


@reads_file
def read_embeddings(path: str | Path, width: int) -> EmbeddingFile:
    """Reads a file of any format for a text encoder of this width. A file without a word is named by its file name.

    Raises UserError where it is unreadable, no embedding, for another model, or not finite.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        path = next((path / name for name in EMBEDDING_NAMES if (path / name).is_file()), path)
    content, metadata = read_image_embedding(path) if is_image(path) else read_tensors(path)
    file_format, found = find_vectors(path, content, metadata)
    vectors, warnings = {}, []
    for token, tensor in found.items():
        if not is_rows(tensor):
            raise UserError(f"{path} holds no embedding: {token} is of shape {list(tensor.shape)} and {tensor.dtype}.")
        tensor = tensor.detach().to(torch.float32, copy=True)
        rows = tensor.reshape(-1, tensor.shape[-1])  # (n, D); older files have (D,)
        if rows.shape[1] != width:
            made_for = f"{WIDTHS.get(rows.shape[1], 'another model')}, whose text is {rows.shape[1]} wide"
            raise UserError(f"{path} is an embedding for {made_for}; this model's text is {width} wide.")
        if not rows.isfinite().all():
            raise UserError(
                f"{path} contains NaN or infinite values (its training diverged); use an earlier checkpoint."
            )
        if not rows.any():
            warnings.append(f"{token} is all zeros, so it means nothing")
        vectors[token] = rows
    if "clip_g" in content:
        warnings.append("it was made for Stable Diffusion XL, and only half of it is of use here")
    facts = {"step": content.get("step"), "model": content.get("sd_checkpoint_name")}
    about = ", ".join(f"{name} {fact}" for name, fact in facts.items() if isinstance(fact, (str, int)))
    return EmbeddingFile(file_format, vectors, about, warnings)


def read_tensors(path: Path) -> tuple[dict, dict[str, str]]:
    found = read_weights(path)
    if not isinstance(found.content, dict):
        raise UserError(f"{path} holds no embedding: it is {describe_contents(found.content) or 'something else'}.")
    return found.content, found.metadata


def find_vectors(path: Path, content: dict, metadata: dict[str, str]) -> tuple[str, dict[str, Tensor]]:
    """Returns (the format, the tensors by word)."""
    tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    word = path.stem
    if is_image(path) and isinstance(content.get("name"), str):  # only there the webui goes by this name
        word = content["name"]
    if "string_to_param" in content:
        found = tensors_in(content["string_to_param"])
        if found:
            named = found if len(found) > 1 else {"*": next(iter(found.values()))}
            return "the webui's", {word if key == "*" else key: tensor for key, tensor in named.items()}
    for key, file_format in (
        ("emb_params", "kohya's"),
        ("clip_l", "diffusers' advanced"),
        ("clip_g", "diffusers' for XL"),
    ):
        if key in tensors:
            return file_format, {word: tensors[key]}
    if bundled := token_keys(AdapterFile(tensors, metadata)):
        return "part of a LoRA", {token: tensors[key] for key, token in bundled.items()}
    kind = describe_contents(content)
    if not tensors or not all(map(is_rows, tensors.values())) or kind not in (None, "a textual inversion embedding"):
        raise UserError(f"{path} holds no embedding: it is {kind or 'something else'}.")
    return "diffusers'", {word if key == "*" else key: tensor for key, tensor in tensors.items()}


def is_rows(tensor: Tensor) -> bool:
    return tensor.dim() in (1, 2) and tensor.numel() > 0 and tensor.is_floating_point()


def tensors_in(value) -> dict[str, Tensor]:
    """Returns the tensors of a dict, or of a pickled ParameterDict: its attributes and its `_parameters`."""
    if isinstance(value, InertObject):
        state = value.state if isinstance(value.state, dict) else {}
        value = {**value, **state, **tensors_in(state.get("_parameters"))}
    entries = value.items() if isinstance(value, dict) else ()
    return {str(key): tensor for key, tensor in entries if isinstance(tensor, Tensor)}


def is_image(path: Path) -> bool:
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return bool(re.match(rb"\x89PNG|RIFF....WEBP", file.read(12), re.DOTALL))


def read_image_embedding(path: Path) -> tuple[dict, dict[str, str]]:
    """Read the webui's image format of embeddings: JSON in a text chunk, or in the low bits of the image's margins."""
    image = open_image(path)
    try:
        chunk = image.info.get(PNG_KEY)
        if chunk is not None and len(chunk) > MAX_HIDDEN_BYTES:
            raise ValueError("too large")
        text = base64.b64decode(chunk) if chunk else read_margins(image)
        content = json.loads(text, object_hook=as_tensor)
        if not isinstance(content, dict):
            raise ValueError("no table")
    except (ValueError, TypeError, RecursionError, binascii.Error, zlib.error) as error:
        raise UserError(
            f"{path} is an image without an embedding, or a damaged one; download the file again."
        ) from error
    return content, {}


def as_tensor(table: dict):
    return torch.tensor(table["TORCHTENSOR"]) if "TORCHTENSOR" in table else table


def read_margins(image: Image.Image) -> bytes:
    """Return the bytes that the webui stores in an image's margins, beyond a black column on the left and the right.

    The left margin has the low halves of the bytes, the right one the high halves: the low four bits of each channel,
    xor a fixed sequence of pseudo-random numbers. The bytes are deflated JSON, with padding after it.
    """
    if image.width * image.height > MAX_CARD:
        raise ValueError("far larger than an embedding's image")
    pixels = np.asarray(image.convert("RGB")) & 15  # (H, W, 3)
    (black,) = np.nonzero(pixels.sum(axis=(0, 2)) == 0)
    if len(black) < 2:
        raise ValueError("no margins")
    low, high = (side.reshape(-1) for side in (pixels[:, : black[0]], pixels[:, black[-1] + 1 :]))
    if low.size != high.size or low.size > MAX_MARGIN:
        raise ValueError("margins of different sizes")
    mask, state = np.empty_like(low), 0
    for i in range(low.size):
        state = (1664525 * state + 1013904223) % 2**32
        mask[i] = state % 255 & 15
    data = (high ^ mask) << 4 | (low ^ mask)
    return zlib.decompressobj().decompress(data.tobytes(), MAX_HIDDEN_BYTES)


def save_embedding(
    path: str | Path,
    token: str,
    vectors: Tensor,
    step: int | None = None,
    model_name: str | None = None,
    metadata: dict[str, str] | None = None,
) -> None:
    """Saves vectors (n, D). A .safetensors has one key, the token, and every program reads it; a .pt is the webui's.

    metadata: more of it, as text, which a .pt has no place for. Raises UserError for any other ending, or
    where the place is not writable.
    """
    path = Path(path).expanduser()
    vectors = vectors.detach().cpu().float().reshape(-1, vectors.shape[-1]).clone()
    if path.suffix not in (".safetensors", ".pt"):
        raise UserError(f"{path} cannot be written: an embedding is a .safetensors, or a .pt for the webui.")
    with replacing(path) as part:
        if path.suffix == ".safetensors":
            write_safetensors(part, {token: vectors}, {"format": "pt"} | (metadata or {}))
        else:
            content = {
                "string_to_token": {"*": 265},
                "string_to_param": {"*": vectors},
                "name": token,
                "step": step,
                "sd_checkpoint": None,
                "sd_checkpoint_name": model_name,
            }
            # The older of torch's two containers: a webui before 1.10 refuses what newer torch adds to the other.
            buffer = io.BytesIO()  # torch reports a full disk of this container as an error of its own
            torch.save(content, buffer, _use_new_zipfile_serialization=False)
            part.write_bytes(buffer.getvalue())
