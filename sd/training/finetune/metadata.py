"""Training metadata in the resulting files, under the keys that other programs read: `ss_*` and `modelspec.*`."""

import json
import math
import os
import time
from collections import Counter
from datetime import datetime, timezone
from pathlib import Path

from sd.pipeline.stable_diffusion import StableDiffusion
from sd.training.finetune.batch import TrainingSource
from sd.training.finetune.data.image_folder import ImageFolder
from sd.training.finetune.outputs import TRAINED_FROM
from sd.training.finetune.recipes import Recipe
from sd.training.finetune.runs import printable
from sd.training.loop import TrainConfig

KINDS = {"ti": "/textual-inversion", "lora": "/lora", "dreambooth": ""}


def start_time() -> float:
    """Return the seconds since 1970; SOURCE_DATE_EPOCH overrides them, for files that must be equal bit for bit."""
    return float(os.environ.get("SOURCE_DATE_EPOCH", time.time()))


def metadata(
    method: str,
    name: str,
    recipe: Recipe,
    pipe: StableDiffusion,
    folder: ImageFolder,
    config: TrainConfig,
    train_source: TrainingSource,
    began: float,
    world_size: int = 1,
) -> dict[str, str]:
    """Return all metadata of a run as text."""
    base = printable(Path(pipe.path).name) if pipe.path else None
    images = sum(image.repeats for image in folder.images)
    per_step = recipe.batch * recipe.accumulate * world_size
    batches = math.ceil(len(train_source.indices) / per_step)
    entries = {
        "ss_output_name": name.strip("<>"),
        "ss_training_started_at": began,
        "ss_sd_model_name": base,
        "ss_num_train_images": images,
        "ss_num_batches_per_epoch": batches,
        "ss_num_epochs": math.ceil(recipe.steps / batches),
        "ss_max_train_steps": recipe.steps,
        "ss_learning_rate": config.lr,
        "ss_unet_lr": config.lr if recipe.trains_unet else 0.0,
        "ss_text_encoder_lr": recipe.text_lr if "text" in recipe.targets else None,
        "ss_lr_scheduler": recipe.schedule,
        "ss_lr_warmup_steps": recipe.warmup,
        "ss_optimizer": f"torch.optim.adamw.AdamW(weight_decay={recipe.weight_decay},betas={config.betas})",
        "ss_batch_size_per_device": recipe.batch,
        "ss_gradient_accumulation_steps": recipe.accumulate,
        "ss_gradient_checkpointing": recipe.checkpointing,
        "ss_mixed_precision": {"fp32": "no"}.get(config.precision, config.precision),
        "ss_resolution": f"({recipe.size}, {recipe.size})",
        "ss_max_token_length": recipe.max_token_length,
        "ss_clip_skip": 1,
        "ss_min_snr_gamma": recipe.min_snr or None,
        "ss_noise_offset": recipe.noise_offset or None,
        "ss_v_parameterization": True if pipe.prediction.v else None,
        "ss_zero_terminal_snr": True if pipe.prediction.zero_snr else None,
        "ss_seed": recipe.seed,
        "ss_flip_aug": recipe.flip,
        "ss_enable_bucket": recipe.buckets,
        "ss_training_comment": f"say {recipe.phrase}" if recipe.phrase else "trained on captions as they are",
        **dataset_metadata(folder, train_source, recipe, pipe),
        **modelspec(method, name, recipe, began, "v" if pipe.prediction.v else "epsilon"),
        TRAINED_FROM: base or "unknown",
    }
    return {key: str(value) for key, value in entries.items() if value is not None}


def dataset_metadata(
    folder: ImageFolder, train_source: TrainingSource, recipe: Recipe, pipe: StableDiffusion
) -> dict[str, str]:
    """Return metadata of the images (folders, tags and sizes) as JSON in kohya's forms."""
    folders: dict[str, dict] = {}
    tags: dict[str, Counter] = {}
    for image, wordings in zip(folder.images, train_source.captions.wordings):
        parent = printable(image.path.absolute().parent.name)
        counted = folders.setdefault(parent, {"n_repeats": image.repeats, "img_count": 0})
        counted["img_count"] += 1
        has_caption = image.captions or image.folder_caption in wordings
        captions = wordings if has_caption else wordings[:1]  # only the first of the templates
        words = [tag.strip().lower() for caption in captions for tag in caption.split(",")]
        tags.setdefault(parent, Counter()).update(printable(word) for word in words if word)
    sides = [(w * pipe.vae.downsample, h * pipe.vae.downsample) for h, w in train_source.latents.shapes]
    counts: Counter = Counter()
    for side, image in zip(sides, folder.images):
        counts[side] += image.repeats
    errors = [abs(image.size[0] / image.size[1] - w / h) for (w, h), image in zip(sides, folder.images)]
    buckets = {str(i): {"resolution": list(side), "count": counts[side]} for i, side in enumerate(sorted(counts))}
    info = {"buckets": buckets, "mean_img_ar_error": sum(errors) / len(errors)} if recipe.buckets else None
    return {
        "ss_dataset_dirs": json.dumps(folders),
        "ss_tag_frequency": json.dumps(tags),
        "ss_bucket_info": json.dumps(info),
    }


def modelspec(method: str, name: str, recipe: Recipe, began: float, prediction: str) -> dict[str, str | None]:
    """Return metadata in the form of Stability AI's ModelSpec 1.0, which the web UIs show."""
    return {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"stable-diffusion-v1{KINDS[method]}",
        "modelspec.implementation": "diffusers" if recipe.file_format in ("diffusers", "peft") else "sgm",
        "modelspec.title": name.strip("<>"),
        "modelspec.date": datetime.fromtimestamp(int(began), timezone.utc).strftime("%Y-%m-%dT%H:%M:%S"),
        "modelspec.resolution": f"{recipe.size}x{recipe.size}",
        "modelspec.prediction_type": prediction,
        "modelspec.trigger_phrase": recipe.phrase or None,
    }
