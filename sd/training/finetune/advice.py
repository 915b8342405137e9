"""Choice of the best step of a run, with its rule, and warnings where nothing was gained."""

import math
from dataclasses import dataclass

CLIP_T_TOLERANCE = 0.1  # the fraction of its initial CLIP-T that a step may lose
# The loss on images that a model was trained for is 0.07 to 0.17; on photos that of the bundled model is 0.39 to 0.45.
UNFAMILIAR_LOSS = 0.28
HELD_OUT_TOLERANCE = 1.05  # the held-out loss of the chosen step over the lowest one; more than this causes a warning

HELD_OUT = (
    "held_out: the loss on images that are left out of training, with the same noise each time. "
    "Lower is better; where it rises again, the training is too long."
)


@dataclass
class Scores:
    """The scores of one step's preview images: similarity to the training images, fit to the prompts, and number of
    copies.

    gain: of the similarity since step 0, mean over the prompts. gain_half: half the width of its 95 % confidence
        interval. held_out: the held-out loss.
    """

    step: int
    clip_i: float
    clip_t: float
    copies: int
    gain: float | None = None
    gain_half: float = math.nan
    held_out: float | None = None


@dataclass(frozen=True)
class Advice:
    """The best step, whether it still follows the prompts, and the rule that chose it, as a sentence."""

    step: int
    keeps_prompts: bool
    rule: str


def unfamiliar_warning(loss: float) -> str:
    """Return the warning for a base model whose loss on the images is high before training."""
    return (
        f"this base model was not trained on images like these: its loss on them is {loss:.2f} before training; on "
        "images of the kind it knows it is about 0.1. The result will probably be poor. The bundled model knows only "
        "emoji; for photos use a model that was trained on photos, such as Stable Diffusion 1.5 (--ckpt)."
    )


def best_step(scores: list[Scores], available: set[int] | None = None) -> Advice:
    """Choose the step to take, never 0: the one most similar to the training images that still follows the prompts.

    That is the highest CLIP-I among the steps with the fewest copies whose CLIP-T is within a tenth of its initial
    value. The sum of both scores would choose the step that has changed least, because CLIP-T falls from the first step
    on.

    available: the steps whose files still exist; None for all.
    """
    floor = scores[0].clip_t - CLIP_T_TOLERANCE * abs(scores[0].clip_t)
    trained = [one for one in scores if one.step > 0 and (available is None or one.step in available)]
    best = min(trained, key=lambda one: (one.copies, one.clip_t < floor, -one.clip_i))
    if best.clip_t < floor:
        none = "none of these steps follows the prompt"
        copied = "every step that follows the prompt has more copies"
        reason = none if all(one.clip_t < floor for one in trained) else copied
        rule = f"{reason} (CLIP-T of at least {floor:.3f}); step {best.step} has the highest CLIP-I"
        return Advice(best.step, False, rule)
    rule = (
        f"step {best.step} has the highest CLIP-I of the steps that follow the prompt (CLIP-T of at least {floor:.3f})"
    )
    return Advice(best.step, True, rule + (" and have the fewest copies" if any(one.copies for one in trained) else ""))


def format_table(scores: list[Scores], clip: str, advice: Advice | None = None) -> str:
    """Return the scores as a table with a mark on the best step, followed by the rule and the warnings."""
    advice = advice or best_step(scores)
    lines = [
        f"scores by {clip}:",
        "   step  CLIP-I  CLIP-T  held-out  copies",
    ]
    word = "best step" if advice.keeps_prompts and not is_unfamiliar(scores) else "chosen, but see the warnings"
    for one in scores:
        mark = f"  <- {word}" if one.step == advice.step else ""
        held_out = "      --" if one.held_out is None else f"{one.held_out:8.3f}"
        lines.append(f"{one.step:7}  {one.clip_i:6.3f}  {one.clip_t:6.3f}  {held_out}  {one.copies:6}{mark}")
    lines.append(
        "CLIP-I: similarity to your images. CLIP-T: fit to the prompt. For both, higher is better. "
        "Copies: preview images that repeat a training image."
    )
    lines.append(f"chosen: {advice.rule}.")
    return "\n".join(lines + [f"warning: {sentence}" for sentence in warnings(scores, advice)])


def is_unfamiliar(scores: list[Scores]) -> bool:
    """Return whether the base model's loss on these images was high before training."""
    return (scores[0].held_out or 0) > UNFAMILIAR_LOSS


def warnings(scores: list[Scores], advice: Advice) -> list[str]:
    """Return a sentence for each doubt about the chosen step."""
    taken = next(one for one in scores if one.step == advice.step)
    sentences = [unfamiliar_warning(scores[0].held_out)] if is_unfamiliar(scores) else []
    if not advice.keeps_prompts:
        sentences.append(f"step {taken.step} does not follow the prompt: try fewer --steps or a lower --lr.")
    if taken.copies:
        sentences.append("every step generates copies of training images; train for fewer steps.")
    sentences += [doubt for doubt in (gain_warning(taken, scores[0]), held_out_warning(taken, scores)) if doubt]
    return sentences


def gain_warning(taken: Scores, before: Scores) -> str | None:
    """Return a warning where CLIP-I has not risen, or not by more than its confidence interval."""
    gain = taken.clip_i - before.clip_i if taken.gain is None else taken.gain
    if gain <= 0:
        return (
            f"no gain by this CLIP: the images of step {taken.step} are no more similar to yours than those of step 0; "
            "try a LoRA, or more steps."
        )
    if taken.gain_half >= gain:
        return (
            f"no significant gain: CLIP-I rose by {gain:.3f} ± {taken.gain_half:.3f} since step 0, perhaps by chance; "
            "compare the rows of the sheet, and try more --steps or a higher --lr."
        )
    return None


def held_out_warning(taken: Scores, scores: list[Scores]) -> str | None:
    """Return a warning where the held-out loss prefers another step than CLIP-I does."""
    known = [one for one in scores if one.held_out is not None]
    if taken.held_out is None or not known:
        return None
    lowest = min(known, key=lambda one: one.held_out)
    if taken.held_out <= HELD_OUT_TOLERANCE * lowest.held_out:
        return None
    return (
        f"the held-out loss disagrees: it is lowest at step {lowest.step} ({lowest.held_out:.3f}) and "
        f"{taken.held_out:.3f} at step {taken.step}. CLIP-I measures similarity to the training images, "
        "this loss how well the training generalizes: compare both rows of the sheet."
    )
