"""Score generated images of a subject: CLIP-I and CLIP-T with their intervals, and copies of training images.

python scripts/evaluate.py --generated outputs --references photos --word "<rex>" --class-word dog
"""

import argparse
import sys
from pathlib import Path

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sd.utils.errors import UserError, plain_errors, plain_imports

with plain_imports():
    from sd.cli.parser import ArgumentParser
    from sd.evaluation.clip_score import SHEET, LazyImages, evaluate, load_clip, prompts_by_path, without_placeholder
    from sd.training.args import HelpFormatter
    from sd.training.finetune.data.folder_layout import is_image
    from sd.training.finetune.data.image_folder import ImageFolder


def parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add = parser.add_argument
    add("--generated", type=Path, required=True, metavar="DIR", help="folder of the generated images")
    text = "folder of the training images; without it there is no CLIP-I and no search for copies"
    add("--references", type=Path, metavar="DIR", help=text)
    text = "prompts, one line for each image by file name, or one line for all (default: the prompts in the PNGs)"
    add("--prompts", type=Path, metavar="FILE", help=text)
    text = "CLIP to score with: OpenAI's .pt, a transformers folder or a .safetensors (default: the bundled one)"
    add("--clip", type=Path, metavar="PATH", help=text)
    add("--word", help="new word in the prompts, such as <rex>, which CLIP does not know")
    add("--class-word", default="", help="replacement of the new word for CLIP, such as dog (default: none)")
    add("--device", help="cpu, cuda or mps (default: a GPU if available)")
    return parser


def generated_images(paths: list[Path]) -> list[Path]:
    return [path for path in paths if not SHEET.fullmatch(path.name)]


def prompts_for(images: list[Path], args: argparse.Namespace) -> list[str] | None:
    """Return the text for CLIP for each image. The lines of a file count unreadable images too."""
    try:
        every = generated_images([path for path in sorted(args.generated.iterdir()) if is_image(path)])
        found = prompts_by_path(every if args.prompts else images, args.prompts)
    except UserError as error:
        if args.prompts:
            raise
        print(f"note: {error} Without --prompts there is no CLIP-T.")
        return None
    return [without_placeholder(found[path], args.word, args.class_word) for path in images]


@plain_errors
def main():
    args = parser().parse_args()
    scorer = load_clip(args.clip, args.device)
    images = generated_images([image.path for image in ImageFolder(args.generated).images])
    references = LazyImages([image.path for image in ImageFolder(args.references).images]) if args.references else None
    texts = prompts_for(images, args)
    found = evaluate(scorer, LazyImages(images), references, texts)
    print(f"backbone  {found.backbone}")
    print(f"CLIP-T    {found.clip_t or 'not measured'}, of {len(images)} images to their prompts")
    if references is None:
        return
    print(f"CLIP-I    {found.clip_i}, of {len(images)} images to {len(references)} references, all pairs")
    print(f"copies    {sum(copy.copied for copy in found.copies)} of {len(images)}")
    for path, copy in zip(images, found.copies):
        if copy.copied:
            source = references.paths[copy.nearest].name
            print(f"  {path.name} repeats {source}: {copy.pixels:.2f} by pixels, {copy.features:.2f} by CLIP")


if __name__ == "__main__":
    main()
