"""Separate VAE files, in each of their layouts, under our names.

first_stage_model.decoder...    extracted from a checkpoint, or a whole checkpoint
decoder.mid.block_1...          as it was trained, often with `loss.` and a nested `state_dict`
decoder.mid_block.resnets.0...  diffusers', a file or a folder with its config.json
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from sd.checkpoints import diffusers_keys
from sd.checkpoints.config import build_network, infer_diffusers_vae_config, infer_vae_config
from sd.checkpoints.diffusers_format import FOLDERS, read_network
from sd.checkpoints.families import VAE, describe_contents
from sd.checkpoints.foreign_files import read_json_file, reads_file
from sd.checkpoints.mmap_files import MappedFile
from sd.checkpoints.weight_files import read_weights
from sd.utils.errors import UserError
from sd.vae import LATENT_SCALE

PREFIXES = (VAE, "vae.", "")
ROOTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")  # all that a VAE has
LATENT_CHANNELS = 4
OTHER_CHANNELS = {16: "Flux or Stable Diffusion 3", 32: "a newer Flux"}
USE_ANOTHER = "give a VAE of Stable Diffusion 1.x, such as vae-ft-mse-840000-ema-pruned"


@dataclass
class VaeFile:
    """A VAE in a file. tensors: by our names, still in their files. config: the arguments of `vae.AutoencoderKL`."""

    path: Path
    tensors: dict[str, Tensor]
    config: dict
    files: list[MappedFile]


@reads_file
def read_vae(path: str | Path) -> VaeFile:
    """Reads a file or folder of any layout. Raises UserError for what holds no VAE of Stable Diffusion 1.x."""
    path = Path(path).expanduser()
    if path.is_dir():
        tensors, files = read_vae_folder(path)
    else:
        found = read_weights(path)
        tensors, files = extract_vae(found.content, path), [found.file]
    check_vae_family(tensors, path)
    tensors = {key: tensor for key, tensor in tensors.items() if key.startswith(ROOTS)}
    is_diffusers = any(".down_blocks." in key for key in tensors)
    try:
        config = (infer_diffusers_vae_config if is_diffusers else infer_vae_config)(tensors)
    except KeyError as error:
        raise UserError(f"{path} is not a whole VAE of Stable Diffusion 1.x: it lacks {error.args[0]}.") from error
    except (IndexError, ValueError, ZeroDivisionError) as error:
        raise UserError(f"{path} is another kind of VAE: {USE_ANOTHER}.") from error
    if is_diffusers:
        tensors = diffusers_keys.vae_from_diffusers(tensors, build_network("vae", config, path).state_dict())
    return VaeFile(path, tensors, config, files)


def read_vae_folder(folder: Path) -> tuple[dict[str, Tensor], list[MappedFile]]:
    """Reads the folder of a VAE, or that of a whole model."""
    inside = folder / FOLDERS["vae"]
    folder = inside if inside.is_dir() else folder
    config = read_json_file(folder / "config.json") if (folder / "config.json").exists() else {}
    scale = config.get("scaling_factor") or LATENT_SCALE
    if abs(scale - LATENT_SCALE) > 1e-4:
        family = "Stable Diffusion XL" if abs(scale - 0.13025) < 1e-4 else "another model"
        raise UserError(f"{folder} is the VAE of {family}, which scales latents by {scale}: {USE_ANOTHER}.")
    tensors, files, _ = read_network(folder)
    return extract_vae(tensors, folder), files


def extract_vae(content: Any, path: Path) -> dict[str, Tensor]:
    """Returns the VAE's tensors in a file, whatever the prefix of their names."""
    while isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    entries = content.items() if isinstance(content, dict) else ()
    tensors = {str(key): value for key, value in entries if isinstance(value, Tensor)}
    for prefix in PREFIXES:
        if prefix + "decoder.conv_in.weight" in tensors or prefix + "encoder.conv_in.weight" in tensors:
            return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    raise UserError(f"{path} is {describe_contents(content) or 'a file without a VAE'}: {USE_ANOTHER}.")


def check_vae_family(tensors: dict[str, Tensor], path: Path) -> None:
    """Raises UserError, naming it, for a VAE of another family. XL's has the same shapes and is not recognized."""
    first = tensors.get("decoder.conv_in.weight")
    if any(key.startswith("quantize.") for key in tensors):
        raise UserError(f"{path} is a VQ autoencoder, whose latents are entries of a codebook: {USE_ANOTHER}.")
    if first is not None and first.dim() == 5:
        raise UserError(f"{path} is a VAE for video: {USE_ANOTHER}.")
    if first is not None and first.dim() == 4 and first.shape[1] != LATENT_CHANNELS:
        family = OTHER_CHANNELS.get(first.shape[1], "another model")
        raise UserError(f"{path} is the VAE of {family}, whose latents have {first.shape[1]} channels: {USE_ANOTHER}.")
