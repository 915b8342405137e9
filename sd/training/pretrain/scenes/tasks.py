"""GenEval's six tasks on scenes with held-out combinations, scored by a detector.

Ghosh, Hajishirzi and Schmidt 2023, "GenEval: An Object-Focused Framework for Evaluating Text-to-Image Alignment":
prompts come from templates, and an image is right where the detector finds the objects with their number, color and
position.
"""

import math
import random
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from sd.training.pretrain.scenes.backgrounds import WHITE
from sd.training.pretrain.scenes.cutouts import Cutouts
from sd.training.pretrain.scenes.detector import Detection
from sd.training.pretrain.scenes.grammar import Grammar, Scene
from sd.training.pretrain.scenes.layout import relation_holds
from sd.training.pretrain.scenes.wording import Content, captions

TASKS = {  # GenEval's names, and the kind of scene
    "single object": "single",
    "two objects": "pair",
    "counting": "counted",
    "colors": "recolored",
    "position": "placed",
    "color attribution": "colored_pair",
}
ACROSS = 1.73  # a relation holds up to 60 degrees off its axis, like in GenEval
NORMAL = 1.959964  # 95 % of a normal distribution lie within this many standard deviations


@dataclass(frozen=True)
class Score:
    """The fraction of right images among `count`, with Wilson's 95 % interval from `low` to `high`."""

    value: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


def task_scenes(task: str, data: Path, count: int, nouns: Collection[str] | None = None) -> list[Scene]:
    """Return fixed scenes of one task, each with another held-out combination, on white and in plain words.

    Fewer than `count` where there are no more. nouns: those to use, the whole vocabulary without them.

    The prompt of each is its caption. "single object" uses (name, style) pairs outside of training and names the style;
    the other tasks leave the style open.
    """
    kind = TASKS[task]
    splits = ("pair",) if kind == "single" else ("train",)
    grammar = Grammar(Cutouts(data, splits), held_out=True, shares={kind: 1}, nouns=nouns)
    return sample_task_scenes(grammar, kind, count)


def sample_task_scenes(grammar: Grammar, kind: str, count: int) -> list[Scene]:
    """Return `count` scenes of that kind with distinct prompts."""
    scenes: dict[str, Scene] = {}
    for seed in range(100 * count):
        rng = random.Random(f"task {kind} {seed}")
        content = replace(grammar.content(rng), background=WHITE, size="")
        if not grammar.fits(content):  # a white object on white
            continue
        prompt = captions(content, styled=kind == "single")[0]
        scenes.setdefault(prompt, replace(grammar.build(content, rng, seed), caption=prompt))
        if len(scenes) == count:
            break
    return list(scenes.values())


def is_right(content: Content, found: list[Detection]) -> bool:
    """Return whether the detected objects are those of the prompt."""
    if content.kind == "counted":
        return sum(each.name == content.names[0] for each in found) == content.count
    matching = [
        [each for each in found if each.name == name and color in (None, each.color)]
        for name, color in zip(content.names, content.colors)
    ]
    if not all(matching):
        return False
    if content.relation:
        return any(relation_holds(content.relation, a, b, ACROSS) for a in matching[0] for b in matching[1])
    return True


def wilson_score(right: list[bool]) -> Score:
    """Return the fraction with Wilson's interval (Wilson 1927), which is valid near 0 and 1 too."""
    count, share = len(right), sum(right) / len(right)
    z = NORMAL**2 / count
    middle = (share + z / 2) / (1 + z)
    half = NORMAL / (1 + z) * math.sqrt(share * (1 - share) / count + z / (4 * count))
    return Score(share, max(0.0, middle - half), min(1.0, middle + half), count)


def mean_score(scores: list[Score]) -> Score:
    """Return the mean over tasks of equal weight, with a normal 95 % interval from the tasks' own intervals."""
    mean = sum(each.value for each in scores) / len(scores)
    half = math.sqrt(sum(((each.high - each.low) / 2) ** 2 for each in scores)) / len(scores)
    return Score(mean, max(0.0, mean - half), min(1.0, mean + half), sum(each.count for each in scores))
