"""Whether it learns: numbers and pictures on the way, and at the end which step to take."""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from PIL import Image
from torch import nn

from sd.evaluation.clip_score import Scorer, evaluate
from sd.evaluation.confidence import mean_with_ci
from sd.pipeline.stable_diffusion import StableDiffusion
from sd.training.finetune.advice import HELD_OUT, UNFAMILIAR, Advice, Scores, advise, unfamiliar
from sd.training.finetune.batch import Example, Objective
from sd.training.finetune.recipes import Recipe
from sd.utils.files import replacing, write_png
from sd.utils.image_grid import contact_sheet, grid

OnEvent = Callable[[dict], None]


class Watch:
    """Called by the loop after each step. Every `every` steps it measures, saves what was learnt and draws with it.

    learner: one of `methods`. held_out: examples that are not learnt from, or with too few pictures such as are.
    """

    def __init__(
        self,
        pipe: StableDiffusion,
        learner,
        recipe: Recipe,
        run: Path,
        objective: Objective,
        held_out: list[Example],
        facts: dict[str, str],
        on_event: OnEvent | None = None,
        say: Callable[[str], None] = print,
    ):
        self.pipe, self.learner, self.recipe, self.run = pipe, learner, recipe, run
        self.objective, self.held_out, self.facts = objective, held_out, facts
        self.on_event, self.say = on_event, say
        self.every = max(1, -(-recipe.steps // recipe.saves))
        self.prompts = [prompt.replace("{}", recipe.said) for prompt in recipe.prompts]

    def start(self) -> None:
        """How it is before the first step, to compare with."""
        if 0 not in self.steps():
            self.say(HELD_OUT)
            before = self.measure(0)["held_out"]
            self.draw(0)
            if before > UNFAMILIAR:
                self.say(f"warning: {unfamiliar(before)}")

    def __call__(self, average: nn.Module, step: int, loss: float) -> dict | None:
        event = {"step": step, "steps": self.recipe.steps, "loss": loss, "held_out": None, "preview": None}
        measures = None
        if self.is_due(step):
            with showing(self.learner.module, average):
                measures = self.measure(step)
                self.learner.save(self.file(step), step, self.facts)
                self.remove_older(step)
                event["preview"] = str(self.draw(step))
            event |= measures
        if self.on_event is not None:
            self.on_event(event)
        return measures

    def is_due(self, step: int) -> bool:
        return step % self.every == 0 or step == self.recipe.steps

    def waits_for(self, step: int) -> str:
        return f"the file and the preview images of step {step}" if self.is_due(step) else f"step {step}"

    def remove_older(self, step: int) -> None:
        """All but the last few files of steps, where only these are to be kept."""
        files = [path for path in step_files(self.run) if step_of(path) <= step]
        for path in files[: -self.recipe.keep_last] if self.recipe.keep_last else ():
            remove(path)

    def measure(self, step: int) -> dict:
        held_out = round(self.objective.measure(self.held_out), 6)
        with replacing(self.run / "held_out.json") as part:
            part.write_text(json.dumps(self.held_out_losses() | {str(step): held_out}), encoding="utf-8")
        measures = {"held_out": held_out} | self.learner.measures()
        words = ", ".join(f"{name} {said(value)}" for name, value in measures.items())
        self.say(f"step {step}: {words}")
        return measures

    def draw(self, step: int) -> Path:
        """One picture of each prompt, at seeds that stay the same; returns their sheet."""
        recipe, pictures = self.recipe, []
        size = {"width": recipe.size, "height": recipe.size}
        asked = dict(steps=recipe.preview_steps, guidance_scale=recipe.guidance_scale, sampler="dpmpp_2m", **size)
        for k, prompt in enumerate(self.prompts):
            pictures.append(self.pipe(prompt, seed=recipe.seed + k, **asked).images[0])
            write_png(pictures[-1], self.picture(step, k))
        sheet = self.run / "previews" / f"{step:06}.png"
        write_png(grid(pictures, columns=len(pictures)), sheet)
        return sheet

    def steps(self) -> list[int]:
        """Those up to the last step that there are pictures of, 0 among them, whatever wrote them."""
        found = {int(path.name.split("-")[0]) for path in (self.run / "previews").glob("[0-9]" * 6 + "*-0.png")}
        return [step for step in sorted(found) if step <= self.recipe.steps and self.is_drawn(step)]

    def is_drawn(self, step: int) -> bool:
        """Whether every picture of it is there and whole."""
        for k in range(len(self.prompts)):
            try:
                with Image.open(self.picture(step, k)) as image:
                    image.load()
            except OSError:
                return False
        return True

    def picture(self, step: int, k: int) -> Path:
        return self.run / "previews" / f"{step:06}-{k}.png"

    def file(self, step: int) -> Path:
        suffix = "" if self.recipe.dialect == "peft" else ".safetensors"
        return self.run / "steps" / f"{step:06}{suffix}"

    def finish(self, scorer: Scorer, references: Sequence[Image.Image]) -> tuple[list[Scores], Advice]:
        """(the scores of each step, the one to take), which the contact sheet and `scores.json` show too.

        CLIP-T asks for the prompt with what kind of thing it is in the word's place, which CLIP does not know.
        """
        plain = self.recipe.class_word or self.recipe.init
        asked = [prompt.replace("{}", plain) for prompt in self.recipe.prompts]
        rows = [[Image.open(self.picture(step, k)).convert("RGB") for k in range(len(asked))] for step in self.steps()]
        features = scorer.embed_images(references)
        likeness = [(scorer.embed_images(made) @ features.T).mean(dim=1) for made in rows]
        scores = []
        for step, made, alike in zip(self.steps(), rows, likeness):
            found = evaluate(scorer, made, references, asked)
            copied = sum(copy.copied for copy in found.copies)
            gain = mean_with_ci(alike - likeness[0])
            held_out = self.held_out_losses().get(str(step))
            scores.append(
                Scores(step, found.clip_i.value, found.clip_t.value, copied, gain.value, gain.half_width, held_out)
            )
        advice = advise(scores, {one.step for one in scores if self.file(one.step).exists()})
        self.write_sheet(rows, scores, advice, references)
        with replacing(self.run / "scores.json") as part:
            written = {"clip": scorer.name, "advised": advice.step, "steps": [as_json(one) for one in scores]}
            part.write_text(json.dumps(written, indent=2))
        return scores, advice

    def write_sheet(self, rows: list, scores: list[Scores], advice: Advice, references: Sequence[Image.Image]) -> None:
        """The images trained from above one row for each step, with a mark on the one that was taken."""
        count = len(self.prompts)
        shown = [references[k] for k in range(min(count, len(references)))]
        labels = [f"step {one.step}: CLIP-I {one.clip_i:.3f}, CLIP-T {one.clip_t:.3f}" for one in scores]
        labels = [f"TAKEN >> {text}" if one.step == advice.step else text for text, one in zip(labels, scores)]
        rows = [shown + [None] * (count - len(shown)), *rows]
        write_png(contact_sheet(rows, ["images trained from", *labels], self.prompts), self.sheet)

    @property
    def sheet(self) -> Path:
        return self.run / "sheet.png"

    def held_out_losses(self) -> dict[str, float]:
        """By step; empty where an older program made the run, or the file is spoilt."""
        with suppress(OSError, ValueError):
            losses = json.loads((self.run / "held_out.json").read_text(encoding="utf-8"))
            if isinstance(losses, dict):
                return {key: value for key, value in losses.items() if isinstance(value, float)}
        return {}


def step_files(run: Path) -> list[Path]:
    """The files of steps in order, whatever their kind."""
    found = [path for path in (run / "steps").glob("[0-9]*") if path.name.split(".")[0].isdecimal()]
    return sorted(found, key=step_of)


def step_of(path: Path) -> int:
    return int(path.name.split(".")[0])


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def as_json(scores: Scores) -> dict:
    """What is not known is null: JSON has no nan."""
    return {key: None if value != value else value for key, value in vars(scores).items()}


@contextmanager
def showing(model: nn.Module, average: nn.Module) -> Iterator[None]:
    """While it lasts, `model` has the average's numbers."""

    def swap() -> None:
        if average is not model:
            for own, other in zip(model.parameters(), average.parameters()):
                own.data, other.data = other.data, own.data

    swap()
    try:
        yield
    finally:
        swap()


def said(value: object) -> str:
    if isinstance(value, list):
        return " | ".join(map(said, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)
