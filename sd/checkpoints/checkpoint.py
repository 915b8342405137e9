"""Checkpoints of Stable Diffusion 1.x: read, loaded strictly and written, in three formats.

A .ckpt or .safetensors holds the three networks under three prefixes, and our module tree *is* that checkpoint: nothing
is renamed. A diffusers folder has names of its own (`diffusers_keys`). Every key belongs to a network, is on the short
list of entries that are not weights, or is left out with a warning that names it. What would change the image is never
left out: a missing part, a layer that no network has, or another prediction type is an error.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from sd.checkpoints import diffusers_keys
from sd.checkpoints.completeness import MissingVae, check_completeness, check_state_dict, summarize_keys
from sd.checkpoints.config import build_networks, fill_defaults, infer_config, stored_config
from sd.checkpoints.diffusers_format import (
    FOLDERS,
    MODEL_INDEX,
    check_folder,
    check_pipeline_config,
    read_folder_config,
    read_network,
    write_folder,
)
from sd.checkpoints.families import CLIP, UNET, VAE, unsupported_unet
from sd.checkpoints.foreign_files import reads_file
from sd.checkpoints.mmap_files import MappedFile
from sd.checkpoints.predictions import (
    V_KEY,
    ZERO_SNR_KEY,
    choose_prediction,
    find_prediction,
    prediction_marks,
    prediction_metadata,
    prediction_of,
    with_prediction,
)
from sd.checkpoints.vae_files import LATENT_CHANNELS, ROOTS, USE_ANOTHER, VaeFile, read_vae
from sd.checkpoints.weight_files import describe_contents, read_weights, write_weights
from sd.utils.errors import UserError
from sd.utils.files import check_target

PREFIXES = {"unet": UNET, "vae": VAE, "clip": CLIP}  # then `text_model.` for CLIP, which some files omit

NON_WEIGHTS = {
    # the noise schedule, which `schedule` computes
    *("betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod"),
    *("log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod"),
    *("posterior_variance", "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2"),
    *("logvar", "denoiser.sigmas"),
    *(V_KEY, ZERO_SNR_KEY),  # marks; see `predictions`
    # the positions 0 to 76, which merges corrupt, and parts of CLIP that the text encoder does not use
    *(PREFIXES["clip"] + "text_model.embeddings.position_ids", PREFIXES["clip"] + "embeddings.position_ids"),
    *("cond_stage_model.logit_scale", "cond_stage_model.text_projection"),
    *(PREFIXES["clip"] + "logit_scale", PREFIXES["clip"] + "text_projection.weight"),
}
NON_WEIGHT_PREFIXES = ("model_ema.", "embedding_manager.")
NON_WEIGHT_ENDINGS = ("position_ids", "logit_scale", "text_projection.weight")
CLIP_ROOTS = ("embeddings.token_embedding.", "embeddings.position_embedding.", "encoder.", "final_layer_norm.")
PART_ROOTS = {"vae": ROOTS, "clip": CLIP_ROOTS}
OTHER_FILES = (".pt", ".pth", ".bin", ".onnx", ".gguf", ".pkl", ".zip")  # endings that no folder should have
NOT_METADATA = {"sd_sizes", "format", "pytorch-lightning_version"}  # written again, or true of the old file only


@dataclass
class Checkpoint:
    """The three networks of a file as state dicts under our names, with tensors that are still in the file.

    kind: "ckpt", "safetensors" or "diffusers". config: as in `sd.checkpoints.config`. metadata: texts by name, from the
    file. ignored: keys that were left out. notes: what is unusual about the file, each in a few words. warnings: what
    the user should know, in sentences. vae_path: the file of the VAE, if it is not the checkpoint's own.
    """

    path: Path
    kind: str
    unet: dict[str, Tensor]
    vae: dict[str, Tensor]
    clip: dict[str, Tensor]
    config: dict
    metadata: dict[str, str]
    ignored: list[str]
    notes: list[str]
    files: list[MappedFile] = field(repr=False)
    warnings: list[str] = field(default_factory=list)
    vae_path: Path | None = None


@reads_file
def read_checkpoint(path: str | Path, vae: str | Path | None = None) -> Checkpoint:
    """Reads a .ckpt, a .safetensors or a diffusers folder, recognized by its contents. No weight is copied yet.

    vae: the file or folder of a VAE that replaces the checkpoint's own; it is needed where the checkpoint has none.
    Raises UserError, one sentence, for whatever is not a whole checkpoint of Stable Diffusion 1.x.
    """
    path = Path(path).expanduser()
    path = path.parent if path.name == MODEL_INDEX else path
    separate = None if vae is None else read_vae(vae)
    checkpoint = read_diffusers_folder(path, separate) if path.is_dir() else read_checkpoint_file(path, separate)
    if (channels := checkpoint.config["unet"]["in_channels"]) not in (4, 9):
        raise UserError(f"{path} is {unsupported_unet(channels)}: give a whole Stable Diffusion 1.x checkpoint.")
    return checkpoint


def read_checkpoint_file(path: Path, separate: VaeFile | None = None) -> Checkpoint:
    found = read_weights(path)
    state, levels, notes = found.content, 0, []
    while isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state, levels = state["state_dict"], levels + 1
    if found.kind == "ckpt" and levels != 1:
        notes.append(f"{levels or 'no'} levels of `state_dict`")
    what = describe_contents(state)
    state = state if isinstance(state, dict) else {}
    content = found.content if isinstance(found.content, dict) else {}
    parts, ignored, unknown = split_by_network(state)
    check_completeness(path, parts, what, separate)
    prediction = find_prediction(path, [*content, *state], state.get("alphas_cumprod"), found.metadata)
    if not any(key.startswith("text_model.") for key in parts["clip"]):
        notes.append("no `text_model.` in the text encoder's keys")
    parts["clip"] = diffusers_keys.clip_from_diffusers(parts["clip"])
    given = (content if found.kind == "ckpt" else found.metadata).get("sd_sizes")
    parts, config = apply_separate_vae(path, parts, None if given is None else fill_defaults(given, path), separate)
    config = with_prediction(config, prediction)
    checkpoint = Checkpoint(
        path=path,
        kind=found.kind,
        unet=parts["unet"],
        vae=parts["vae"],
        clip=parts["clip"],
        config=config,
        metadata={key: text for key, text in found.metadata.items() if key not in NOT_METADATA},
        ignored=ignored,
        notes=notes,
        files=[found.file, *(separate.files if separate else [])],
        vae_path=separate.path if separate else None,
    )
    warn_unknown_keys(checkpoint, unknown)
    return checkpoint


def apply_separate_vae(path: Path, parts: dict, config: dict | None, separate: VaeFile | None) -> tuple[dict, dict]:
    """Returns the networks' tensors, with those of the separate VAE if there is one, and their configuration.

    config: the file's own, or None to infer it from the shapes. Raises UserError where a separate VAE has another
    configuration than the one that the model was trained with.
    """
    has_own = bool(parts["vae"])
    if separate is not None and not has_own:
        parts = parts | {"vae": separate.tensors}
    inferred = config is None
    config = infer_config(**parts, source=path) if inferred else config
    if separate is None:
        return parts, config
    usual = fill_defaults({}, path)
    expected = config["vae"] if has_own or not inferred else usual["vae"] if config["unet"] == usual["unet"] else None
    if expected is not None and separate.config != expected:
        wrong = [f"{name} {separate.config[name]} instead of {size}" for name, size in expected.items()]
        wrong = [text for text, name in zip(wrong, expected) if separate.config[name] != expected[name]]
        raise UserError(f"{separate.path} does not fit {path}: its {summarize_keys(wrong)}; {USE_ANOTHER}.")
    return parts | {"vae": separate.tensors}, config | {"vae": separate.config}


def warn_unknown_keys(checkpoint: Checkpoint, unknown: list[str]) -> None:
    """Records the keys that no Stable Diffusion 1.x has and that were left out, with a warning."""
    if unknown:
        checkpoint.ignored += unknown
        checkpoint.warnings.append(
            f"{checkpoint.path.name} has entries that no Stable Diffusion 1.x uses, which are left out: "
            f"{summarize_keys(sorted(unknown))}."
        )


def belongs_to(part: str, key: str) -> bool:
    """Returns whether a key may belong to that network. All may to the U-Net: one layer more is another network."""
    return part not in PART_ROOTS or key.removeprefix("text_model.").startswith(PART_ROOTS[part])


def split_by_network(state: dict) -> tuple[dict[str, dict[str, Tensor]], list[str], list[str]]:
    """Returns a file's entries by network without prefixes, the keys that are not weights, and the unknown keys."""
    parts, ignored, unknown = {part: {} for part in PREFIXES}, [], []
    for key, value in state.items():
        key = str(key)
        part = next((part for part, prefix in PREFIXES.items() if key.startswith(prefix)), None)
        if not isinstance(value, Tensor) or key in NON_WEIGHTS or key.startswith(NON_WEIGHT_PREFIXES):
            ignored.append(key)
        elif part is None or not belongs_to(part, key.removeprefix(PREFIXES[part])):
            (ignored if key.endswith(NON_WEIGHT_ENDINGS) else unknown).append(key)
        else:
            parts[part][key.removeprefix(PREFIXES[part])] = value
    return parts, ignored, unknown


