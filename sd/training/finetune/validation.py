"""Validation during training: held-out loss and preview images every few steps, and at the end the best step."""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from PIL import Image
from torch import nn

from sd.evaluation.clip_score import Scorer, evaluate
from sd.evaluation.confidence import mean_with_ci
from sd.pipeline.stable_diffusion import StableDiffusion
from sd.training.finetune.advice import HELD_OUT, UNFAMILIAR_LOSS, Advice, Scores, best_step, unfamiliar_warning
from sd.training.finetune.batch import DiffusionLoss, Example
from sd.training.finetune.recipes import Recipe
from sd.utils.files import replacing, write_png
from sd.utils.image_grid import contact_sheet, grid

OnEvent = Callable[[dict], None]


class Validator:
    """Called by the training loop after each step; every `every` steps it measures, saves a file and generates
    previews.

    tuner: one of `methods`. held_out: examples that are not trained on; with too few images, examples that are.
    """

    def __init__(
        self,
        pipe: StableDiffusion,
        tuner,
        recipe: Recipe,
        run: Path,
        diffusion_loss: DiffusionLoss,
        held_out: list[Example],
        metadata: dict[str, str],
        on_event: OnEvent | None = None,
        say: Callable[[str], None] = print,
    ):
        self.pipe, self.tuner, self.recipe, self.run = pipe, tuner, recipe, run
        self.diffusion_loss, self.held_out, self.metadata = diffusion_loss, held_out, metadata
        self.on_event, self.say = on_event, say
        self.every = max(1, -(-recipe.steps // recipe.saves))
        self.prompts = [prompt.replace("{}", recipe.phrase) for prompt in recipe.prompts]

    def start(self) -> None:
        """Measure and generate previews before the first step, as the baseline."""
        if 0 not in self.previewed_steps():
            self.say(f"{HELD_OUT}{self.tuner.legend}")
            before = self.measure(0)["held_out"]
            self.generate_previews(0)
            if before > UNFAMILIAR_LOSS:
                self.say(f"warning: {unfamiliar_warning(before)}")

    def __call__(self, average: nn.Module, step: int, loss: float) -> dict | None:
        event: dict[str, Any] = {
            "step": step,
            "steps": self.recipe.steps,
            "loss": loss,
            "held_out": None,
            "preview": None,
        }
        measures = None
        if self.is_due(step):
            with swap_ema(self.tuner.module, average):
                measures = self.measure(step)
                self.tuner.save(self.step_file(step), step, self.metadata)
                self.remove_older(step)
                event["preview"] = str(self.generate_previews(step))
            event |= measures
        if self.on_event is not None:
            self.on_event(event)
        return measures

    def is_due(self, step: int) -> bool:
        """Return whether this step is measured, saved and previewed."""
        return step % self.every == 0 or step == self.recipe.steps

    def waits_for(self, step: int) -> str:
        """Return in words the work that follows this step, for the message of a Ctrl-C."""
        return f"the file and the preview images of step {step}" if self.is_due(step) else f"step {step}"

    def remove_older(self, step: int) -> None:
        """Delete the files of all but the last few steps, where the recipe limits their number."""
        files = [path for path in step_files(self.run) if step_of(path) <= step]
        for path in files[: -self.recipe.keep_last] if self.recipe.keep_last else ():
            remove_path(path)

    def measure(self, step: int) -> dict:
        """Compute the held-out loss and the method's own measures, and print them."""
        held_out = round(self.diffusion_loss.fixed_loss(self.held_out), 6)
        with replacing(self.run / "held_out.json") as part:
            part.write_text(json.dumps(self.held_out_losses() | {str(step): held_out}), encoding="utf-8")
        measures = {"held_out": held_out} | self.tuner.measures()
        words = ", ".join(f"{name} {format_value(value)}" for name, value in measures.items())
        self.say(f"step {step}: {words}")
        return measures

    def generate_previews(self, step: int) -> Path:
        """Generate one image for each prompt, with the same seeds at every step, and return the path of their sheet."""
        recipe, images = self.recipe, []
        size = {"width": recipe.size, "height": recipe.size}
        options: dict[str, Any] = dict(steps=recipe.preview_steps, guidance_scale=recipe.guidance_scale, **size)
        for k, prompt in enumerate(self.prompts):
            images.append(self.pipe(prompt, seed=recipe.seed + k, sampler="dpmpp_2m", **options).images[0])
            write_png(images[-1], self.preview_path(step, k))
        sheet = self.run / "previews" / f"{step:06}.png"
        write_png(grid(images, columns=len(images)), sheet)
        return sheet

    def previewed_steps(self) -> list[int]:
        """Return the steps, 0 included, whose previews are complete, whichever process wrote them."""
        found = {int(path.name.split("-")[0]) for path in (self.run / "previews").glob("[0-9]" * 6 + "*-0.png")}
        return [step for step in sorted(found) if step <= self.recipe.steps and self.has_previews(step)]

    def has_previews(self, step: int) -> bool:
        """Return whether every preview image of this step exists and is intact."""
        for k in range(len(self.prompts)):
            try:
                with Image.open(self.preview_path(step, k)) as image:
                    image.load()
            except OSError:
                return False
        return True

    def preview_path(self, step: int, k: int) -> Path:
        return self.run / "previews" / f"{step:06}-{k}.png"

    def step_file(self, step: int) -> Path:
        suffix = "" if self.recipe.file_format == "peft" else ".safetensors"
        return self.run / "steps" / f"{step:06}{suffix}"

    def evaluate_steps(self, scorer: Scorer, references: Sequence[Image.Image]) -> tuple[list[Scores], Advice]:
        """Score each step and choose the best one; both go into the contact sheet and `scores.json`.

        CLIP-T uses the prompt with the class word (or the initial words) in place of the new word, which CLIP does not
        know.
        """
        plain = self.recipe.class_word or self.recipe.init
        options = [prompt.replace("{}", plain) for prompt in self.recipe.prompts]
        rows = [
            [Image.open(self.preview_path(step, k)).convert("RGB") for k in range(len(options))]
            for step in self.previewed_steps()
        ]
        features = scorer.embed_images(references)
        similarity = [(scorer.embed_images(made) @ features.T).mean(dim=1) for made in rows]
        scores = []
        for step, made, values in zip(self.previewed_steps(), rows, similarity):
            found = evaluate(scorer, made, references, options)
            copied = sum(copy.copied for copy in found.copies)
            gain = mean_with_ci(values - similarity[0])
            held_out = self.held_out_losses().get(str(step))
            scores.append(
                Scores(step, found.clip_i.value, found.clip_t.value, copied, gain.value, gain.half_width, held_out)
            )
        advice = best_step(scores, {one.step for one in scores if self.step_file(one.step).exists()})
        self.write_sheet(rows, scores, advice, references)
        with replacing(self.run / "scores.json") as part:
            written = {"clip": scorer.name, "advised": advice.step, "steps": [scores_to_dict(one) for one in scores]}
            part.write_text(json.dumps(written, indent=2))
        return scores, advice

    def write_sheet(self, rows: list, scores: list[Scores], advice: Advice, references: Sequence[Image.Image]) -> None:
        """Write the contact sheet: the training images, then one row for each step, with a mark on the chosen one."""
        count = len(self.prompts)
        shown = [references[k] for k in range(min(count, len(references)))]
        labels = [f"step {one.step}: CLIP-I {one.clip_i:.3f}, CLIP-T {one.clip_t:.3f}" for one in scores]
        labels = [f"CHOSEN >> {text}" if one.step == advice.step else text for text, one in zip(labels, scores)]
        rows = [shown + [None] * (count - len(shown)), *rows]
        write_png(contact_sheet(rows, ["training images", *labels], self.prompts), self.sheet)

    @property
    def sheet(self) -> Path:
        return self.run / "sheet.png"

    def held_out_losses(self) -> dict[str, float]:
        """Return the held-out losses by step; empty where an earlier version made the run or the file is damaged."""
        with suppress(OSError, ValueError):
            losses = json.loads((self.run / "held_out.json").read_text(encoding="utf-8"))
            if isinstance(losses, dict):
                return {key: value for key, value in losses.items() if isinstance(value, float)}
        return {}


def step_files(run: Path) -> list[Path]:
    """Return the files of saved steps, in order, in any format."""
    found = [path for path in (run / "steps").glob("[0-9]*") if path.name.split(".")[0].isdecimal()]
    return sorted(found, key=step_of)


def step_of(path: Path) -> int:
    return int(path.name.split(".")[0])


def remove_path(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def scores_to_dict(scores: Scores) -> dict:
    """Return the scores for JSON, which has no NaN: unknown values are null."""
    return {key: None if value != value else value for key, value in vars(scores).items()}


@contextmanager
def swap_ema(model: nn.Module, average: nn.Module) -> Iterator[None]:
    """Give `model` the weights of the average within this context."""

    def swap() -> None:
        if average is not model:
            for own, other in zip(model.parameters(), average.parameters()):
                own.data, other.data = other.data, own.data

    swap()
    try:
        yield
    finally:
        swap()


def format_value(value: object) -> str:
    if isinstance(value, list):
        return " | ".join(map(format_value, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)
