"""The folder format of diffusers: one subfolder for each network, with its config.json and its weights."""

import json
import re
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from sd.checkpoints import diffusers_keys
from sd.checkpoints.foreign_files import read_json_file
from sd.checkpoints.mmap_files import MappedFile, write_safetensors
from sd.checkpoints.predictions import Prediction, prediction_of
from sd.checkpoints.weight_files import read_weights
from sd.tokenizer import END, MAX_LENGTH, START, Tokenizer
from sd.utils.errors import UserError
from sd.utils.files import replacing
from sd.vae import LATENT_SCALE

FOLDERS = {"unet": "unet", "vae": "vae", "clip": "text_encoder"}
MODEL_INDEX = "model_index.json"
STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
VARIANTS = ("", "fp32", "fp16", "bf16", "ema")  # any other comes after these
WEIGHT_NAME = re.compile(
    rf"(?P<stem>{'|'.join(STEMS)})(\.(?P<variant>\w+))?\.(?P<ending>safetensors|bin)"
    r"(?P<index>\.index(\.(?P<of_index>\w+))?\.json)?"
)
AGAIN = "download it again"
PREDICTION_TYPES = {"epsilon": False, "v_prediction": True}
SCHEDULE = ("beta_schedule", "beta_start", "beta_end", "num_train_timesteps")
CLIP_DEFAULTS = {"hidden_size": 512, "num_hidden_layers": 12, "num_attention_heads": 8, "vocab_size": 49408}
OTHER_FOLDERS = {"tokenizer", "scheduler", "safety_checker", "feature_extractor"}


