"""Teach a model a thing or a style from a folder of pictures: textual inversion, LoRA and DreamBooth."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from tqdm import tqdm

from sd.embedding_files import read_embeddings, save_embedding
from sd.errors import UserError
from sd.evaluate import Opened, load_clip
from sd.optimize import TRAINABLE
from sd.pipeline import EMBEDDINGS, LORAS, WEIGHTS, StableDiffusion
from sd.training.captions import KINDS
from sd.training.checkpointing import forget_less, forget_more
from sd.training.class_pictures import class_pictures
from sd.training.examples import Objective, fixed_examples
from sd.training.loop import train
from sd.training.methods import METHODS
from sd.training.objective import snr_weights
from sd.training.photos import Photos
from sd.training.preparing import facts, kind_of, loop_settings, sources, summary
from sd.training.processes import join_processes
from sd.training.recipes import Recipe, recipe_for
from sd.training.watch import OnEvent, Watch, advised, table
from sd.weight_files import replacing

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
    say = say if rank == 0 else lambda sentence: None
    check_name(name)
    output = Path(output or {"ti": EMBEDDINGS, "lora": LORAS, "dreambooth": WEIGHTS}[method] / file_name(name, recipe))
    run = Path(run or RUNS / f"{method}-{output.stem}")
    photos = Photos(images, say=say)
    captions = tuple(photo.caption or "" for photo in photos.photos[:PREVIEWS])
    recipe = replace(recipe, prompts=recipe.prompts or captions)
    note, begun = run / "run.json", about(method, name, pipe, recipe, photos)
    check_begun(note, begun)
    wanted, pipe.optimizations = pipe.optimizations, TRAINABLE
    pipe.optimize()  # as every drawing does: each step then has the same bits, whether or not one was drawn before
    prior = draw_class(method, pipe, recipe, rank, ranks)
    learner = METHODS[method](pipe, name, recipe)
    try:
        learnt, held_out, kept_class = sources(pipe, recipe, run, photos, prior, say)
        weights = snr_weights(recipe.least_snr, recipe.min_snr) if recipe.min_snr else snr_weights()
        objective = Objective(pipe.unet, learner.contexts, weights, learnt, kept_class)
        loop = loop_settings(recipe, method, pipe, ranks)
        say(summary(recipe, learner, loop, learnt, held_out, ranks))
        made = facts(recipe, pipe, photos, loop)
        watch = Watch(pipe, learner, recipe, run, objective, fixed_examples(held_out), made, on_event, say)
        if recipe.checkpointing:
            forget_more(pipe.unet)
        if rank == 0:
            with replacing(note) as part:
                part.write_text(json.dumps(begun, indent=2, ensure_ascii=False), encoding="utf-8")
            watch.start()
        train(learner.module, objective, len(learnt.places), run, loop, on_step=watch)
        return conclude(watch, photos, output, say) if rank == 0 else Result(output, run / "sheet.png", 0)
    finally:
        forget_less(pipe.unet)
        learner.close()
        pipe.optimizations = wanted


def draw_class(method: str, pipe: StableDiffusion, recipe: Recipe, rank: int, ranks: int) -> Path | None:
    """The folder of class pictures, where the method keeps a class."""
    if method != "dreambooth" or not recipe.class_word or recipe.prior_weight == 0:
        return None
    prompt = KINDS[kind_of(pipe, recipe)].templates[0].format(recipe.class_word)
    asked = dict(steps=recipe.preview_steps, guidance_scale=recipe.guidance_scale, sampler="dpmpp_2m")
    return class_pictures(pipe, prompt, recipe.class_images, RUNS / "class", recipe.size, rank, ranks, **asked)


def check_name(name: str) -> None:
    if not re.fullmatch(r"<?[\w][\w.-]*>?", name):
        raise UserError(f"the name {name!r} cannot be a file's: use letters, digits, - and _, such as my-dog.")


def file_name(name: str, recipe: Recipe) -> str:
    """A word such as <my-dog> without its brackets, which not every system lets a file have."""
    return name.strip("<>") + ("" if recipe.dialect == "peft" else ".safetensors")


def about(method: str, name: str, pipe: StableDiffusion, recipe: Recipe, photos: Photos) -> dict:
    """What a run is about: it cannot go on with anything else. Rates, steps and the like may change on the way."""
    facts = {"method": method, "name": name, "model": pipe.path.name if pipe.path else ""}
    facts |= {"pictures": [photo.path.name for photo in photos.photos]}
    lasting = ("word", "class_word", "init", "vectors", "rank", "alpha", "targets", "size", "seed", "prompts")
    return json.loads(json.dumps(facts | {key: value for key, value in asdict(recipe).items() if key in lasting}))


def check_begun(note: Path, facts: dict) -> None:
    """Raises UserError where a run about something else has begun there, or where nothing can be written."""
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write into {note.parent} ({error.strerror}): give another --run-dir.") from error
    before = json.loads(note.read_text(encoding="utf-8")) if note.exists() else facts
    for key, value in facts.items():
        if before.get(key) != value:
            raise UserError(f"{note.parent} was begun with another {key}: give another --run-dir, or delete that one.")


def conclude(watch: Watch, photos: Photos, output: Path, say: Callable[[str], None]) -> Result:
    """Scores every saved step, and copies the advised one to where it is used."""
    scorer = load_clip()
    references = Opened([photo.path for photo in photos.photos[:MOST_REFERENCES]])
    sheet, scores = watch.finish(scorer, references)
    step = advised(scores)
    say(table(scores, scorer.name))
    if complaint := watch.learner.complaint():
        say(f"warning: {complaint}")
    deliver(watch.file(step), output, step, watch)
    say(f"{output}  step {step}; the pictures of all steps are in {sheet}")
    return Result(output, sheet, step)


def deliver(saved: Path, output: Path, step: int, watch: Watch) -> None:
    if output.suffix == ".pt":
        (vectors,) = read_embeddings(saved, watch.pipe.sizes["clip"]["width"]).vectors.values()
        save_embedding(output, watch.recipe.word, vectors, step, watch.facts.get("ss_sd_model_name"))
        return
    with replacing(output) as part:
        (shutil.copytree if saved.is_dir() else shutil.copyfile)(saved, part)
