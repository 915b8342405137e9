"""Whether it learns: numbers and pictures on the way, and at the end which step to take."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from torch import nn

from sd.contact_sheet import contact_sheet
from sd.evaluate import Scorer, evaluate
from sd.image import grid, write_png
from sd.pipeline import StableDiffusion
from sd.training.examples import Example, Objective
from sd.training.recipes import Recipe
from sd.weight_files import replacing

OnEvent = Callable[[dict], None]
LOST = 0.1  # the share of its fit to prompts that a step may have lost


@dataclass
class Scores:
    """Of the pictures of one step: likeness to those taught with, fit to their prompts, and which are copies."""

    step: int
    clip_i: float
    clip_t: float
    copies: int


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
            self.measure(0)
            self.draw(0)

    def __call__(self, average: nn.Module, step: int, loss: float) -> dict | None:
        event = {"step": step, "steps": self.recipe.steps, "loss": loss, "held_out": None, "preview": None}
        measures = None
        if step % self.every == 0 or step == self.recipe.steps:
            with showing(self.learner.module, average):
                measures = self.measure(step)
                self.learner.save(self.file(step), step, self.facts)
                event["preview"] = str(self.draw(step))
            event |= measures
        if self.on_event is not None:
            self.on_event(event)
        return measures

    def measure(self, step: int) -> dict:
        measures = {"held_out": round(self.objective.measure(self.held_out), 6)} | self.learner.measures()
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
        """Those that there are pictures of, 0 among them."""
        every = [*range(0, self.recipe.steps, self.every), self.recipe.steps]
        return [step for step in every if all(self.picture(step, k).exists() for k in range(len(self.prompts)))]

    def picture(self, step: int, k: int) -> Path:
        return self.run / "previews" / f"{step:06}-{k}.png"

    def file(self, step: int) -> Path:
        suffix = "" if self.recipe.dialect == "peft" else ".safetensors"
        return self.run / "steps" / f"{step:06}{suffix}"

    def finish(self, scorer: Scorer, references: Sequence[Image.Image]) -> tuple[Path, list[Scores]]:
        """(the contact sheet of steps by prompts, the scores of each step).

        CLIP-T asks for the prompt with what kind of thing it is in the word's place, which CLIP does not know.
        """
        plain = self.recipe.class_word or self.recipe.init
        asked = [prompt.replace("{}", plain) for prompt in self.recipe.prompts]
        rows, scores = [], []
        for step in self.steps():
            made = [Image.open(self.picture(step, k)).convert("RGB") for k in range(len(self.prompts))]
            found = evaluate(scorer, made, references, asked)
            alike = sum(copy.copied for copy in found.copies)
            scores.append(Scores(step, found.clip_i.value, found.clip_t.value, alike))
            rows.append(made)
        labels = [f"step {one.step}: CLIP-I {one.clip_i:.3f}, CLIP-T {one.clip_t:.3f}" for one in scores]
        sheet = self.run / "sheet.png"
        write_png(contact_sheet(rows, labels, self.prompts), sheet)
        with replacing(self.run / "scores.json") as part:
            part.write_text(json.dumps({"clip": scorer.name, "steps": [vars(one) for one in scores]}, indent=2))
        return sheet, scores


def advised(scores: list[Scores]) -> int:
    """The step to take, not 0: the likest one that still does what prompts say.

    That is the best CLIP-I, among those with the fewest copies whose CLIP-T is within a tenth of what it was at first.
    A sum of both would take the step that has learnt least: CLIP-T falls from the first step on.
    """
    floor = scores[0].clip_t - LOST * abs(scores[0].clip_t)
    taught = [one for one in scores if one.step > 0]
    return min(taught, key=lambda one: (one.copies, one.clip_t < floor, -one.clip_i)).step


def table(scores: list[Scores], clip: str) -> str:
    """The scores in words, the advised step marked."""
    best = advised(scores)
    lines = [f"scores by {clip}:", "   step  CLIP-I  CLIP-T  copies"]
    for one in scores:
        mark = "  <- take this one" if one.step == best else ""
        lines.append(f"{one.step:7}  {one.clip_i:6.3f}  {one.clip_t:6.3f}  {one.copies:6}{mark}")
    taken = next(one for one in scores if one.step == best)
    if taken.copies:
        lines.append("warning: every step draws copies of pictures it was taught with; teach it for fewer steps.")
    if taken.clip_i <= scores[0].clip_i:
        lines.append(
            f"warning: by this CLIP nothing was gained: step {best} draws no more like the pictures than step 0 did; "
            "try a LoRA, or more steps."
        )
    return "\n".join(lines)


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
