"""Benchmark fine-tuning: train the bundled model on objects and a style that it has never seen, and measure the result.

python scripts/evaluate_finetuning.py                    eight concepts by two methods, one by DreamBooth
python scripts/evaluate_finetuning.py --only mango rat   some of them

The same command resumes after a stop. Writes docs/fine-tuning.json and the sheet docs/fine-tuning.png.
"""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from sd.utils.errors import plain_errors, plain_imports

with plain_imports():
    from sd.cli.parser import ArgumentParser
    from sd.evaluation.confidence import mean_with_ci
    from sd.training.args import HelpFormatter
    from sd.training.finetune import evaluate as finetuning
    from sd.training.pretrain.emoji_dataset import HELD_OUT_STYLE
    from sd.training.pretrain.imagenet_features import feature_extractors
    from sd.utils.image_grid import contact_sheet

COLUMNS = {"known": "nearest known words", "ti": "textual inversion", "lora": "LoRA"}
GAINS = (("ti", "known"), ("lora", "known"), ("lora", "ti"), ("real", "known"))


@plain_errors
def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT / "data" / "emoji", help="folder of the prepared dataset")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "concepts", help="folder of the runs")
    parser.add_argument("--out", type=Path, default=ROOT / "docs", help="folder of the results")
    names = [HELD_OUT_STYLE, *finetuning.OBJECTS]
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help="concepts to train (default: all)")
    options = parser.parse_args()
    extractors = feature_extractors()
    chosen = [one for one in finetuning.concepts(options.data) if not options.only or one.name in options.only]
    results = [finetuning.finetune_concept(concept, options.runs, extractors) for concept in chosen]
    figures = {extractor.name: summarize_scores(results, extractor.name) for extractor in extractors}
    thing = next((one for one in chosen if one.kind == "object"), None)
    if thing is not None:
        kept = {
            f"prior {weight:g}": finetuning.measure_prior_preservation(thing, options.runs, extractors, weight)
            for weight in (1.0, 0.0)
        }
        figures["DreamBooth"] = {"thing": thing.name, "class": thing.known} | kept
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "fine-tuning.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    sheet(results).save(options.out / "fine-tuning.png", optimize=True)
    print(json.dumps(figures, indent=1))


def summarize_scores(results: list[finetuning.ConceptResult], extractor: str) -> dict:
    """Return CLIP-I of each concept, its means, and the means of the gains."""
    every = {one.concept.name: one.clip_i_scores[extractor] for one in results}
    means = {what: str(mean_with_ci([one[what] for one in every.values()])) for what in (*COLUMNS, "real")}
    gains = {f"{a} above {b}": str(mean_with_ci([one[a] - one[b] for one in every.values()])) for a, b in GAINS}
    rounded = {name: {what: round(value, 3) for what, value in one.items()} for name, one in every.items()}
    return {"concepts": rounded, "means": means, "gains": gains}


def sheet(results: list[finetuning.ConceptResult]):
    """Return a row for each concept: two training images, and the first four images of each method, one for each
    prompt.
    """
    rows = [
        one.concept.training_images[:2] + [im for what in COLUMNS for im in one.generated[what][:4]] for one in results
    ]
    labels = ["training images", "", *(label for name in COLUMNS.values() for label in (name, "", "", ""))]
    return contact_sheet(rows, [f"{one.concept.name} (from {one.concept.known})" for one in results], labels)


if __name__ == "__main__":
    main()
