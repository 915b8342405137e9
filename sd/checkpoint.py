"""Checkpoints of Stable Diffusion 1.x: read, loaded strictly, written, in the three shapes that people keep them in.

A .ckpt or .safetensors holds the three networks under three prefixes, and our module tree *is* that checkpoint: nothing
is renamed. A diffusers folder has names of its own (`names`). Every key is claimed by a network or is on the short list
of things that are not weights; any other is an error that names it.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from sd import names
from sd.diffusers_folder import FOLDERS, read_part, read_sizes, write_folder
from sd.errors import UserError
from sd.mapped import MappedFile
from sd.sizes import build, complete, infer
from sd.weight_files import read_weights, what_is, write_weights

PREFIXES = {
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "clip": "cond_stage_model.transformer.",  # then `text_model.`, which some files leave out
}
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
SPOKEN = {"unet": "the U-Net", "vae": "the VAE", "clip": "the text encoder"}

NON_WEIGHTS = {
    # the noise schedule, which `schedule` computes
    *("betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod"),
    *("log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod"),
    *("posterior_variance", "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2"),
    *("logvar", "denoiser.sigmas", "ztsnr"),
    # counts to 77, which merges break, and what else of CLIP the text encoder does not use
    *(PREFIXES["clip"] + "text_model.embeddings.position_ids", PREFIXES["clip"] + "embeddings.position_ids"),
    *("cond_stage_model.logit_scale", "cond_stage_model.text_projection"),
    *(PREFIXES["clip"] + "logit_scale", PREFIXES["clip"] + "text_projection.weight"),
}
NON_WEIGHT_PREFIXES = ("model_ema.", "embedding_manager.")
NOT_METADATA = {"sd_sizes", "format", "pytorch-lightning_version"}  # written anew, or true of the old file only


@dataclass
class Checkpoint:
    """A file's three networks as state dicts under our names, their tensors still in the file.

    kind: "ckpt", "safetensors" or "diffusers". sizes: as in `sizes`. metadata: text by name, from the file.
    ignored: keys that are no weights. notes: what was unusual about the file, each in a few words.
    """

    path: Path
    kind: str
    unet: dict[str, Tensor]
    vae: dict[str, Tensor]
    clip: dict[str, Tensor]
    sizes: dict
    metadata: dict[str, str]
    ignored: list[str]
    notes: list[str]
    files: list[MappedFile] = field(repr=False)


def read(path: str | Path) -> Checkpoint:
    """Reads a .ckpt, a .safetensors or a diffusers folder, told by its contents. No weight is touched or copied yet.

    Raises UserError, one sentence, for whatever is not a whole checkpoint of Stable Diffusion 1.x.
    """
    path = Path(path).expanduser()
    return read_folder(path) if path.is_dir() else read_file(path)


def read_file(path: Path) -> Checkpoint:
    found = read_weights(path)
    state, levels, notes = found.content, 0, []
    while isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state, levels = state["state_dict"], levels + 1
    if found.kind == "ckpt" and levels != 1:
        notes.append(f"{levels or 'no'} levels of `state_dict`")
    parts, ignored, unknown = split(state if isinstance(state, dict) else {})
    if absent := [SPOKEN[part] for part, tensors in parts.items() if not tensors]:
        what = what_is(state) or f"only a part of a checkpoint, without {' and '.join(absent)}"
        raise UserError(f"{path} is {what}: give a whole Stable Diffusion 1.x checkpoint.")
    if unknown:
        raise UserError(f"{path} has keys that no Stable Diffusion 1.x has: {few(unknown)}.")
    if not any(key.startswith("text_model.") for key in parts["clip"]):
        notes.append("no `text_model.` in the text encoder's keys")
    parts["clip"] = names.clip_from_diffusers(parts["clip"])
    given = (found.content if found.kind == "ckpt" else found.metadata).get("sd_sizes")
    return Checkpoint(
        path=path,
        kind=found.kind,
        **parts,
        sizes=infer(**parts, source=path) if given is None else complete(given, path),
        metadata={key: text for key, text in found.metadata.items() if key not in NOT_METADATA},
        ignored=ignored,
        notes=notes,
        files=[found.file],
    )


def split(state: dict) -> tuple[dict[str, dict[str, Tensor]], list[str], list[str]]:
    """A file's entries by network, prefixes taken off; the keys that are no weights; and those nobody knows."""
    parts, ignored, unknown = {part: {} for part in PREFIXES}, [], []
    for key, value in state.items():
        key = str(key)
        part = next((part for part, prefix in PREFIXES.items() if key.startswith(prefix)), None)
        if not isinstance(value, Tensor) or key in NON_WEIGHTS or key.startswith(NON_WEIGHT_PREFIXES):
            ignored.append(key)
        elif part is None:
            unknown.append(key)
        else:
            parts[part][key.removeprefix(PREFIXES[part])] = value
    return parts, ignored, unknown


