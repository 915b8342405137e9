"""GenEval's six tasks in the world of scenes, on held-out combinations, judged by a detector.

Ghosh, Hajishirzi and Schmidt 2023, "GenEval: An Object-Focused Framework for Evaluating Text-to-Image Alignment":
prompts come from templates, and an image is right where the detector finds the objects, their number, color and place.
"""

import math
import random
from dataclasses import dataclass, replace
from pathlib import Path

from sd.training.pretrain.scenes.backgrounds import WHITE
from sd.training.pretrain.scenes.cutouts import Cutouts
from sd.training.pretrain.scenes.detector import Detection
from sd.training.pretrain.scenes.grammar import Grammar, Scene, holds
from sd.training.pretrain.scenes.wording import Content, captions

TASKS = {  # GenEval's names, and the kind of scene
    "single object": "single",
    "two objects": "pair",
    "counting": "counted",
    "colors": "recolored",
    "position": "placed",
    "color attribution": "colored_pair",
}
ACROSS = 1.73  # a relation holds up to 60 degrees off its axis, as in GenEval
NORMAL = 1.959964  # 95 % of a normal distribution lie within so many deviations


@dataclass(frozen=True)
class Score:
    """The share of right images among `count`, with Wilson's 95 % interval from `low` to `high`."""

    value: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


def task_scenes(task: str, data: Path, count: int) -> list[Scene]:
    """Fixed scenes of one task, each of another held-out combination, on white and in plain words.

    The prompt of each is its caption. "single object" takes (name, style) pairs that training did not see, and says
    the style; the other tasks leave the style open.
    """
    kind = TASKS[task]
    splits = ("pair",) if kind == "single" else ("train",)
    grammar = Grammar(Cutouts(data, splits), held_out=True, shares={kind: 1})
    return draw_task_scenes(grammar, kind, count)


def draw_task_scenes(grammar: Grammar, kind: str, count: int) -> list[Scene]:
    """`count` scenes of that kind, none with the same prompt as another."""
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
    """Whether what the detector found is what the prompt says."""
    if content.kind == "counted":
        return sum(each.name == content.names[0] for each in found) == content.count
    matching = [
        [each for each in found if each.name == name and color in (None, each.color)]
        for name, color in zip(content.names, content.colors)
    ]
    if not all(matching):
        return False
    if content.relation:
        return any(holds(content.relation, a, b, ACROSS) for a in matching[0] for b in matching[1])
    return True


def score(right: list[bool]) -> Score:
    """The share with Wilson's interval (Wilson 1927), which is sound near 0 and 1 too."""
    count, share = len(right), sum(right) / len(right)
    z = NORMAL**2 / count
    middle = (share + z / 2) / (1 + z)
    half = NORMAL / (1 + z) * math.sqrt(share * (1 - share) / count + z / (4 * count))
    return Score(share, max(0.0, middle - half), min(1.0, middle + half), count)


def mean_score(scores: list[Score]) -> Score:
    """The mean of the tasks, each counting the same, with a normal 95 % interval from the tasks' own spreads."""
    mean = sum(each.value for each in scores) / len(scores)
    half = math.sqrt(sum(((each.high - each.low) / 2) ** 2 for each in scores)) / len(scores)
    return Score(mean, max(0.0, mean - half), min(1.0, mean + half), sum(each.count for each in scores))
