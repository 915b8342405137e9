"""Set up a run before its first step: the model, the latents and the training configuration."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Protocol

import torch

from sd.pipeline.stable_diffusion import StableDiffusion
from sd.training.distributed import join_processes
from sd.training.finetune.batch import TrainingSource
from sd.training.finetune.data.captions import KINDS, Captions
from sd.training.finetune.data.image_folder import ImageFile, ImageFolder
from sd.training.finetune.data.long_captions import fits_in_chunks
from sd.training.finetune.latent_cache import LatentCache
from sd.training.finetune.recipes import Recipe, is_small
from sd.training.loop import TrainConfig
from sd.utils.device import DTYPES, best_precision, default_device

MIN_TO_HOLD_OUT = 5  # images; with fewer none is held out
MAX_HELD_OUT = 8
MAX_LISTED = 5  # file names in a warning
LARGE_SET = 200  # images; above this one view of each, in half precision


def caption_kind(pipe: StableDiffusion, recipe: Recipe) -> str:
    """Return the kind of captions for this model: those of the bundled model never contain "a photo"."""
    return f"plain {recipe.kind}" if is_small(pipe) else recipe.kind


def build_sources(
    pipe: StableDiffusion, recipe: Recipe, run: Path, folder: ImageFolder, prior_folder: Path | None, say: Callable
) -> tuple[TrainingSource, TrainingSource, TrainingSource | None]:
    """Return the training images, the held-out images and the class images, encoded now or in an earlier run."""

    def source(folder: ImageFolder, file: str, kind: str, word: str | None, class_word: str | None) -> TrainingSource:
        latents = encode_folder(folder, pipe, recipe, recipe.buckets, run / file, say)
        fitting = partial(fits_in_chunks, pipe.tokenizer, tokens=recipe.max_token_length)
        captions = Captions(folder, word, kind, class_word, fits=fitting)
        return TrainingSource(latents, captions, list(range(len(folder))), 1.0, recipe.noise_offset)

    kind = caption_kind(pipe, recipe)
    every = source(folder, "latents.pt", kind, recipe.word or None, recipe.class_word)
    if every.captions.shortened:
        say(truncation_warning(every.captions.shortened, recipe.max_token_length))
    count = min(MAX_HELD_OUT, max(len(folder) // 20, int(len(folder) >= MIN_TO_HOLD_OUT)))
    order = torch.randperm(len(folder), generator=torch.Generator().manual_seed(recipe.seed)).tolist()
    spared = order[:count]
    taken = [i for i in range(len(folder)) if i not in spared]
    train_source = replace(every, indices=[i for i in taken for _ in range(folder.images[i].repeats)])
    held_out = replace(every, indices=sorted(spared) or taken, noise_offset=0.0)
    if prior_folder is None:
        return train_source, held_out, None
    prompt = KINDS[kind].templates[0].format(recipe.class_word)
    prior = source(ImageFolder(prior_folder, caption=prompt, say=lambda _: None), "class.pt", kind, None, None)
    return (
        train_source,
        held_out,
        replace(prior, weight=recipe.prior_weight, indices=prior.indices[: recipe.class_images]),
    )


class Views(Protocol):
    """The part of a recipe that says which views of an image are encoded; see `LatentCache`."""

    @property
    def size(self) -> int: ...
    @property
    def flip(self) -> bool: ...
    @property
    def crops(self) -> int: ...
    @property
    def seed(self) -> int: ...


def encode_folder(
    folder: ImageFolder, pipe: StableDiffusion, views: Views, buckets: bool, file: Path, say: Callable = print
) -> LatentCache:
    """Return the latents of a folder, encoded now or in an earlier run; a large set has one crop each, in fp16."""
    many = len(folder) > LARGE_SET
    return LatentCache(
        folder,
        pipe.vae,
        views.size,
        flip=views.flip,
        random_crop=views.crops > 1 and not many,
        crops=views.crops,
        buckets=buckets,
        seed=views.seed,
        dtype=torch.float16 if many else torch.float32,
        file=file,
        say=say,
    )


def truncation_warning(images: list[ImageFile], tokens: int) -> str:
    """Return a sentence that names the images whose captions are too long."""
    names = ", ".join(image.path.name for image in images[:MAX_LISTED])
    more = f" and {len(images) - MAX_LISTED} more" if len(images) > MAX_LISTED else ""
    return f"warning: captions of more than {tokens} tokens are truncated (the word stays in them): {names}{more}"


def train_config(recipe: Recipe, method: str, pipe: StableDiffusion, world_size: int) -> TrainConfig:
    """Return the configuration of the training loop.

    Frozen networks compute in their own precision, with scaled gradients in fp16; DreamBooth's fp32 weights use
    autocast.
    """
    scale = recipe.batch * recipe.accumulate * world_size if recipe.scale_lr else 1
    own = "fp16" if pipe.dtype == torch.float16 else "fp32"
    return TrainConfig(
        steps=recipe.steps,
        batch=recipe.batch,
        accumulate=recipe.accumulate,
        lr=(recipe.lr if recipe.trains_unet else recipe.text_lr) * scale,
        lr_multipliers={"clip": recipe.text_lr / recipe.lr} if recipe.lr else {},
        schedule=recipe.schedule,
        warmup=recipe.warmup,
        final_lr=recipe.final_lr,
        weight_decay=recipe.weight_decay,
        betas=(0.9, 0.999),
        ema=recipe.ema,
        precision=(recipe.precision or best_precision(pipe.device)) if method == "dreambooth" else own,
        math_attention=is_small(pipe),
        by_example=True,
        seed=recipe.seed,
        device=str(pipe.device),
        save_minutes=recipe.save_minutes,
    )


def load_for_training(
    method: str,
    path: str | Path | None = None,
    device: str | None = None,
    precision: str | None = None,
    vae: str | None = None,
    prediction: str | None = None,
) -> StableDiffusion:
    """Load a checkpoint for `finetune`: in half precision where the networks stay frozen, in fp32 where they are
    trained. prediction: for a checkpoint whose marks are missing, one of `predictions.PREDICTIONS`.
    """
    join_processes(str(default_device() if device is None else device))
    target = default_device() if device is None else torch.device(device)
    weights_in = "fp32" if method == "dreambooth" else precision or best_precision(target)
    return StableDiffusion.from_pretrained(path, target, DTYPES[weights_in], vae, prediction)


def describe_run(
    recipe: Recipe, tuner, config: TrainConfig, source: TrainingSource, held_out: TrainingSource, world_size: int
) -> str:
    count = sum(parameter.numel() for parameter in tuner.module.parameters())
    per_step = recipe.batch * recipe.accumulate * world_size
    scaled = f" = {config.lr / per_step:g} x {per_step} images per step" if recipe.scale_lr else ""
    apart = set(held_out.indices) - set(source.indices)
    held = f"{len(apart)} held out" if apart else "none held out (too few)"
    images = len(set(source.indices))
    repeated = f" ({len(source.indices)} with repeats)" if len(source.indices) > images else ""
    alone = "" if recipe.trains_unet else ", text encoder only"
    return (
        f"{count:,} trainable parameters, {recipe.steps} steps of {per_step} images\n"
        f"effective learning rate {config.lr:g}{scaled} ({recipe.schedule}){alone}\n"
        f"{images} training images{repeated}, {held}; captions such as {source.captions.wordings[0][0]!r}"
    )
