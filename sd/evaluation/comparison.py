"""Compares models side by side on the same prompts and seeds: a base model, and its fine-tuned variants."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image
from torch import Tensor

from sd.checkpoints.checkpoint import read_checkpoint
from sd.checkpoints.discovery import WEIGHTS, choose_checkpoint, locate, separate_vae
from sd.evaluation.clip_score import Evaluation, Scorer, evaluate, replace_word, without_placeholder
from sd.pipeline.sampling_loop import OnStep
from sd.pipeline.settings import GenerationSettings
from sd.pipeline.stable_diffusion import StableDiffusion
from sd.utils.errors import UserError
from sd.utils.image_grid import contact_sheet

Loras = tuple[tuple[str, float], ...]
Embeddings = tuple[tuple[str, str | None], ...]


@dataclass(frozen=True)
class Column:
    """One model of the comparison: a checkpoint (None: the base's), LoRAs with strengths, embeddings with words."""

    ckpt: str | None = None
    loras: Loras = ()
    embeddings: Embeddings = ()

    @property
    def is_base(self) -> bool:
        return self == Column()

    @property
    def label(self) -> str:
        parts = [Path(self.ckpt).stem] if self.ckpt else []
        parts += [f"{Path(path).stem} at {strength:g}" for path, strength in self.loras]
        parts += [word or Path(path).stem for path, word in self.embeddings]
        return " + ".join(parts) or "base"


@dataclass
class Comparison:
    """The images of each column, in the order of `rows`.

    reports: one for each loaded adapter. evaluations: one for each column, or none without a CLIP.
    """

    columns: list[Column]
    rows: list[str]
    images: list[list[Image.Image]]
    reports: list[str] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [*self.reports, "no scores: a CLIP is needed, such as OpenAI's ViT-B-32.pt."]
        if self.evaluations:
            lines[-1] = f"scored by {self.evaluations[0].backbone}"
        return "\n".join(lines + [f"  {c.label}: {format_scores(e)}" for c, e in zip(self.columns, self.evaluations)])

    def sheet(self) -> Image.Image:
        """Return a contact sheet: prompts and seeds as rows, models as columns, and the scores below each model."""
        notes = [format_scores(found) for found in self.evaluations]
        if notes:
            notes[0] += f", by {self.evaluations[0].backbone}"
        labels = [column.label for column in self.columns]
        return contact_sheet([list(row) for row in zip(*self.images)], self.rows, labels, notes or None)


def format_scores(found: Evaluation) -> str:
    """Return the scores of one column as one line."""
    parts = [f"CLIP-T {found.clip_t}"] if found.clip_t else []
    parts += [f"CLIP-I {found.clip_i}"] if found.clip_i else []
    copied = sum(copy.copied for copy in found.copies)
    return ", ".join(parts + ([f"{copied} of {len(found.copies)} are copies"] if copied else []))


def compare(
    load: Callable[[str | None], StableDiffusion],
    columns: list[Column],
    settings: list[GenerationSettings],
    scorer: Scorer | None = None,
    references: Sequence[Image.Image] | None = None,
    word: str | None = None,
    class_word: str = "",
    on_progress: Callable[[float], None] | None = None,
    vae: str | None = None,
) -> Comparison:
    """Generate the images of all settings with the model of every column.

    load: returns the pipeline of a checkpoint, of None the base's; it is called once for each checkpoint, and a
    pipeline is released before the next is loaded.
    scorer: scores each column against its prompts, and against `references` if given.
    word: the new word, unknown to the base and to CLIP; the class word replaces it for both.
    vae: the separate VAE that `load` gives every checkpoint, as a file or by its name.
    on_progress: called after each step with the completed fraction, up to 1; an exception from it stops the comparison.
    Raises UserError for a missing file or an invalid checkpoint before any image is generated, and for an adapter that
    does not fit before any image is generated with its checkpoint.
    """
    check_files(columns, vae)
    rows = [f"{one.prompt} (seed {seed})" for one in settings for seed in one.seeds()]
    done = Comparison(columns, rows, [[] for _ in columns])
    finished = 0

    def on_step(step: int, steps: int, x0: Tensor) -> None:
        if on_progress is not None:
            on_progress((finished + step / steps) / (len(columns) * len(settings)))

    for ckpt in dict.fromkeys(column.ckpt for column in columns):
        chosen = [(column, images) for column, images in zip(columns, done.images) if column.ckpt == ckpt]
        for _ in generate_columns(load(ckpt), chosen, settings, done.reports, (word, class_word), on_step):
            finished += 1
    if scorer is not None:
        prompts = [without_placeholder(one.prompt, word, class_word) for one in settings for _ in one.seeds()]
        done.evaluations = [evaluate(scorer, images, references, prompts) for images in done.images]
    return done


def check_files(columns: list[Column], vae: str | None) -> None:
    """Raises UserError for an adapter that does not exist, and for a checkpoint that cannot be loaded."""
    for column in columns:
        for path, _ in column.loras + column.embeddings:
            if not Path(path).expanduser().exists():
                raise UserError(f"file not found: {path}; check the path of the adapter.")
        if column.ckpt:
            ckpt = choose_checkpoint(column.ckpt, WEIGHTS)
            read_checkpoint(ckpt, separate_vae(vae, ckpt, lambda name: locate("VAE", name)))


def generate_columns(
    pipe: StableDiffusion,
    columns: list[tuple[Column, list[Image.Image]]],
    settings: list[GenerationSettings],
    reports: list[str],
    words: tuple[str | None, str],
    on_step: OnStep,
) -> Iterator[None]:
    """Generate the images of the columns that share one pipeline; yields after the images of each settings."""
    for column, _ in columns:  # all adapters are loaded once first, so that one that does not fit costs no time
        with loaded_adapters(pipe, column) as loaded:
            reports += loaded
    for column, images in columns:
        with loaded_adapters(pipe, column), pipe.keep_prompt_loras():
            for one in settings:
                prompt = replace_word(one.prompt, *words) if column.is_base else one.prompt
                images += pipe.generate(one.replace(prompt=prompt), on_step=on_step).images
                yield


@contextmanager
def loaded_adapters(pipe: StableDiffusion, column: Column) -> Iterator[list[str]]:
    """Load a column's adapters beside those of the pipeline, and unload them at the end; yields one report for each."""
    before = pipe.adapters.names()
    try:
        reports = [str(pipe.load_lora(path, strength)) for path, strength in column.loras]
        yield reports + [str(pipe.load_embedding(path, word)) for path, word in column.embeddings]
    finally:
        for name in pipe.adapters.names():
            if name not in before:
                pipe.unload(name)
