"""Checkpoints of Stable Diffusion 1.x: read, loaded strictly, written, in the three shapes that people keep them in.

A .ckpt or .safetensors holds the three networks under three prefixes, and our module tree *is* that checkpoint: nothing
is renamed. A diffusers folder has names of its own (`names`). Every key is claimed by a network, is on the short list
of things that are not weights, or is left out with a warning that names it. What would change the image is never left
out: a part that is missing, a layer that no network has, or another way to predict is an error.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from sd.checkpoints import diffusers_keys as names
from sd.checkpoints.config import build, complete, infer
from sd.checkpoints.diffusers_format import FOLDERS, MODEL_INDEX, check_scheduler, read_part, read_sizes, write_folder
from sd.checkpoints.families import CLIP, UNET, VAE, unsupported_unet
from sd.checkpoints.mmap_files import MappedFile
from sd.checkpoints.predictions import refuse_predictions
from sd.checkpoints.vae_files import ANOTHER, LATENT_CHANNELS, ROOTS, VaeFile, read_vae
from sd.checkpoints.weight_files import read_weights, what_is, write_weights
from sd.utils.errors import UserError

PREFIXES = {"unet": UNET, "vae": VAE, "clip": CLIP}  # after CLIP's comes `text_model.`, which some files leave out
SPOKEN = {"unet": "the U-Net", "vae": "the VAE", "clip": "the text encoder"}

NON_WEIGHTS = {
    # the noise schedule, which `schedule` computes
    *("betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod"),
    *("log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod"),
    *("posterior_variance", "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2"),
    *("logvar", "denoiser.sigmas"),
    # counts to 77, which merges break, and what else of CLIP the text encoder does not use
    *(PREFIXES["clip"] + "text_model.embeddings.position_ids", PREFIXES["clip"] + "embeddings.position_ids"),
    *("cond_stage_model.logit_scale", "cond_stage_model.text_projection"),
    *(PREFIXES["clip"] + "logit_scale", PREFIXES["clip"] + "text_projection.weight"),
}
NON_WEIGHT_PREFIXES = ("model_ema.", "embedding_manager.")
NON_WEIGHT_ENDINGS = ("position_ids", "logit_scale", "text_projection.weight")
CLIP_ROOTS = ("embeddings.token_embedding.", "embeddings.position_embedding.", "encoder.", "final_layer_norm.")
PART_ROOTS = {"vae": ROOTS, "clip": CLIP_ROOTS}
NOT_METADATA = {"sd_sizes", "format", "pytorch-lightning_version"}  # written anew, or true of the old file only


@dataclass
class Checkpoint:
    """A file's three networks as state dicts under our names, their tensors still in the file.

    kind: "ckpt", "safetensors" or "diffusers". sizes: as in `sizes`. metadata: text by name, from the file.
    ignored: keys that were left out. notes: what was unusual about the file, each in a few words. warnings: what its
    user should know, in sentences. vae_path: where the VAE comes from, if not from the checkpoint.
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
    warnings: list[str] = field(default_factory=list)
    vae_path: Path | None = None


def read(path: str | Path, vae: str | Path | None = None) -> Checkpoint:
    """Reads a .ckpt, a .safetensors or a diffusers folder, told by its contents. No weight is touched or copied yet.

    vae: a VAE's file or folder, which takes the place of the checkpoint's own and is needed where that has none.
    Raises UserError, one sentence, for whatever is not a whole checkpoint of Stable Diffusion 1.x.
    """
    path = Path(path).expanduser()
    path = path.parent if path.name == MODEL_INDEX else path
    separate = None if vae is None else read_vae(vae)
    checkpoint = read_folder(path, separate) if path.is_dir() else read_file(path, separate)
    if (channels := checkpoint.sizes["unet"]["in_channels"]) not in (4, 9):
        raise UserError(f"{path} is {unsupported_unet(channels)}: give a whole Stable Diffusion 1.x checkpoint.")
    return checkpoint


