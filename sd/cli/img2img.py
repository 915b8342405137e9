"""Shared code of img2img.py and inpaint.py: one image, or a folder of images one after another."""

import argparse
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from sd.cli.args import FlagGroups, load_pipeline, settings_from_args, with_image_size
from sd.cli.requests import GenerationRequest, split_by_image
from sd.cli.run import check_before_loading, expand_requests, generate_and_save, resume_hint
from sd.pipeline.infotext import read_infotext
from sd.pipeline.settings import GenerationSettings
from sd.pipeline.stable_diffusion import StableDiffusion
from sd.prompts.enhance import file_name
from sd.utils.errors import DiskError, UserError
from sd.utils.images import open_image

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
LISTED = 5  # names in a note


@dataclass
class Source:
    """An image and its mask. title: the beginning of the result's file name, "" for a number alone."""

    image: Image.Image
    mask: Image.Image | None
    title: str = ""


def add_resume(flags: FlagGroups) -> None:
    help = "skip the images of a folder whose results --outdir has already; needs the same --seed"
    flags.add("output", "--resume", action="store_true", help=help)


def generate_from_images(args: argparse.Namespace, path: str, mask_path: str | None = None) -> None:
    """Generates what the flags ask for from an image or from each image of a folder, and saves it.

    mask_path: a mask for all, or a folder with a mask of the same name for each. Raises UserError, before anything is
    loaded, for flags and files that cannot be used; a broken image in a folder is skipped with a note.
    """
    settings = settings_from_args(args)
    paths = images_in(Path(path)) if Path(path).is_dir() else []
    masks = masks_for(paths, mask_path)
    if any(Path(args.outdir).resolve() == one.parent.resolve() for one in paths):
        raise UserError(
            f"{args.outdir} is the folder of the images, whose results would be taken for images the next time: choose "
            "another --outdir."
        )
    if args.resume and (args.seed is None or not paths):
        raise UserError("--resume is for a folder of images, and needs the --seed of the first run: give both.")
    single = None if paths else Source(open_image(path), None if mask_path is None else open_image(mask_path))
    check_before_loading(args, [settings], has_image=True)
    pipe = load_pipeline(args)
    if single:
        generate_from_source(pipe, settings, single, args)
    else:
        with resume_hint(args, settings):
            generate_from_folder(pipe, settings, open_sources(paths, masks), args, len(paths))


def generate_from_folder(
    pipe: StableDiffusion, settings: GenerationSettings, sources: Iterator[Source], args: argparse.Namespace, total: int
) -> None:
    """Generates from one image after another; one that cannot be used is skipped with a note.

    total: the number of images in the folder. Raises UserError where none of them could be used.
    """
    done = there = 0
    problem = UserError("no image of the folder can be opened: convert them to PNG or JPEG.")
    for source in sources:
        try:
            if generate_from_source(pipe, settings, source, args):
                done += 1
            else:
                there += 1
        except DiskError:
            raise
        except UserError as error:
            print(f"note: {source.title} is skipped, as {error}")
            problem = error
    if done + there == 0:
        raise problem
    parts = [f"{done} of {total} images done"]
    parts += [f"{there} there already"] if there else []
    parts += [f"{total - done - there} skipped"] if total > done + there else []
    print(", ".join(parts))


def generate_from_source(
    pipe: StableDiffusion, settings: GenerationSettings, source: Source, args: argparse.Namespace
) -> bool:
    """Generates what the flags ask for from one image and saves it; returns whether there was anything left to do."""
    sized, note = with_image_size(settings, source.image, pipe.image_size)
    first, count = sized.seeds()[0], sized.num_images
    todo = [sized.replace(seed=first + i * count) for i in range(args.n_iter)]
    requests = [replace(one, title=source.title or one.title) for one in expand_requests(pipe, todo, args)]
    if args.resume:
        requests = missing_requests(pipe, requests, source.image, Path(args.outdir))
    if requests:
        if note:
            print(f"{source.title}: {note}" if source.title else note)
        generate_and_save(pipe, requests, args, source.image, source.mask)
    return bool(requests)


def missing_requests(
    pipe: StableDiffusion, requests: list[GenerationRequest], image: Image.Image, folder: Path
) -> list[GenerationRequest]:
    """Returns the requests without the images that a folder has: intact ones of the same name, with the same infotext.

    Where only some of a request's images are missing, each of these is a request of its own.
    """
    missing: list[GenerationRequest] = []
    for request in requests:
        there = saved_texts(folder, request.prefix)
        settings = pipe.resolve_size(request.settings, image)
        texts = request.texts(pipe.infotexts(settings, from_image=True))
        if not there & set(texts):
            missing.append(request)
            continue
        singly = split_by_image(request.settings)
        missing += [replace(request, settings=one) for one, text in zip(singly, texts) if text not in there]
    return missing


def saved_texts(folder: Path, prefix: str) -> set[str]:
    """Returns the infotexts of the images {prefix}00000.png of a folder."""
    found = set()
    for path in folder.iterdir():
        if re.fullmatch(re.escape(prefix) + r"\d{5,}\.png", path.name):
            with suppress(UserError):  # a broken file is generated again
                found.add(read_infotext(path))
    return found


def images_in(folder: Path) -> list[Path]:
    """Returns the images of a folder by name; a note says what else is in it. Raises UserError where there are none."""
    entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    paths = [path for path in entries if path.suffix.lower() in IMAGE_ENDINGS and path.is_file()]
    if not paths:
        raise UserError(f"{folder} holds no images: give a folder with PNG, JPEG or WEBP files, or one image.")
    if others := [f"{path.name}/" if path.is_dir() else path.name for path in entries if path not in paths]:
        more = f" and {len(others) - LISTED} more" if len(others) > LISTED else ""
        listed = f"{', '.join(others[:LISTED])}{more}"
        which = "has no image's ending and is" if len(others) == 1 else "have no image's ending and are"
        print(f"note: {folder} also holds {listed}, which {which} left out.")
    return paths


def masks_for(paths: list[Path], mask_path: str | None) -> list[Path | None]:
    """Returns the mask of each image: the one mask, or the file of its name. Raises UserError for a missing one."""
    if mask_path is None or not Path(mask_path).is_dir():
        return [None if mask_path is None else Path(mask_path)] * len(paths)
    if not paths:
        raise UserError(f"{mask_path} is a folder: give one mask for one image, or a folder of images as well.")
    named = {path.stem: path for path in images_in(Path(mask_path))}
    if missing := [path.name for path in paths if path.stem not in named]:
        raise UserError(f"{mask_path} has no mask for {missing[0]}: give each mask the name of its image.")
    return [named[path.stem] for path in paths]


def titles_of(paths: list[Path]) -> list[str]:
    """Returns a title for each image, the beginning of its results' names: its own name, with the ending where several
    have the same, and a number in front where those are still the same.
    """
    stems, names = Counter(file_name(one.stem) for one in paths), Counter(file_name(one.name) for one in paths)
    numbered = [f"{index:05} {one.name}" for index, one in enumerate(paths)]
    whole = [one.name if names[file_name(one.name)] == 1 else number for one, number in zip(paths, numbered)]
    return [one.stem if stems[file_name(one.stem)] == 1 else name for one, name in zip(paths, whole)]


def open_sources(paths: list[Path], masks: list[Path | None]) -> Iterator[Source]:
    """Opens the images of a folder, one at a time; a broken one is skipped with a note."""
    for path, mask, title in zip(paths, masks, titles_of(paths)):
        try:
            yield Source(open_image(path), None if mask is None else open_image(mask), title)
        except UserError as error:
            print(f"note: skipped, as {error}")
