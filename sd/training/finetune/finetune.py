"""Fine-tune a model on an object or a style from a folder of images: textual inversion, LoRA and DreamBooth."""

import math
import re
import shlex
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm import tqdm

from sd.checkpoints.discovery import BUNDLED, EMBEDDINGS, LORAS, WEIGHTS, Models
from sd.checkpoints.predictions import EPS
from sd.evaluation.clip_score import LazyImages, load_clip
from sd.optimization.registry import TRAINABLE, frozen_names
from sd.pipeline.stable_diffusion import StableDiffusion
from sd.tokenizer import clean_text, contains_placeholder
from sd.training.distributed import join_processes
from sd.training.finetune.advice import format_table, warnings
from sd.training.finetune.batch import DiffusionLoss, fixed_examples
from sd.training.finetune.data.captions import KINDS
from sd.training.finetune.data.image_folder import ImageFolder
from sd.training.finetune.disk_space import check_free_space, clean_run, format_size, required_space
from sd.training.finetune.gradient_checkpointing import disable_gradient_checkpointing, enable_gradient_checkpointing
from sd.training.finetune.metadata import metadata, start_time
from sd.training.finetune.methods import METHODS
from sd.training.finetune.outputs import check_output, copy_result, resolve_output
from sd.training.finetune.prior_preservation import generate_class_images
from sd.training.finetune.recipes import Recipe, recipe_for
from sd.training.finetune.runs import check_same_run, check_steps, clear_orphans, content_hash, run_identity, write_note
from sd.training.finetune.setup import build_sources, caption_kind, describe_run, train_config
from sd.training.finetune.validation import OnEvent, Validator
from sd.training.loop import train
from sd.training.loss import snr_weights
from sd.utils.errors import UserError

RUNS = WEIGHTS.parent / "runs"
MAX_REFERENCES = 64  # training images to compare with
MAX_CAPTION_PREVIEWS = 4  # captions used as validation prompts where there is no word


@dataclass
class Result:
    """The result of a run: the file of the best step, the contact sheet of steps by prompts, and how the step was
    chosen.

    rule: the reason for the choice, as a sentence without its full stop. warnings: sentences about doubts.
    """

    path: Path
    sheet: Path
    best_step: int
    rule: str = ""
    warnings: tuple[str, ...] = ()


def finetune(
    method: str,
    images: str | Path,
    name: str,
    pipe: StableDiffusion,
    settings: Recipe | None = None,
    on_event: OnEvent | None = None,
    run: Path | None = None,
    output: Path | None = None,
    say: Callable[[str], None] = tqdm.write,
) -> Result:
    """Fine-tune a model, or resume a run that was stopped; the same call after a kill ends in the same bits.

    method: "ti", "lora" or "dreambooth".
    images: a folder of images, with or without captions.
    name: the name of the result; for "ti" the new word.
    pipe: the base model. Its precision is that of the frozen networks. Afterwards it is unchanged bit for bit, except
        by "dreambooth".
    settings: from `recipe_for`; None for the defaults.
    on_event: called after each step with {"step", "steps", "loss", "held_out", "preview": path, ...}, the last ones
        None except every few steps. A KeyboardInterrupt from it saves and stops.
    run: the folder of everything that belongs to this run; None for runs/METHOD-NAME.
    output: the path of the result; None for the default folder.

    Raises UserError, with nothing changed, for invalid input, and KeyboardInterrupt after a stop.
    """
    recipe = settings or recipe_for(method, pipe, name)
    rank, world_size = join_processes(str(pipe.device))
    say = escape_undecodable(say) if rank == 0 else lambda sentence: None
    check_name(name)
    output, run = resolve_paths(method, name, pipe, recipe, run, output, leader=rank == 0)
    say(describe_base_model(pipe))
    for sentence in embedding_notes(method, recipe, pipe.adapters.models):
        say(sentence)
    folder = ImageFolder(images, say=say)
    recipe, note = open_run(method, name, pipe, recipe, run, folder, Path(images), say)
    with ExitStack() as cleanup:
        cleanup.enter_context(trainable_optimizations(pipe))
        class_folder = class_image_folder(method, pipe, recipe, rank, world_size)
        tuner = METHODS[method](pipe, name, recipe)
        cleanup.callback(tuner.close)
        optimize_frozen(pipe, recipe)
        check_free_space(required_space(method, tuner.module, pipe, recipe, len(folder)), run, output, say)
        train_source, held_out, prior_source = build_sources(pipe, recipe, run, folder, class_folder, say)
        lowest, highest = (recipe.least_snr, recipe.min_snr) if recipe.min_snr else (0.0, math.inf)
        weights = snr_weights(lowest, highest, pipe.prediction)
        diffusion_loss = DiffusionLoss(pipe.unet, tuner.contexts, weights, train_source, prior_source, pipe.prediction)
        config = train_config(recipe, method, pipe, world_size)
        say(describe_run(recipe, tuner, config, train_source, held_out, world_size))
        entries = metadata(method, output.stem, recipe, pipe, folder, config, train_source, note["began"], world_size)
        examples = fixed_examples(held_out)
        validator = Validator(pipe, tuner, recipe, run, diffusion_loss, examples, entries, on_event, say)
        if recipe.checkpointing:
            cleanup.callback(disable_gradient_checkpointing, pipe.unet)
            enable_gradient_checkpointing(pipe.unet)
        if rank == 0:
            write_note(run, note)
            validator.start()
        train(tuner.module, diffusion_loss, len(train_source.indices), run, config, on_step=validator)
        return finish_run(validator, folder, output, note, say) if rank == 0 else Result(output, run / "sheet.png", 0)


