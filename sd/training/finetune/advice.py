"""Which step to take, by which rule, and whether anything was gained."""

import math
from dataclasses import dataclass

LOST = 0.1  # the share of its fit to prompts that a step may have lost
# A model's error on images of its own kind is .07 to .17, on photographs that of the bundled one .39 to .45.
UNFAMILIAR = 0.28
RISEN = 1.05  # the held-out loss of the taken step against the lowest: more is worth a word

HELD_OUT = (
    "held-out loss: the error in predicting noise on images that are not trained on, the same noise each time. "
    "Lower is better; where it rises again, training has gone on for too long."
)


@dataclass
class Scores:
    """Of the pictures of one step: likeness to those taught with, fit to their prompts, and which are copies.

    gain: in likeness since step 0, over the prompts, with half its 95 % interval. held_out: the loss.
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
    """step: the one to take. keeps_prompts: whether it does. rule: how it was chosen, in a sentence."""

    step: int
    keeps_prompts: bool
    rule: str


def unfamiliar(loss: float) -> str:
    return (
        f"this base model has never seen images like these: its error on them is {loss:.2f} before training, on images "
        "of its own kind about 0.1. The result will probably be poor. The bundled model knows emoji drawings only; for "
        "photos train from a model that was trained on photos, such as Stable Diffusion 1.5 (--ckpt)."
    )


def advise(scores: list[Scores], available: set[int] | None = None) -> Advice:
    """The step to take, not 0: the likest one that still does what prompts say.

    That is the best CLIP-I, among those with the fewest copies whose CLIP-T is within a tenth of what it was at first.
    A sum of both would take the step that has learnt least: CLIP-T falls from the first step on.
    available: the steps whose files are there still; None for all.
    """
    floor = scores[0].clip_t - LOST * abs(scores[0].clip_t)
    taught = [one for one in scores if one.step > 0 and (available is None or one.step in available)]
    best = min(taught, key=lambda one: (one.copies, one.clip_t < floor, -one.clip_i))
    if best.clip_t < floor:
        lost = (
            "none of these steps keeps to the prompt"
            if all(one.clip_t < floor for one in taught)
            else ("every step that keeps to the prompt has more copies")
        )
        return Advice(
            best.step, False, f"{lost} (CLIP-T of at least {floor:.3f}); step {best.step} has the highest CLIP-I"
        )
    rule = (
        f"step {best.step} has the highest CLIP-I of the steps that keep to the prompt (CLIP-T of at least {floor:.3f})"
    )
    return Advice(best.step, True, rule + (" and have the fewest copies" if any(one.copies for one in taught) else ""))


def advised(scores: list[Scores]) -> int:
    return advise(scores).step


def table(scores: list[Scores], clip: str, advice: Advice | None = None) -> str:
    """The scores in words, the advised step marked, and what they mean."""
    advice = advice or advise(scores)
    lines = [
        f"scores by {clip}:",
        "   step  CLIP-I  CLIP-T  held-out  copies",
    ]
    word = (
        "take this one" if advice.keeps_prompts and not is_unfamiliar(scores) else "delivered, with doubts: see below"
    )
    for one in scores:
        mark = f"  <- {word}" if one.step == advice.step else ""
        held_out = "      --" if one.held_out is None else f"{one.held_out:8.3f}"
        lines.append(f"{one.step:7}  {one.clip_i:6.3f}  {one.clip_t:6.3f}  {held_out}  {one.copies:6}{mark}")
    lines.append("CLIP-I: likeness to your images. CLIP-T: fit to the prompt. Both: higher is better.")
    lines.append(f"advice: {advice.rule}.")
    return "\n".join(lines + [f"warning: {sentence}" for sentence in warnings(scores, advice)])


def is_unfamiliar(scores: list[Scores]) -> bool:
    return (scores[0].held_out or 0) > UNFAMILIAR


def warnings(scores: list[Scores], advice: Advice) -> list[str]:
    taken = next(one for one in scores if one.step == advice.step)
    said = [unfamiliar(scores[0].held_out)] if is_unfamiliar(scores) else []
    if not advice.keeps_prompts:
        said.append(f"step {taken.step} does not keep to the prompt: try fewer --steps or a lower --lr.")
    if taken.copies:
        said.append("every step draws copies of pictures it was taught with; teach it for fewer steps.")
    said += [doubt for doubt in (doubt_of_gain(taken, scores[0]), disagreement(taken, scores)) if doubt]
    return said


def doubt_of_gain(taken: Scores, before: Scores) -> str | None:
    gain = taken.clip_i - before.clip_i if taken.gain is None else taken.gain
    if gain <= 0:
        return (
            f"by this CLIP nothing was gained: step {taken.step} draws no more like the pictures than step 0 did; "
            "try a LoRA, or more steps."
        )
    if taken.gain_half >= gain:
        return (
            f"no gain is shown: CLIP-I rose by {gain:.3f} ± {taken.gain_half:.3f} since step 0, which may be chance; "
            "compare the rows of the sheet, and try more --steps or a higher --lr."
        )
    return None


def disagreement(taken: Scores, scores: list[Scores]) -> str | None:
    """Where the held-out loss would take another step than CLIP-I does."""
    known = [one for one in scores if one.held_out is not None]
    if taken.held_out is None or not known:
        return None
    lowest = min(known, key=lambda one: one.held_out)
    if taken.held_out <= RISEN * lowest.held_out:
        return None
    return (
        f"the held-out loss disagrees: it is lowest at step {lowest.step} ({lowest.held_out:.3f}) and "
        f"{taken.held_out:.3f} at step {taken.step}. CLIP-I rewards likeness to the images trained from, "
        "this loss what carries over to others: look at both rows of the sheet."
    )