def read_file(path: Path, separate: VaeFile | None = None) -> Checkpoint:
    found = read_weights(path)
    state, levels, notes = found.content, 0, []
    while isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state, levels = state["state_dict"], levels + 1
    if found.kind == "ckpt" and levels != 1:
        notes.append(f"{levels or 'no'} levels of `state_dict`")
    what = what_is(state)
    state = state if isinstance(state, dict) else {}
    content = found.content if isinstance(found.content, dict) else {}
    parts, ignored, unknown = split(state)
    refuse_others(path, parts, what, separate)
    refuse_predictions(path, [*content, *state], state.get("alphas_cumprod"), found.metadata)
    if not any(key.startswith("text_model.") for key in parts["clip"]):
        notes.append("no `text_model.` in the text encoder's keys")
    parts["clip"] = names.clip_from_diffusers(parts["clip"])
    given = (content if found.kind == "ckpt" else found.metadata).get("sd_sizes")
    parts, sizes = with_vae(path, parts, None if given is None else complete(given, path), separate)
    checkpoint = Checkpoint(
        path=path,
        kind=found.kind,
        **parts,
        sizes=sizes,
        metadata={key: text for key, text in found.metadata.items() if key not in NOT_METADATA},
        ignored=ignored,
        notes=notes,
        files=[found.file, *(separate.files if separate else [])],
        vae_path=separate and separate.path,
    )
    leave_out(checkpoint, unknown)
    return checkpoint


def refuse_others(path: Path, parts: dict, what: str | None, separate: VaeFile | None) -> None:
    """Raises UserError, naming it, for a file that is another model, or not all of one. what: of `what_is`."""
    absent = [part for part, tensors in parts.items() if not tensors]
    if absent == ["vae"] and what is None:
        if separate is None:
            raise no_vae(path)
    elif absent or what == "a ControlNet":
        what = what or f"only a part of a checkpoint, without {' and '.join(SPOKEN[part] for part in absent)}"
        raise UserError(f"{path} is {what}: give a whole Stable Diffusion 1.x checkpoint.")


def no_vae(path: Path) -> UserError:
    return UserError(
        f"{path} has no VAE of its own: choose one with --vae FILE, in Python with vae=, or put one beside it as "
        f"{path.stem}.vae.safetensors."
    )


def with_vae(path: Path, parts: dict, sizes: dict | None, separate: VaeFile | None) -> tuple[dict, dict]:
    """The networks' tensors, with the separate VAE's where there is one, and their sizes: as given, or from shapes.

    Raises UserError where a separate VAE is not of the sizes that the model was trained with.
    """
    has_own = bool(parts["vae"])
    if separate is not None and not has_own:
        parts = parts | {"vae": separate.tensors}
    inferred = sizes is None
    sizes = infer(**parts, source=path) if inferred else sizes
    if separate is None:
        return parts, sizes
    usual = complete({}, path)
    expected = sizes["vae"] if has_own or not inferred else usual["vae"] if sizes["unet"] == usual["unet"] else None
    if expected is not None and separate.sizes != expected:
        wrong = [f"{name} {separate.sizes[name]} instead of {size}" for name, size in expected.items()]
        wrong = [text for text, name in zip(wrong, expected) if separate.sizes[name] != expected[name]]
        raise UserError(f"{separate.path} does not fit {path}: its {few(wrong)}; {ANOTHER}.")
    return parts | {"vae": separate.tensors}, sizes | {"vae": separate.sizes}


def leave_out(checkpoint: Checkpoint, unknown: list[str]) -> None:
    """Notes what was left out that nobody knows, with a warning."""
    if unknown:
        checkpoint.ignored += unknown
        checkpoint.warnings.append(
            f"{checkpoint.path.name} has entries that no Stable Diffusion 1.x uses, which are left out: "
            f"{few(sorted(unknown))}."
        )


def belongs(part: str, key: str) -> bool:
    """Whether a key may be of that network. In the U-Net all may: a layer more there is another network."""
    return part not in PART_ROOTS or key.removeprefix("text_model.").startswith(PART_ROOTS[part])


def split(state: dict) -> tuple[dict[str, dict[str, Tensor]], list[str], list[str]]:
    """A file's entries by network, prefixes taken off; the keys that are no weights; and those nobody knows."""
    parts, ignored, unknown = {part: {} for part in PREFIXES}, [], []
    for key, value in state.items():
        key = str(key)
        part = next((part for part, prefix in PREFIXES.items() if key.startswith(prefix)), None)
        if not isinstance(value, Tensor) or key in NON_WEIGHTS or key.startswith(NON_WEIGHT_PREFIXES):
            ignored.append(key)
        elif part is None or not belongs(part, key.removeprefix(PREFIXES[part])):
            (ignored if key.endswith(NON_WEIGHT_ENDINGS) else unknown).append(key)
        else:
            parts[part][key.removeprefix(PREFIXES[part])] = value
    return parts, ignored, unknown