@contextmanager
def trainable_optimizations(pipe: StableDiffusion) -> Iterator[None]:
    """Within the context, only the optimizations that have gradients are on; after it, those of before are chosen."""
    optimizations = pipe.optimizations
    pipe.set_optimizations(TRAINABLE)
    pipe.optimize()  # as every generation does, so that a step has the same bits with and without previews before it
    try:
        yield
    finally:
        pipe.set_optimizations(optimizations)


def optimize_frozen(pipe: StableDiffusion, recipe: Recipe) -> None:
    """Adds the optimizations whose gradients need frozen weights, where the method trains none of the U-Net's own.

    They are left out with gradient checkpointing, whose point is less memory: `winograd` takes more.
    """
    weight = pipe.unet.out[2].weight
    if not (weight.requires_grad or recipe.checkpointing):
        pipe.set_optimizations(frozen_names(weight.device, weight.dtype))
        pipe.optimize()


def open_run(
    method: str,
    name: str,
    pipe: StableDiffusion,
    recipe: Recipe,
    run: Path,
    folder: ImageFolder,
    images: Path,
    say: Callable[[str], None],
) -> tuple[Recipe, dict]:
    """Return the recipe with its validation prompts, and the note of a new run or of the one that is resumed.

    images: the path of `folder`.
    Raises UserError where `run` has another run, or one that cannot be resumed with these settings.
    """
    captions = tuple(image.caption or "" for image in folder.images[:MAX_CAPTION_PREVIEWS])
    recipe = replace(recipe, prompts=recipe.prompts or captions)
    note = check_same_run(run, run_identity(method, name, pipe, recipe, folder, images))
    check_steps(run, note, recipe.steps, say)
    note.setdefault("began", start_time())
    return recipe, note


def resolve_paths(
    method: str, name: str, pipe: StableDiffusion, recipe: Recipe, run: Path | None, output: Path | None, leader: bool
) -> tuple[Path, Path]:
    """Return the result's path and the run's folder, both checked and cleared of partial files of killed processes."""
    place = {"ti": EMBEDDINGS, "lora": LORAS, "dreambooth": WEIGHTS}[method]
    output = resolve_output(method, name, place, output, recipe.file_format)
    run = Path(run or RUNS / f"{method}-{output.stem}")
    if leader:
        clear_orphans(run, output)
    check_output(output, pipe, run, "give another --output" if method == "ti" else "give another --name or --output")
    return output, run


