"""Shared code of img2img.py and inpaint.py: one image, or a folder of images one after another."""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from sd.cli.args import load_pipeline, settings_from_args, with_image_size
from sd.cli.run import expand_requests, generate_and_save
from sd.utils.errors import UserError
from sd.utils.images import open_image

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


@dataclass
class Source:
    """An image and its mask. title: the beginning of the result's file name, "" for a number alone."""

    image: Image.Image
    mask: Image.Image | None
    title: str = ""


def generate_from_images(args: argparse.Namespace, path: str, mask_path: str | None = None) -> None:
    """Generates what the flags ask for from an image or from each image of a folder, and saves it.

    mask_path: a mask for all, or a folder with a mask of the same name for each. Raises UserError, before anything is
    loaded, for flags and files that cannot be used; a broken image in a folder is skipped with a note.
    """
    settings = settings_from_args(args)
    paths = images_in(Path(path)) if Path(path).is_dir() else []
    masks = masks_for(paths, mask_path)
    single = None if paths else Source(open_image(path), None if mask_path is None else open_image(mask_path))
    pipe = load_pipeline(args)
    for source in [single] if single else open_sources(paths, masks):
        sized = with_image_size(settings, source.image, pipe.image_size)
        first, count = sized.seeds()[0], sized.num_images
        todo = [sized.replace(seed=first + i * count) for i in range(args.n_iter)]
        requests = [replace(one, title=source.title or one.title) for one in expand_requests(pipe, todo, args)]
        generate_and_save(pipe, requests, args, source.image, source.mask)


def images_in(folder: Path) -> list[Path]:
    """Returns the images of a folder by name. Raises UserError where there are none."""
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_ENDINGS)
    if not paths:
        raise UserError(f"{folder} holds no images: give a folder with PNG, JPEG or WEBP files, or one image.")
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


def open_sources(paths: list[Path], masks: list[Path | None]) -> Iterator[Source]:
    """Opens the images of a folder, one at a time; a broken one is skipped with a note."""
    for path, mask in zip(paths, masks):
        try:
            yield Source(open_image(path), None if mask is None else open_image(mask), path.stem)
        except UserError as error:
            print(f"note: skipped, as {error}")
