"""What a trained file says of its making, under the keys that other programs read: `ss_*` and `modelspec.*`."""

import json
import math
import os
import time
from collections import Counter
from datetime import datetime, timezone
from pathlib import Path

from sd.pipeline.stable_diffusion import StableDiffusion
from sd.training.finetune.batch import Source
from sd.training.finetune.data.image_folder import Photos
from sd.training.finetune.outputs import TRAINED_FROM
from sd.training.finetune.recipes import Recipe
from sd.training.finetune.runs import printable
from sd.training.loop import Settings

KINDS = {"ti": "/textual-inversion", "lora": "/lora", "dreambooth": ""}


def begun_at() -> float:
    """Now, in seconds since 1970; or SOURCE_DATE_EPOCH, for files that are to be equal bit for bit."""
    return float(os.environ.get("SOURCE_DATE_EPOCH", time.time()))


def facts(
    method: str,
    name: str,
    recipe: Recipe,
    pipe: StableDiffusion,
    photos: Photos,
    loop: Settings,
    learnt: Source,
    began: float,
    ranks: int = 1,
) -> dict[str, str]:
    """Everything about a run that its files carry, as text."""
    base = printable(Path(pipe.path).name) if pipe.path else None
    images = sum(photo.repeats for photo in photos.photos)
    pictures = recipe.batch * recipe.accumulate * ranks
    batches = math.ceil(len(learnt.places) / pictures)
    said = {
        "ss_output_name": name.strip("<>"),
        "ss_training_started_at": began,
        "ss_sd_model_name": base,
        "ss_num_train_images": images,
        "ss_num_batches_per_epoch": batches,
        "ss_num_epochs": math.ceil(recipe.steps / batches),
        "ss_max_train_steps": recipe.steps,
        "ss_learning_rate": loop.lr,
        "ss_unet_lr": loop.lr if recipe.trains_unet else 0.0,
        "ss_text_encoder_lr": recipe.text_lr if "text" in recipe.targets else None,
        "ss_lr_scheduler": recipe.schedule,
        "ss_lr_warmup_steps": recipe.warmup,
        "ss_optimizer": f"torch.optim.adamw.AdamW(weight_decay={recipe.weight_decay},betas={loop.betas})",
        "ss_batch_size_per_device": recipe.batch,
        "ss_gradient_accumulation_steps": recipe.accumulate,
        "ss_gradient_checkpointing": recipe.checkpointing,
        "ss_mixed_precision": {"fp32": "no"}.get(loop.precision, loop.precision),
        "ss_resolution": f"({recipe.size}, {recipe.size})",
        "ss_max_token_length": recipe.max_token_length,
        "ss_clip_skip": 1,
        "ss_min_snr_gamma": recipe.min_snr or None,
        "ss_noise_offset": recipe.noise_offset or None,
        "ss_seed": recipe.seed,
        "ss_flip_aug": recipe.flip,
        "ss_enable_bucket": recipe.buckets,
        "ss_training_comment": f"say {recipe.said}" if recipe.said else "trained on captions as they are",
        **data_facts(photos, learnt, recipe, pipe),
        **modelspec(method, name, recipe, began),
        TRAINED_FROM: base or "unknown",
    }
    return {key: str(value) for key, value in said.items() if value is not None}


def data_facts(photos: Photos, learnt: Source, recipe: Recipe, pipe: StableDiffusion) -> dict[str, str]:
    """Of the images: folders, tags and sizes, as JSON in kohya's forms."""
    folders: dict[str, dict] = {}
    tags: dict[str, Counter] = {}
    for photo, said in zip(photos.photos, learnt.captions.wordings):
        folder = printable(photo.path.absolute().parent.name)
        counted = folders.setdefault(folder, {"n_repeats": photo.repeats, "img_count": 0})
        counted["img_count"] += 1
        captions = said if photo.captions or photo.folder_caption in said else said[:1]  # of the templates one
        words = [tag.strip().lower() for caption in captions for tag in caption.split(",")]
        tags.setdefault(folder, Counter()).update(printable(word) for word in words if word)
    sides = [(w * pipe.vae.downsample, h * pipe.vae.downsample) for h, w in learnt.latents.shapes]
    counts: Counter = Counter()
    for side, photo in zip(sides, photos.photos):
        counts[side] += photo.repeats
    errors = [abs(photo.size[0] / photo.size[1] - w / h) for (w, h), photo in zip(sides, photos.photos)]
    buckets = {str(i): {"resolution": list(side), "count": counts[side]} for i, side in enumerate(sorted(counts))}
    info = {"buckets": buckets, "mean_img_ar_error": sum(errors) / len(errors)} if recipe.buckets else None
    return {
        "ss_dataset_dirs": json.dumps(folders),
        "ss_tag_frequency": json.dumps(tags),
        "ss_bucket_info": json.dumps(info),
    }


def modelspec(method: str, name: str, recipe: Recipe, began: float) -> dict[str, str | None]:
    """Stability AI's ModelSpec 1.0, which the webuis show."""
    return {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"stable-diffusion-v1{KINDS[method]}",
        "modelspec.implementation": "diffusers" if recipe.dialect in ("diffusers", "peft") else "sgm",
        "modelspec.title": name.strip("<>"),
        "modelspec.date": datetime.fromtimestamp(int(began), timezone.utc).strftime("%Y-%m-%dT%H:%M:%S"),
        "modelspec.resolution": f"{recipe.size}x{recipe.size}",
        "modelspec.prediction_type": "epsilon",
        "modelspec.trigger_phrase": recipe.said or None,
    }
