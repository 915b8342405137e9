"""Teach the bundled model things and a style that it never saw, and measure how well it learnt them.

python scripts/evaluate_teaching.py                     eight concepts, two methods (under an hour on two cores)
python scripts/evaluate_teaching.py --only mango rat    some of them

Given again, it goes on where it was stopped. Writes docs/teaching.json and the sheet docs/teaching.png.
"""

import argparse
import json
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from sd.contact_sheet import contact_sheet
from sd.errors import plain_errors
from sd.evaluate import load_clip
from sd.means import mean_of
from sd.training.concepts import OBJECTS, concepts, keep_class, teach_concept
from sd.training.emoji import HELD_OUT_STYLE

COLUMNS = {"known": "nearest known words", "ti": "textual inversion", "lora": "LoRA"}


@plain_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT / "data" / "emoji", help="default: data/emoji")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "concepts", help="default: runs/concepts")
    parser.add_argument("--out", type=Path, default=ROOT / "docs", help="default: docs")
    parser.add_argument("--only", nargs="+", choices=[HELD_OUT_STYLE, *OBJECTS], metavar="NAME", help="some concepts")
    options = parser.parse_args()
    scorer, began = load_clip(), time.monotonic()
    chosen = [one for one in concepts(options.data) if not options.only or one.name in options.only]
    taught = [teach_concept(concept, options.runs, scorer) for concept in chosen]
    figures = {"scored by": scorer.name, "CLIP-I": {one.concept.name: one.likeness for one in taught}}
    for what, other in (("ti", "known"), ("lora", "known"), ("lora", "ti")):
        gains = [one.likeness[what] - one.likeness[other] for one in taught]
        figures[f"{what} above {other}"] = str(mean_of(gains))
    thing = next((one for one in chosen if one.kind == "object"), None)
    if thing is not None:
        kept = {f"prior {weight:g}": keep_class(thing, options.runs, scorer, weight) for weight in (1.0, 0.0)}
        figures["DreamBooth"] = {"of": thing.name, "class": thing.known} | kept
    figures["seconds"] = round(time.monotonic() - began)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "teaching.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    rows = [one.concept.pictures[:2] + [im for what in COLUMNS for im in one.drawings[what][:3]] for one in taught]
    labels = ["taught with", "", *(label for name in COLUMNS.values() for label in (name, "", ""))]
    contact_sheet(rows, [f"{one.concept.name} (from {one.concept.known})" for one in taught], labels).save(
        options.out / "teaching.png", optimize=True
    )
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