def read_folder(path: Path) -> Checkpoint:
    sizes = complete(read_sizes(path), path)
    ours = build(sizes, path)
    found, files, notes = {}, [], []
    for part, folder in FOLDERS.items():
        found[part], mapped, note = read_part(path / folder)
        files += mapped
        notes.append(f"{folder}/{note}")
    clip = names.clip_from_diffusers(found["clip"])
    ignored = [key for key in clip if key == "embeddings.position_ids"]
    return Checkpoint(
        path=path,
        kind="diffusers",
        unet=names.unet_from_diffusers(found["unet"], ours["unet"].state_dict()),
        vae=names.vae_from_diffusers(found["vae"], ours["vae"].state_dict()),
        clip={key: tensor for key, tensor in clip.items() if key not in ignored},
        sizes=sizes,
        metadata={},
        ignored=ignored,
        notes=notes,
        files=files,
    )


def few(keys: list[str], limit: int = 3) -> str:
    """The first keys of a list in words."""
    more = f" and {len(keys) - limit} more" if len(keys) > limit else ""
    return ", ".join(keys[:limit]) + more


def check(part: str, network: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Raises UserError, naming the keys, unless the tensors are the network's: all, no other, each of its shape."""
    expected = network.state_dict()
    place, wanted = f"{path}: {SPOKEN[part]}", "give a whole Stable Diffusion 1.x checkpoint"
    if missing := [key for key in expected if key not in tensors]:
        raise UserError(f"{place} lacks {few(missing)}: {wanted}.")
    if unexpected := [key for key in tensors if key not in expected]:
        raise UserError(f"{place} has {few(unexpected)}, which Stable Diffusion 1.x has not: {wanted}.")
    wrong = [
        f"{key} {list(tensors[key].shape)} instead of {list(place.shape)}"
        for key, place in expected.items()
        if tensors[key].shape != place.shape
    ]
    if wrong:
        raise UserError(f"{place} has other sizes than it should: {few(wrong)}.")
    if integers := [key for key, tensor in tensors.items() if not tensor.is_floating_point()]:
        raise UserError(f"{place} keeps whole numbers in {few(integers)}: give weights in fp32, fp16 or bf16.")


def load_models(
    path: str | Path, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> tuple[nn.Module, nn.Module, nn.Module, Checkpoint]:
    """Reads a checkpoint into its networks: (clip, vae, unet, checkpoint), in eval mode, on `device` (CPU if None).

    dtype None keeps the file's own. Where neither dtype nor device changes, the parameters *are* the file's pages,
    copy-on-write: nothing is read before it is used, training them changes memory only, and the file must stay.
    Otherwise each tensor is converted and its source let go of before the next, so the peak is the result's size.
    The checkpoint's state dicts are empty afterwards: the networks have them. Raises UserError as `read` does, and
    where keys or shapes are not exactly the networks'.
    """
    checkpoint = read(path)
    networks = build(checkpoint.sizes, checkpoint.path)
    for part, network in networks.items():
        check(part, network, getattr(checkpoint, part), checkpoint.path)
    for part, network in networks.items():
        tensors, state = getattr(checkpoint, part), {}
        for key in list(tensors):
            source = tensors.pop(key)
            wanted = dtype or (torch.float32 if source.dtype == torch.float64 else source.dtype)
            state[key] = source.to(device=device, dtype=wanted)
            if state[key] is not source:
                for file in checkpoint.files:
                    file.release(source)
        network.load_state_dict(state, strict=True, assign=True)
        network.eval()
    return networks["clip"], networks["vae"], networks["unet"], checkpoint


def save(
    path: str | Path,
    clip: nn.Module,
    vae: nn.Module,
    unet: nn.Module,
    sizes: dict,
    metadata: dict[str, str] | None = None,
    kind: str | None = None,
) -> str:
    """Writes a checkpoint, and returns its kind: "ckpt", "safetensors" or "diffusers", by the suffix unless given.

    A file has v1-5's own keys, `position_ids` included, and carries its sizes; a folder is for diffusers and says them
    in its configs. Whatever was at `path` stays as it is until the new one is whole. Raises UserError where the place
    cannot be written.
    """
    path = Path(path).expanduser()
    kind = kind or {".safetensors": "safetensors", ".ckpt": "ckpt"}.get(path.suffix.lower(), "diffusers")
    sizes = complete(sizes, path)
    parts = {}
    for part, network in {"unet": unet, "vae": vae, "clip": clip}.items():
        parts[part] = {key: tensor.detach().cpu().contiguous() for key, tensor in network.state_dict().items()}
    for part, network in build(sizes, path).items():
        check(part, network, parts[part], path)
    if kind == "diffusers":
        write_folder(path, parts, sizes)
        return kind
    prefixes = PREFIXES | {"clip": PREFIXES["clip"] + "text_model."}
    state = {prefixes[part] + key: tensor for part in parts for key, tensor in parts[part].items()}
    state[prefixes["clip"] + "embeddings.position_ids"] = torch.arange(sizes["clip"]["max_length"])[None]
    about = (metadata or {}) | {"format": "pt", "sd_sizes": json.dumps(sizes)}
    write_weights(path, kind, state, about)
    return kind