def read_folder(path: Path, separate: VaeFile | None = None) -> Checkpoint:
    warnings = check_scheduler(path)
    has_vae = (path / FOLDERS["vae"]).is_dir()
    if not has_vae and separate is None:
        raise no_vae(path)
    sizes = complete(read_sizes(path, None if has_vae else separate.sizes), path)
    ours = build(sizes, path)
    found, files, notes, ignored, unknown = {"vae": {}}, [], [], [], []
    for part, folder in FOLDERS.items():
        if part != "vae" or separate is None:
            tensors, mapped, note = read_part(path / folder)
            found[part] = {key: tensor for key, tensor in tensors.items() if belongs(part, key)}
            foreign = sorted(tensors.keys() - found[part].keys())
            ignored += [key.removeprefix("text_model.") for key in foreign if key.endswith(NON_WEIGHT_ENDINGS)]
            unknown += [f"{folder}/{key}" for key in foreign if not key.endswith(NON_WEIGHT_ENDINGS)]
            files += mapped
            notes.append(f"{folder}/{note}")
    parts = {
        "unet": names.unet_from_diffusers(found["unet"], ours["unet"].state_dict()),
        "vae": names.vae_from_diffusers(found["vae"], ours["vae"].state_dict()),
        "clip": names.clip_from_diffusers(found["clip"]),
    }
    parts, sizes = with_vae(path, parts, sizes, separate)
    checkpoint = Checkpoint(
        path=path,
        kind="diffusers",
        **parts,
        sizes=sizes,
        metadata={},
        ignored=ignored,
        notes=notes,
        files=files + (separate.files if separate else []),
        warnings=warnings,
        vae_path=separate and separate.path,
    )
    leave_out(checkpoint, unknown)
    return checkpoint


def refuse_latents(checkpoint: Checkpoint) -> None:
    """Raises UserError where the networks do not speak of the same latents, which images cannot be made with."""
    channels = (checkpoint.sizes["unet"]["out_channels"], checkpoint.sizes["vae"]["z_channels"])
    if channels != (LATENT_CHANNELS, LATENT_CHANNELS):
        raise UserError(
            f"{checkpoint.path} has a U-Net for latents of {channels[0]} channels and a VAE for {channels[1]}, not "
            f"{LATENT_CHANNELS}: give a whole Stable Diffusion 1.x checkpoint."
        )


def few(keys: list[str], limit: int = 3) -> str:
    """The first keys of a list in words."""
    more = f" and {len(keys) - limit} more" if len(keys) > limit else ""
    return ", ".join(keys[:limit]) + more


def check(part: str, network: nn.Module, tensors: dict[str, Tensor], path: Path, is_separate: bool = False) -> None:
    """Raises UserError, naming the keys, unless the tensors are the network's: all, no other, each of its shape.

    is_separate: whether it has a file of its own.
    """
    expected = network.state_dict()
    place = f"{path}: {SPOKEN[part]}"
    wanted = ANOTHER if is_separate else "give a whole Stable Diffusion 1.x checkpoint"
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
    path: str | Path,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    vae: str | Path | None = None,
) -> tuple[nn.Module, nn.Module, nn.Module, Checkpoint]:
    """Reads a checkpoint into its networks: (clip, vae, unet, checkpoint), in eval mode, on `device` (CPU if None).

    vae: the file or folder of a separate VAE, as in `read`.
    dtype None keeps the file's own. Where neither dtype nor device changes, the parameters *are* the file's pages,
    copy-on-write: nothing is read before it is used, training them changes memory only, and the file must stay.
    Otherwise each tensor is converted and its source let go of before the next, so the peak is the result's size.
    The checkpoint's state dicts are empty afterwards: the networks have them. Raises UserError as `read` does, and
    where keys or shapes are not exactly the networks'.
    """
    checkpoint = read(path, vae)
    networks = build(checkpoint.sizes, checkpoint.path)
    for part, network in networks.items():
        place = checkpoint.vae_path if part == "vae" else None
        check(part, network, getattr(checkpoint, part), place or checkpoint.path, is_separate=place is not None)
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