def read_folder_config(folder: Path, separate_vae: dict | None = None) -> dict:
    """Returns the configuration of a Stable Diffusion 1.x folder. Raises UserError for any other kind of model.

    separate_vae: the configuration of a separate VAE, where the folder has none.
    """
    unet, clip = read_network_config(folder, "unet"), read_network_config(folder, "clip")
    vae = None if separate_vae is not None else read_network_config(folder, "vae")
    if unet.get("use_linear_projection") or common_value(unet.get("cross_attention_dim")) == 1024:
        raise UserError(f"{folder} is Stable Diffusion 2, which is not supported: give a model of the 1.x family.")
    if (activation := clip.get("hidden_act", "quick_gelu")) != "quick_gelu":
        raise UserError(f"{folder} has a text encoder with {activation}, as Stable Diffusion 2: give a 1.x model.")
    try:
        width = unet["block_out_channels"][0]
        separate_vae = separate_vae or vae_config_from_diffusers(vae)
        return {
            "unet": {
                "in_channels": unet["in_channels"],
                "out_channels": unet["out_channels"],
                "model_channels": width,
                "channel_mult": [channels // width for channels in unet["block_out_channels"]],
                "num_res_blocks": common_value(unet["layers_per_block"]),
                "attention_levels": [i for i, kind in enumerate(unet["down_block_types"]) if "CrossAttn" in kind],
                "num_heads": common_value(unet.get("num_attention_heads") or unet.get("attention_head_dim", 8)),
                "context_dim": common_value(unet["cross_attention_dim"]),
                "middle_blocks": int(unet.get("mid_block_type", "UNetMidBlock2DCrossAttn") is not None),
            },
            "vae": separate_vae,
            "clip": {
                "width": clip["hidden_size"],
                "layers": clip["num_hidden_layers"],
                "heads": clip["num_attention_heads"],
                "vocab_size": clip["vocab_size"],
                "max_length": clip.get("max_position_embeddings", MAX_LENGTH),
            },
            "image_size": common_value(unet.get("sample_size") or 64) * 2 ** (len(separate_vae["channel_mult"]) - 1),
        }
    except (KeyError, IndexError, TypeError, ValueError, ZeroDivisionError) as error:
        raise UserError(
            f"the config files in {folder} are incomplete ({error!r}): download the folder again."
        ) from error


def read_network_config(folder: Path, part: str) -> dict:
    """Reads a network's config.json. That of a whole CLIP contains the text encoder's, without default values."""
    config = read_json_file(folder / FOLDERS[part] / "config.json")
    if part == "clip" and isinstance(config.get("text_config"), dict) and "hidden_size" not in config:
        return CLIP_DEFAULTS | config["text_config"]
    return config


def common_value(value: object) -> object:
    """Returns the value, or the common one of a list with one for each level. Raises UserError where they differ."""
    if not isinstance(value, list):
        return value
    if len(set(value)) != 1:
        raise UserError(
            f"the config has different values for different levels, {value}, which is not supported: "
            "give a model with the layout of Stable Diffusion 1.x."
        )
    return value[0]


def vae_config_from_diffusers(config: dict) -> dict:
    width = config["block_out_channels"][0]
    return {
        "channels": width,
        "channel_mult": [channels // width for channels in config["block_out_channels"]],
        "num_res_blocks": config["layers_per_block"],
        "z_channels": config["latent_channels"],
    }


def check_pipeline_config(folder: Path) -> tuple[list[str], Prediction]:
    """Returns warnings, in sentences, and what the model predicts. Raises UserError for another kind of model.

    The scheduler's config has `prediction_type`, epsilon or v_prediction, and `rescale_betas_zero_snr`.
    """
    if not (folder / MODEL_INDEX).exists():
        raise UserError(f"{folder} has no {MODEL_INDEX}: give a diffusers folder, or a checkpoint file.")
    pipeline = str(read_json_file(folder / MODEL_INDEX).get("_class_name"))
    if not re.match("StableDiffusion(?!XL|3)", pipeline):
        raise UserError(f"{folder} is for {pipeline}, not Stable Diffusion 1.x: give a model of the 1.x family.")
    path = folder / "scheduler" / "scheduler_config.json"
    config = read_json_file(path) if path.exists() else {}
    prediction = config.get("prediction_type") or "epsilon"
    if prediction not in PREDICTION_TYPES:
        raise UserError(f"{folder} predicts {prediction}: give a model that predicts epsilon or v.")
    found = Prediction(PREDICTION_TYPES[prediction], bool(config.get("rescale_betas_zero_snr")))
    schedule = {key: config[key] for key in SCHEDULE if config.get(key) is not None}
    other = [f"{key} {value}" for key, value in schedule.items() if value != SCHEDULER[key]]
    if other:
        return [
            f"{folder.name} gives another noise schedule ({', '.join(other)}) than v1's, which is used instead."
        ], found
    return [], found


def read_network(folder: Path) -> tuple[dict[str, Tensor], list[MappedFile], str]:
    """Returns a network's tensors by diffusers' names, the files they are in, and the name of the first file.

    Of several files the first in this order: full precision before variants, safetensors before pickles, a single file
    before shards.
    """
    found = []
    for path in sorted(folder.glob("*")):
        if name := WEIGHT_NAME.fullmatch(path.name):
            variant = name["variant"] or name["of_index"] or ""
            place = VARIANTS.index(variant) if variant in VARIANTS else len(VARIANTS)
            is_index = name["index"] is not None
            found.append((place, variant, name["ending"] != "safetensors", is_index, STEMS.index(name["stem"]), path))
    if not found:
        there = ", ".join(path.name for path in sorted(folder.glob("*"))[:4] if path.suffix != ".json")
        there = f", but {there}" if there else ""
        raise UserError(f"{folder} holds no weights (diffusion_pytorch_model.safetensors or the like){there}: {AGAIN}.")
    *_, is_index, _, path = min(found)
    if not is_index:
        return read_weight_files([path])
    shards = {Path(shard).name for shard in read_json_file(path).get("weight_map", {}).values()}
    return read_weight_files([folder / name for name in sorted(shards)])


def read_weight_files(paths: list[Path]) -> tuple[dict[str, Tensor], list[MappedFile], str]:
    tensors, files = {}, []
    for path in paths:
        found = read_weights(path)
        if not isinstance(found.content, dict) or not all(
            isinstance(value, Tensor) for value in found.content.values()
        ):
            raise UserError(f"{path} does not contain a network's weights: download it again.")
        tensors |= found.content
        files.append(found.file)
    return tensors, files, paths[0].name


def check_folder(path: Path) -> None:
    """Raises UserError where `path` is a file, or a folder with anything else in it, which is never removed."""
    if path.is_file():
        raise UserError(
            f"a folder could not be written, because {path} is a file: name a new folder, or a file that ends in "
            ".safetensors or .ckpt."
        )
    strangers = {entry.name for entry in path.iterdir()} if path.is_dir() else set()
    strangers -= {"model_index.json", *FOLDERS.values(), *OTHER_FOLDERS}
    if strangers:
        raise UserError(f"{path} is a folder with other things in it ({min(strangers)}): name a new or an empty one.")


def write_folder(path: Path, parts: dict[str, dict[str, Tensor]], config: dict) -> None:
    """Writes a folder that diffusers and transformers load. parts: the state dicts by our names; config: complete.

    Raises UserError as `check_folder` does.
    """
    check_folder(path)
    rename: dict[str, Callable] = {
        "unet": diffusers_keys.unet_to_diffusers,
        "vae": diffusers_keys.vae_to_diffusers,
        "clip": diffusers_keys.clip_to_diffusers,
    }
    with replacing(path) as part:
        write_configs(part, config)
        for name, folder in FOLDERS.items():
            file = "model.safetensors" if name == "clip" else "diffusion_pytorch_model.safetensors"
            write_safetensors(part / folder / file, rename[name](parts[name]), {"format": "pt"})
        (part / "scheduler").mkdir()
        write_json(part / "scheduler" / "scheduler_config.json", scheduler_config(prediction_of(config)))
        write_tokenizer(part / "tokenizer")


def write_configs(folder: Path, config: dict) -> None:
    """Creates a folder with the config files of the networks and no weights."""
    for part, name in FOLDERS.items():
        (folder / name).mkdir(parents=True)
        write_json(folder / name / "config.json", CONFIGS[part](config))
    write_json(folder / "model_index.json", model_index(config))


def write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_tokenizer(folder: Path) -> None:
    tokenizer = Tokenizer()
    folder.mkdir()
    write_json(folder / "vocab.json", tokenizer.ids)
    merges = "".join(f"{first} {second}\n" for first, second in tokenizer.ranks)
    (folder / "merges.txt").write_text("#version: 0.2\n" + merges, encoding="utf-8")
    marks = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    write_json(folder / "special_tokens_map.json", marks)
    about = {"tokenizer_class": "CLIPTokenizer", "model_max_length": MAX_LENGTH, "do_lower_case": True}
    write_json(folder / "tokenizer_config.json", about | {"add_prefix_space": False} | marks)


def unet_config(config: dict) -> dict:
    unet = config["unet"]
    attention = [level in unet["attention_levels"] for level in range(len(unet["channel_mult"]))]
    return {
        "_class_name": "UNet2DConditionModel",
        "act_fn": "silu",
        "attention_head_dim": unet["num_heads"],
        "block_out_channels": [mult * unet["model_channels"] for mult in unet["channel_mult"]],
        "cross_attention_dim": unet["context_dim"],
        "down_block_types": ["CrossAttnDownBlock2D" if here else "DownBlock2D" for here in attention],
        "in_channels": unet["in_channels"],
        "layers_per_block": unet["num_res_blocks"],
        **({} if unet["middle_blocks"] else {"mid_block_type": None}),
        "norm_eps": 1e-5,
        "norm_num_groups": 32,
        "out_channels": unet["out_channels"],
        "sample_size": config["image_size"] // 2 ** (len(config["vae"]["channel_mult"]) - 1),
        "up_block_types": ["CrossAttnUpBlock2D" if here else "UpBlock2D" for here in reversed(attention)],
    }


def vae_config(config: dict) -> dict:
    vae = config["vae"]
    levels = len(vae["channel_mult"])
    return {
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": [mult * vae["channels"] for mult in vae["channel_mult"]],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "in_channels": 3,
        "latent_channels": vae["z_channels"],
        "layers_per_block": vae["num_res_blocks"],
        "norm_num_groups": 32,
        "out_channels": 3,
        "sample_size": config["image_size"],
        "scaling_factor": LATENT_SCALE,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }


def clip_config(config: dict) -> dict:
    clip = config["clip"]
    return {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "bos_token_id": 0,  # these three are as published with v1-5; transformers recognizes old files by them
        "eos_token_id": 2,
        "pad_token_id": 1,
        "hidden_act": "quick_gelu",
        "hidden_size": clip["width"],
        "intermediate_size": 4 * clip["width"],
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": clip["max_length"],
        "num_attention_heads": clip["heads"],
        "num_hidden_layers": clip["layers"],
        "projection_dim": clip["width"],
        "vocab_size": clip["vocab_size"],
    }


def model_index(config: dict) -> dict:
    inpaints = config["unet"]["in_channels"] == 9
    return {
        "_class_name": "StableDiffusionInpaintPipeline" if inpaints else "StableDiffusionPipeline",
        "_diffusers_version": "0.6.0",  # v1-5's; without one, inpainting models are taken for older ones and refused
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", scheduler_config(prediction_of(config))["_class_name"]],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }


def scheduler_config(prediction: Prediction) -> dict:
    """Returns the config of diffusers' scheduler; zero terminal SNR needs DDIM with trailing times."""
    config = SCHEDULER | ({"prediction_type": "v_prediction"} if prediction.v else {})
    if not prediction.zero_snr:
        return config
    del config["skip_prk_steps"]
    return config | {"_class_name": "DDIMScheduler", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}


CONFIGS = {"unet": unet_config, "vae": vae_config, "clip": clip_config}

SCHEDULER = {
    "_class_name": "PNDMScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
}
