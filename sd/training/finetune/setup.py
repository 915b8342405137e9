"""What a run of teaching needs before its first step: a model, pictures as latents, settings."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from sd.pipeline.stable_diffusion import StableDiffusion
from sd.training.distributed import join_processes
from sd.training.finetune.batch import Source
from sd.training.finetune.data.captions import KINDS, Captions
from sd.training.finetune.data.image_folder import Photo, Photos
from sd.training.finetune.data.long_captions import fits
from sd.training.finetune.latent_cache import LatentCache
from sd.training.finetune.recipes import Recipe, is_small
from sd.training.loop import Settings
from sd.utils.device import DTYPES, cpu_has_bf16, default_device

FEWEST_TO_HOLD_OUT = 5  # pictures: of fewer none can be spared
MOST_HELD_OUT = 8
NAMED = 5  # files whose captions are cut
MANY = 200  # pictures: from here on one view of each, in half precision


def kind_of(pipe: StableDiffusion, recipe: Recipe) -> str:
    """Of captions: the bundled model's never say "a photo"."""
    return f"plain {recipe.kind}" if is_small(pipe) else recipe.kind


def sources(
    pipe: StableDiffusion, recipe: Recipe, run: Path, photos: Photos, prior_folder: Path | None, say: Callable
) -> tuple[Source, Source, Source | None]:
    """(what is learnt from, what is held out, pictures of the class), encoded now or in an earlier go."""

    def source(photos: Photos, file: str, kind: str, word: str | None, class_word: str | None) -> Source:
        many = len(photos) > MANY
        latents = LatentCache(
            photos,
            pipe.vae,
            recipe.size,
            flip=recipe.flip,
            random_crop=recipe.crops > 1 and not many,
            crops=recipe.crops,
            buckets=recipe.buckets,
            seed=recipe.seed,
            dtype=torch.float16 if many else torch.float32,
            file=run / file,
            say=say,
        )
        fitting = partial(fits, pipe.tokenizer, tokens=recipe.max_token_length)
        captions = Captions(photos, word, kind, class_word, fits=fitting)
        return Source(latents, captions, list(range(len(photos))), 1.0, recipe.noise_offset)

    kind = kind_of(pipe, recipe)
    every = source(photos, "latents.pt", kind, recipe.word or None, recipe.class_word)
    if every.captions.shortened:
        say(told_of_cuts(every.captions.shortened, recipe.max_token_length))
    count = min(MOST_HELD_OUT, max(len(photos) // 20, int(len(photos) >= FEWEST_TO_HOLD_OUT)))
    order = torch.randperm(len(photos), generator=torch.Generator().manual_seed(recipe.seed)).tolist()
    spared = order[:count]
    taken = [i for i in range(len(photos)) if i not in spared]
    learnt = replace(every, places=[i for i in taken for _ in range(photos.photos[i].repeats)])
    held_out = replace(every, places=sorted(spared) or taken, noise_offset=0.0)
    if prior_folder is None:
        return learnt, held_out, None
    prompt = KINDS[kind].templates[0].format(recipe.class_word)
    prior = source(Photos(prior_folder, caption=prompt, say=lambda _: None), "class.pt", kind, None, None)
    return learnt, held_out, replace(prior, weight=recipe.prior_weight, places=prior.places[: recipe.class_images])


def told_of_cuts(photos: list[Photo], tokens: int) -> str:
    """Which captions are too long, in a sentence."""
    names = ", ".join(photo.path.name for photo in photos[:NAMED])
    more = f" and {len(photos) - NAMED} more" if len(photos) > NAMED else ""
    return f"warning: captions of over {tokens} tokens are cut at their end (the word stays in them): {names}{more}"


def loop_settings(recipe: Recipe, method: str, pipe: StableDiffusion, ranks: int) -> Settings:
    """Frozen networks compute in their own precision, fp16 with scaled gradients; DreamBooth's fp32 by autocast."""
    scale = recipe.batch * recipe.accumulate * ranks if recipe.scale_lr else 1
    own = "fp16" if pipe.dtype == torch.float16 else "fp32"
    return Settings(
        steps=recipe.steps,
        batch=recipe.batch,
        accumulate=recipe.accumulate,
        lr=(recipe.lr if recipe.trains_unet else recipe.text_lr) * scale,
        shares={"clip": recipe.text_lr / recipe.lr} if recipe.lr else {},
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
        device=pipe.device.type,
        save_minutes=recipe.save_minutes,
    )


def best_precision(device: torch.device | str) -> str:
    """What the device computes fastest in, without harm: "bf16", "fp16" or "fp32"."""
    kind = torch.device(device).type
    if kind == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    return "bf16" if kind == "cpu" and cpu_has_bf16() else "fp32"


def load_to_teach(
    method: str,
    path: str | Path | None = None,
    device: str | None = None,
    precision: str | None = None,
    vae: str | None = None,
) -> StableDiffusion:
    """A checkpoint as `teach` wants it: in half precision where the networks stay frozen, in fp32 where they do not."""
    join_processes(str(default_device() if device is None else device))
    device = default_device() if device is None else torch.device(device)
    kept_in = "fp32" if method == "dreambooth" else precision or best_precision(device)
    return StableDiffusion.from_pretrained(path, device, DTYPES[kept_in], vae)


def summary(recipe: Recipe, learner, loop: Settings, source: Source, held_out: Source, ranks: int) -> str:
    count = sum(parameter.numel() for parameter in learner.module.parameters())
    pictures = recipe.batch * recipe.accumulate * ranks
    scaled = f" = {loop.lr / pictures:g} x {pictures} pictures a step" if recipe.scale_lr else ""
    apart = set(held_out.places) - set(source.places)
    held = f"{len(apart)} held out" if apart else "too few to hold one out"
    images = len(set(source.places))
    repeated = f" ({len(source.places)} with repeats)" if len(source.places) > images else ""
    alone = "" if recipe.trains_unet else ", of the text encoder alone"
    return (
        f"{count:,} parameters to train, {recipe.steps} steps of {pictures} pictures\n"
        f"effective learning rate {loop.lr:g}{scaled} ({recipe.schedule}){alone}\n"
        f"{images} pictures to learn from{repeated}, {held}; captions such as {source.captions.wordings[0][0]!r}"
    )