def read_diffusers_folder(path: Path, separate: VaeFile | None = None) -> Checkpoint:
    warnings, prediction = check_pipeline_config(path)
    has_vae = (path / FOLDERS["vae"]).is_dir()
    if not has_vae and separate is None:
        raise MissingVae(path)
    config = fill_defaults(read_folder_config(path, None if has_vae else separate.config), path)
    ours = build_networks(config, path)
    found, files, notes, ignored, unknown = {"vae": {}}, [], [], [], []
    for part, folder in FOLDERS.items():
        if part != "vae" or separate is None:
            tensors, mapped, note = read_network(path / folder)
            found[part] = {key: tensor for key, tensor in tensors.items() if belongs_to(part, key)}
            foreign = sorted(tensors.keys() - found[part].keys())
            ignored += [key.removeprefix("text_model.") for key in foreign if key.endswith(NON_WEIGHT_ENDINGS)]
            unknown += [f"{folder}/{key}" for key in foreign if not key.endswith(NON_WEIGHT_ENDINGS)]
            files += mapped
            notes.append(f"{folder}/{note}")
    parts = {
        "unet": diffusers_keys.unet_from_diffusers(found["unet"], ours["unet"].state_dict()),
        "vae": diffusers_keys.vae_from_diffusers(found["vae"], ours["vae"].state_dict()),
        "clip": diffusers_keys.clip_from_diffusers(found["clip"]),
    }
    parts, config = apply_separate_vae(path, parts, config, separate)
    config = with_prediction(config, prediction)
    checkpoint = Checkpoint(
        path=path,
        kind="diffusers",
        **parts,
        config=config,
        metadata={},
        ignored=ignored,
        notes=notes,
        files=files + (separate.files if separate else []),
        warnings=warnings,
        vae_path=separate.path if separate else None,
    )
    warn_unknown_keys(checkpoint, unknown)
    return checkpoint


