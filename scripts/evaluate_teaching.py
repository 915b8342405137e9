"""Teach the bundled model things and a style that it never saw, and measure how well it learnt them.

python scripts/evaluate_teaching.py                     eight concepts by two methods, one by DreamBooth
python scripts/evaluate_teaching.py --only mango rat    some of them

Given again, it goes on where it was stopped. Writes docs/teaching.json and the sheet docs/teaching.png.
"""

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from sd.evaluation.confidence import mean_with_ci
from sd.training.finetune.evaluate import OBJECTS, Taught, concepts, keep_class, teach_concept
from sd.training.pretrain.emoji_dataset import HELD_OUT_STYLE
from sd.training.pretrain.imagenet_features import judges
from sd.utils.errors import plain_errors
from sd.utils.image_grid import contact_sheet

COLUMNS = {"known": "nearest known words", "ti": "textual inversion", "lora": "LoRA"}
GAINS = (("ti", "known"), ("lora", "known"), ("lora", "ti"), ("real", "known"))


@plain_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT / "data" / "emoji", help="default: data/emoji")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "concepts", help="default: runs/concepts")
    parser.add_argument("--out", type=Path, default=ROOT / "docs", help="default: docs")
    parser.add_argument("--only", nargs="+", choices=[HELD_OUT_STYLE, *OBJECTS], metavar="NAME", help="some concepts")
    options = parser.parse_args()
    asked = judges()
    chosen = [one for one in concepts(options.data) if not options.only or one.name in options.only]
    taught = [teach_concept(concept, options.runs, asked) for concept in chosen]
    figures = {judge.name: likeness(taught, judge.name) for judge in asked}
    thing = next((one for one in chosen if one.kind == "object"), None)
    if thing is not None:
        kept = {f"prior {weight:g}": keep_class(thing, options.runs, asked, weight) for weight in (1.0, 0.0)}
        figures["DreamBooth"] = {"thing": thing.name, "class": thing.known} | kept
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "teaching.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    sheet(taught).save(options.out / "teaching.png", optimize=True)
    print(json.dumps(figures, indent=1))


def likeness(taught: list[Taught], judge: str) -> dict:
    """CLIP-I of each concept, its means, and the means of the gains."""
    every = {one.concept.name: one.likeness[judge] for one in taught}
    means = {what: str(mean_with_ci([one[what] for one in every.values()])) for what in (*COLUMNS, "real")}
    gains = {f"{a} above {b}": str(mean_with_ci([one[a] - one[b] for one in every.values()])) for a, b in GAINS}
    rounded = {name: {what: round(value, 3) for what, value in one.items()} for name, one in every.items()}
    return {"concepts": rounded, "means": means, "gains": gains}


def sheet(taught: list[Taught]):
    """A row for each concept: two of its pictures, and the first four drawings of each sort, one of each prompt."""
    rows = [one.concept.shown[:2] + [im for what in COLUMNS for im in one.drawings[what][:4]] for one in taught]
    labels = ["taught with", "", *(label for name in COLUMNS.values() for label in (name, "", "", ""))]
    return contact_sheet(rows, [f"{one.concept.name} (from {one.concept.known})" for one in taught], labels)


if __name__ == "__main__":
    main()
