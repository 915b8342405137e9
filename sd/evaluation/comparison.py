"""The same prompts and seeds drawn by several models side by side: a base, and what was made of it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image
from torch import Tensor

from sd.checkpoints.checkpoint import read
from sd.checkpoints.discovery import choose_checkpoint
from sd.evaluation.clip_score import Evaluation, Scorer, evaluate, replace_word, without_placeholder
from sd.pipeline.sampling_loop import OnStep
from sd.pipeline.settings import GenerationSettings
from sd.pipeline.stable_diffusion import WEIGHTS, StableDiffusion
from sd.utils.errors import UserError
from sd.utils.image_grid import contact_sheet

Loras, Embeddings = tuple[tuple[str, float], ...], tuple[tuple[str, str | None], ...]


@dataclass(frozen=True)
class Column:
    """One way to draw: another checkpoint than the base's or None, LoRAs with strengths, embeddings with words."""

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
    """Pictures by column, each column's in the order of `rows`; reports: what loading each adapter said.

    evaluations: one a column, or none where there was no CLIP.
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
        return "\n".join(lines + [f"  {c.label}: {scores(e)}" for c, e in zip(self.columns, self.evaluations)])

    def sheet(self) -> Image.Image:
        """Prompts and seeds down, models across, and under each model its scores."""
        notes = [scores(found) for found in self.evaluations]
        if notes:
            notes[0] += f", by {self.evaluations[0].backbone}"
        labels = [column.label for column in self.columns]
        return contact_sheet([list(row) for row in zip(*self.images)], self.rows, labels, notes or None)


def scores(found: Evaluation) -> str:
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
) -> Comparison:
    """Draws every settings' pictures in every column.

    load: a checkpoint's pipeline, None the base's; called once for each, and one is let go before the next is loaded.
    scorer: scores each column against its prompts, and against `references` where there are some.
    word: what the base was not taught: it draws the class word there, and CLIP reads it.
    on_progress: called after each step with the part that is drawn, over 0 to 1; what it raises stops the drawing.
    Raises UserError for a missing file or what is no checkpoint before anything is drawn, and for an adapter that does
    not fit before anything is drawn with its checkpoint.
    """
    check_files(columns)
    rows = [f"{one.prompt} (seed {seed})" for one in settings for seed in one.seeds()]
    done = Comparison(columns, rows, [[] for _ in columns])
    drawn = 0

    def on_step(step: int, steps: int, x0: Tensor) -> None:
        if on_progress is not None:
            on_progress((drawn + step / steps) / (len(columns) * len(settings)))

    for ckpt in dict.fromkeys(column.ckpt for column in columns):
        chosen = [(column, images) for column, images in zip(columns, done.images) if column.ckpt == ckpt]
        for _ in draw_columns(load(ckpt), chosen, settings, done.reports, (word, class_word), on_step):
            drawn += 1
    if scorer is not None:
        prompts = [without_placeholder(one.prompt, word, class_word) for one in settings for _ in one.seeds()]
        done.evaluations = [evaluate(scorer, images, references, prompts) for images in done.images]
    return done


def check_files(columns: list[Column]) -> None:
    for column in columns:
        for path, _ in column.loras + column.embeddings:
            if not Path(path).expanduser().exists():
                raise UserError(f"there is no file {path}: check the path of the adapter.")
        if column.ckpt:
            read(choose_checkpoint(column.ckpt, WEIGHTS))


def draw_columns(
    pipe: StableDiffusion,
    columns: list[tuple[Column, list[Image.Image]]],
    settings: list[GenerationSettings],
    reports: list[str],
    words: tuple[str | None, str],
    on_step: OnStep,
) -> Iterator[None]:
    """Fills the columns that one pipeline draws, and stops after each settings' pictures."""
    for column, _ in columns:  # all are tried first: a mistake costs no drawing
        with loaded(pipe, column) as said:
            reports += said
    for column, images in columns:
        with loaded(pipe, column):
            for one in settings:
                prompt = replace_word(one.prompt, *words) if column.is_base else one.prompt
                images += pipe.generate(one.replace(prompt=prompt), on_step=on_step).images
                yield


@contextmanager
def loaded(pipe: StableDiffusion, column: Column) -> Iterator[list[str]]:
    """A column's adapters, in while it lasts beside whatever was in before; gives what loading them said."""
    before = pipe.adapters.names()
    try:
        said = [str(pipe.load_lora(path, strength)) for path, strength in column.loras]
        yield said + [str(pipe.load_embedding(path, word)) for path, word in column.embeddings]
    finally:
        for name in pipe.adapters.names():
            if name not in before:
                pipe.unload(name)
