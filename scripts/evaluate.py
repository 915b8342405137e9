"""How good are drawings of a subject? CLIP-I and CLIP-T with their intervals, and which drawings are copies.

python scripts/evaluate.py --generated outputs --references photos --word "<rex>" --class-word dog
"""

import argparse
import sys
from pathlib import Path

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sd.evaluation.clip_score import SHEET, LazyImages, evaluate, load_clip, prompts_by_path, without_placeholder
from sd.training.finetune.data.image_folder import Photos, is_picture
from sd.utils.errors import UserError, plain_errors


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--generated", type=Path, required=True, metavar="DIR", help="the drawings")
    add(
        "--references", type=Path, metavar="DIR", help="the pictures that were learnt from (none: no CLIP-I, no copies)"
    )
    add(
        "--prompts", type=Path, metavar="FILE", help="a prompt a line, by file name, or one for all (those in the PNGs)"
    )
    add(
        "--clip",
        type=Path,
        metavar="PATH",
        help="OpenAI's .pt, a transformers folder, a .safetensors (the bundled one)",
    )
    add("--word", help="the new word in the prompts, such as <rex>, which CLIP does not know")
    add("--class-word", default="", help="what CLIP reads in its place, such as dog (nothing)")
    add("--device", help="cpu, cuda, mps (a GPU where there is one)")
    return parser


def drawings(paths: list[Path]) -> list[Path]:
    return [path for path in paths if not SHEET.fullmatch(path.name)]


def prompts_for(made: list[Path], args: argparse.Namespace) -> list[str] | None:
    """What CLIP reads for each drawing. The lines of a file count the drawings that cannot be read as well."""
    try:
        every = drawings([path for path in sorted(args.generated.iterdir()) if is_picture(path)])
        found = prompts_by_path(every if args.prompts else made, args.prompts)
    except UserError as error:
        if args.prompts:
            raise
        print(f"note: {error} Without --prompts there is no CLIP-T.")
        return None
    return [without_placeholder(found[path], args.word, args.class_word) for path in made]


@plain_errors
def main():
    args = parser().parse_args()
    scorer = load_clip(args.clip, args.device)
    made = drawings([photo.path for photo in Photos(args.generated).photos])
    references = LazyImages([photo.path for photo in Photos(args.references).photos]) if args.references else None
    texts = prompts_for(made, args)
    found = evaluate(scorer, LazyImages(made), references, texts)
    print(f"backbone  {found.backbone}")
    print(f"CLIP-T    {found.clip_t or 'not measured'}, of {len(made)} drawings to their prompts")
    if references is None:
        return
    print(f"CLIP-I    {found.clip_i}, of {len(made)} drawings to {len(references)} references, all pairs")
    print(f"copies    {sum(copy.copied for copy in found.copies)} of {len(made)}")
    for path, copy in zip(made, found.copies):
        if copy.copied:
            source = references.paths[copy.nearest].name
            print(f"  {path.name} repeats {source}: {copy.pixels:.2f} by pixels, {copy.features:.2f} by CLIP")


if __name__ == "__main__":
    main()