def check_latents(checkpoint: Checkpoint) -> None:
    """Raises UserError where the U-Net and the VAE have different latents: they cannot generate images together."""
    channels = (checkpoint.config["unet"]["out_channels"], checkpoint.config["vae"]["z_channels"])
    if channels != (LATENT_CHANNELS, LATENT_CHANNELS):
        raise UserError(
            f"{checkpoint.path} has a U-Net for latents of {channels[0]} channels and a VAE for {channels[1]}, not "
            f"{LATENT_CHANNELS}: give a whole Stable Diffusion 1.x checkpoint."
        )


def load_models(
    path: str | Path,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    vae: str | Path | None = None,
    prediction: str | None = None,
) -> tuple[nn.Module, nn.Module, nn.Module, Checkpoint]:
    """Reads a checkpoint into its networks: (clip, vae, unet, checkpoint), in eval mode, on `device` (CPU if None).

    vae: the file or folder of a separate VAE, as in `read_checkpoint`. prediction: one of `predictions.PREDICTIONS`,
    for a file whose marks are missing or wrong.
    dtype None keeps the file's own. Where neither dtype nor device changes, the parameters *are* the file's pages,
    copy-on-write: nothing is read before it is used, training changes memory only, and the file must not be deleted.
    Otherwise each tensor is converted and its source freed before the next, so the peak is the size of the result.
    The checkpoint's state dicts are empty afterwards: the networks own the tensors. Raises UserError as
    `read_checkpoint` does, and where keys or shapes are not exactly the networks'.
    """
    checkpoint = read_checkpoint(path, vae)
    override_prediction(checkpoint, prediction)
    networks = build_networks(checkpoint.config, checkpoint.path)
    for part, network in networks.items():
        place = checkpoint.vae_path if part == "vae" else None
        check_state_dict(
            part, network, getattr(checkpoint, part), place or checkpoint.path, is_separate=place is not None
        )
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


