"""Teach a model a thing or a style from a folder of pictures: textual inversion, LoRA and DreamBooth."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm import tqdm

from sd.evaluation.clip_score import LazyImages, load_clip
from sd.optimization.registry import TRAINABLE
from sd.pipeline.stable_diffusion import BUNDLED, EMBEDDINGS, LORAS, WEIGHTS, StableDiffusion
from sd.training.distributed import join_processes
from sd.training.finetune.advice import table
from sd.training.finetune.batch import Objective, fixed_examples
from sd.training.finetune.data.captions import KINDS
from sd.training.finetune.data.image_folder import Photos
from sd.training.finetune.disk_space import check_room, clean, need, spoken
from sd.training.finetune.gradient_checkpointing import forget_less, forget_more
from sd.training.finetune.metadata import begun_at, facts
from sd.training.finetune.methods import METHODS
from sd.training.finetune.outputs import check_output, deliver, output_for
from sd.training.finetune.prior_preservation import class_pictures
from sd.training.finetune.recipes import Recipe, recipe_for
from sd.training.finetune.runs import about, check_begun, check_steps, clear_orphans, content_hash, write_note
from sd.training.finetune.setup import kind_of, loop_settings, sources, summary
from sd.training.finetune.validation import OnEvent, Watch
from sd.training.loop import train
from sd.training.loss import snr_weights
from sd.utils.errors import UserError

RUNS = WEIGHTS.parent / "runs"
MOST_REFERENCES = 64  # pictures to compare with
PREVIEWS = 4  # captions to draw, where there is no word to draw


@dataclass
class Result:
    """path: the advised file, where prompts find it. sheet: the contact sheet of steps by prompts."""

    path: Path
    sheet: Path
    advised_step: int


def teach(
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
    """Teaches, or goes on with what was stopped; the same call after a kill ends in the same bits.

    method: "ti", "lora" or "dreambooth". images: a folder of pictures, with captions or without. name: of the result;
    for "ti" the new word. pipe: its precision is the frozen networks'. Afterwards it is bit for bit as before, but for
    "dreambooth", which changes it. settings: from `recipe_for`, or the defaults.
    on_event: called after each step with {"step", "steps", "loss", "held_out", "preview": path, ...}, the latter None
    but for every few steps. A KeyboardInterrupt from it saves and stops.
    run: where everything of this run is kept, runs/METHOD-NAME if None. output: where the advised file goes.

    Raises UserError, with nothing changed, for what cannot be done, and KeyboardInterrupt once stopped.
    """
    recipe = settings or recipe_for(method, pipe, name)
    rank, ranks = join_processes(str(pipe.device))
    say = printing(say) if rank == 0 else lambda sentence: None
    check_name(name)
    output, run = places(method, name, pipe, recipe, run, output, leader=rank == 0)
    say(told_of_base(pipe))
    photos = Photos(images, say=say)
    captions = tuple(photo.caption or "" for photo in photos.photos[:PREVIEWS])
    recipe = replace(recipe, prompts=recipe.prompts or captions)
    note = check_begun(run, about(method, name, pipe, recipe, photos, Path(images)))
    check_steps(run, note, recipe.steps, say)
    note.setdefault("began", begun_at())
    wanted = pipe.optimizations
    pipe.set_optimizations(TRAINABLE)
    pipe.optimize()  # as every drawing does: each step then has the same bits, whether or not one was drawn before
    learner = None
    try:
        prior = draw_class(method, pipe, recipe, rank, ranks)
        learner = METHODS[method](pipe, name, recipe)
        check_room(need(method, learner.module, pipe, recipe, len(photos)), run, output, say)
        learnt, held_out, kept_class = sources(pipe, recipe, run, photos, prior, say)
        weights = snr_weights(recipe.least_snr, recipe.min_snr) if recipe.min_snr else snr_weights()
        objective = Objective(pipe.unet, learner.contexts, weights, learnt, kept_class)
        loop = loop_settings(recipe, method, pipe, ranks)
        say(summary(recipe, learner, loop, learnt, held_out, ranks))
        made = facts(method, output.stem, recipe, pipe, photos, loop, learnt, note["began"], ranks)
        watch = Watch(pipe, learner, recipe, run, objective, fixed_examples(held_out), made, on_event, say)
        if recipe.checkpointing:
            forget_more(pipe.unet)
        if rank == 0:
            write_note(run, note)
            watch.start()
        train(learner.module, objective, len(learnt.places), run, loop, on_step=watch)
        return conclude(watch, photos, output, note, say) if rank == 0 else Result(output, run / "sheet.png", 0)
    finally:
        forget_less(pipe.unet)
        if learner is not None:
            learner.close()
        pipe.set_optimizations(wanted)


def places(
    method: str, name: str, pipe: StableDiffusion, recipe: Recipe, run: Path | None, output: Path | None, leader: bool
) -> tuple[Path, Path]:
    """(where the result goes, the run's folder), checked and cleared of what killed processes left."""
    place = {"ti": EMBEDDINGS, "lora": LORAS, "dreambooth": WEIGHTS}[method]
    output = output_for(method, name, recipe, place, output)
    run = Path(run or RUNS / f"{method}-{output.stem}")
    if leader:
        clear_orphans(run, output)
    check_output(output, pipe, run, "give another --output" if method == "ti" else "give another --name or --output")
    return output, run


def printing(say: Callable[[str], None]) -> Callable[[str], None]:
    """`say` for names that are not UTF-8 too."""
    return lambda sentence: say(sentence.encode("utf-8", "backslashreplace").decode())


def told_of_base(pipe: StableDiffusion) -> str:
    """Which model is trained from, in words."""
    if pipe.path is None:
        return "base model: the one in memory"
    bundled = " (the bundled model)" if Path(pipe.path).resolve() == BUNDLED.resolve() else ""
    return f"base model: {pipe.path}{bundled}"


def draw_class(method: str, pipe: StableDiffusion, recipe: Recipe, rank: int, ranks: int) -> Path | None:
    """The folder of class pictures, where the method keeps a class."""
    if method != "dreambooth" or not recipe.class_word or recipe.prior_weight == 0:
        return None
    prompt = KINDS[kind_of(pipe, recipe)].templates[0].format(recipe.class_word)
    asked = dict(steps=recipe.preview_steps, guidance_scale=recipe.guidance_scale, sampler="dpmpp_2m")
    return class_pictures(
        pipe, prompt, recipe.class_images, RUNS / "class", recipe.size, rank, ranks, content_hash(pipe), **asked
    )


def check_name(name: str) -> None:
    if not re.fullmatch(r"<?[\w][\w.-]*>?", name):
        raise UserError(f"the name {name!r} cannot be a file's: use letters, digits, - and _, such as my-dog.")


def conclude(watch: Watch, photos: Photos, output: Path, note: dict, say: Callable[[str], None]) -> Result:
    """Scores every saved step, and copies the advised one to where it is used."""
    scorer = load_clip()
    references = LazyImages([photo.path for photo in photos.photos[:MOST_REFERENCES]])
    scores, advice = watch.finish(scorer, references)
    say(table(scores, scorer.name, advice))
    if complaint := watch.learner.complaint():
        say(f"warning: {complaint}")
    deliver(watch.file(advice.step), output, advice.step, watch.pipe, watch.recipe, watch.facts)
    say(f"{output}  step {advice.step}; the pictures of all steps are in {watch.sheet}")
    if watch.recipe.clean:
        freed = clean(watch.run)
        write_note(watch.run, note | {"cleaned": str(output)})
        say(f"cleaned up: {spoken(freed)} deleted from {watch.run}; its sheet, scores and log are kept")
    return Result(output, watch.sheet, advice.step)