def escape_undecodable(say: Callable[[str], None]) -> Callable[[str], None]:
    """Wrap `say` so that it accepts file names that are not UTF-8."""
    return lambda sentence: say(sentence.encode("utf-8", "backslashreplace").decode())


def embedding_notes(method: str, recipe: Recipe, models: Models) -> list[str]:
    """Return a sentence where the name of an embedding is in the new word, as prompts would use both."""
    word = clean_text(recipe.word or "")
    same = [name for name in models.names("embedding") if contains_placeholder(word, name.rpartition("/")[2])]
    if method == "ti" or not same:
        return []
    return [
        f"note: there is an embedding named {same[0]}, which prompts with that word use too: choose another name, or "
        "move the embedding away."
    ]


def describe_base_model(pipe: StableDiffusion) -> str:
    """Return a sentence that names the base model."""
    if pipe.path is None:
        return "base model: the one in memory"
    bundled = " (the bundled model)" if Path(pipe.path).resolve() == BUNDLED.resolve() else ""
    predicts = f", which predicts {pipe.prediction.name}" if pipe.prediction != EPS else ""
    return f"base model: {pipe.path}{bundled}{predicts}"


def class_image_folder(method: str, pipe: StableDiffusion, recipe: Recipe, rank: int, world_size: int) -> Path | None:
    """Return the folder of class images, generated now or earlier; None where the method uses none."""
    if method != "dreambooth" or not recipe.class_word or recipe.prior_weight == 0:
        return None
    prompt = KINDS[caption_kind(pipe, recipe)].templates[0].format(recipe.class_word)
    settings = dict(steps=recipe.preview_steps, guidance_scale=recipe.guidance_scale, sampler="dpmpp_2m")
    return generate_class_images(
        pipe, prompt, recipe.class_images, RUNS / "class", recipe.size, rank, world_size, content_hash(pipe), **settings
    )


def check_name(name: str) -> None:
    """Raise UserError where the name cannot be a file name."""
    if not re.fullmatch(r"<?[\w][\w.-]*>?", name):
        raise UserError(f"invalid name {name!r}: use letters, digits, - and _, such as my-dog.")


def finish_run(
    validator: Validator, folder: ImageFolder, output: Path, note: dict, say: Callable[[str], None]
) -> Result:
    """Score every saved step, and copy the file of the best one to where prompts find it."""
    scorer = load_clip()
    references = LazyImages([image.path for image in folder.images[:MAX_REFERENCES]])
    scores, advice = validator.evaluate_steps(scorer, references)
    doubts = warnings(scores, advice)
    say(format_table(scores, scorer.name, advice))
    if sentence := validator.tuner.warning():
        doubts.append(sentence)
        say(f"warning: {sentence}")
    copy_result(
        validator.step_file(advice.step), output, advice.step, validator.pipe, validator.recipe, validator.metadata
    )
    say(f"{output}  step {advice.step}; the preview images of all steps are in {validator.sheet}")
    say(usage_command(validator.tuner.method, validator.recipe, output, validator.pipe))
    if validator.recipe.clean:
        freed = clean_run(validator.run)
        write_note(validator.run, note | {"cleaned": str(output)})
        say(f"cleaned up: {format_size(freed)} deleted from {validator.run}; its sheet, scores and log are kept")
    return Result(output, validator.sheet, advice.step, advice.rule, tuple(doubts))


def usage_command(method: str, recipe: Recipe, output: Path, pipe: StableDiffusion) -> str:
    """Return a command that generates an image with the result."""
    prompt = recipe.prompts[0].replace("{}", recipe.phrase)
    folder = {"ti": EMBEDDINGS, "lora": LORAS, "dreambooth": WEIGHTS}[method]
    name = shlex.quote(output.stem if output.parent == folder else str(output))
    is_bundled = pipe.path is not None and Path(pipe.path).resolve() == BUNDLED.resolve()
    base = f" --ckpt {shlex.quote(str(pipe.path))}" if method != "dreambooth" and pipe.path and not is_bundled else ""
    option = {"ti": "embedding", "lora": "lora", "dreambooth": "ckpt"}[method]
    return f"use it: python scripts/txt2img.py {shlex.quote(prompt)} --{option} {name}{base}"