def override_prediction(checkpoint: Checkpoint, chosen: str | None) -> None:
    """Sets what the U-Net predicts to the user's choice, with a warning where a mark of the file says another thing."""
    marked = prediction_of(checkpoint.config)
    prediction = choose_prediction(marked, chosen)
    if chosen is not None and prediction != marked and marked.name != "eps":
        checkpoint.warnings.append(
            f"{checkpoint.path.name} is marked as a model of {marked.name}; {prediction.name} is used, as requested."
        )
    checkpoint.config = with_prediction(checkpoint.config, prediction)


def kind_to_save(path: Path) -> str:
    """Returns the kind of checkpoint that is written at a path: "safetensors", "ckpt" or, for a folder, "diffusers".

    Raises UserError for the ending of another kind of file, which would be the name of a folder.
    """
    ending = path.suffix.lower()
    if ending in OTHER_FILES and not path.is_dir():
        raise UserError(
            f"{path} has the ending {ending}, which is not written: use .safetensors, .ckpt or a folder's name."
        )
    return {".safetensors": "safetensors", ".ckpt": "ckpt"}.get(ending, "diffusers")


def check_saving(path: Path) -> None:
    """Raises UserError where `save_checkpoint` cannot write to `path`; call it before a checkpoint is loaded."""
    if kind_to_save(path) == "diffusers":
        check_folder(path)
    check_target(path)


def save_checkpoint(
    path: str | Path,
    clip: nn.Module,
    vae: nn.Module,
    unet: nn.Module,
    config: dict,
    metadata: dict[str, str] | None = None,
    kind: str | None = None,
) -> str:
    """Writes a checkpoint, and returns its kind: "ckpt", "safetensors" or "diffusers", by the suffix unless given.

    A file has v1-5's own keys, `position_ids` included, its configuration in the metadata `sd_sizes`, and the marks of
    a model that predicts v; a folder is diffusers' and has config files. Whatever was at `path` is unchanged until the
    new checkpoint is complete. Raises UserError where `path` cannot be written.
    """
    path = Path(path).expanduser()
    kind = kind or kind_to_save(path)
    config = fill_defaults(config, path)
    parts = {}
    for part, network in {"unet": unet, "vae": vae, "clip": clip}.items():
        parts[part] = {key: tensor.detach().cpu().contiguous() for key, tensor in network.state_dict().items()}
    for part, network in build_networks(config, path).items():
        check_state_dict(part, network, parts[part], path)
    if kind == "diffusers":
        write_folder(path, parts, config)
        return kind
    prefixes = PREFIXES | {"clip": PREFIXES["clip"] + "text_model."}
    state = {prefixes[part] + key: tensor for part in parts for key, tensor in parts[part].items()}
    state[prefixes["clip"] + "embeddings.position_ids"] = torch.arange(config["clip"]["max_length"])[None]
    state |= prediction_marks(prediction_of(config))
    about = prediction_metadata(metadata or {}, prediction_of(config)) | {
        "format": "pt",
        "sd_sizes": json.dumps(stored_config(config)),
    }
    write_weights(path, kind, state, about)
    return kind
