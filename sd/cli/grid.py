"""X/Y/Z grids on the command line: the flags, the folder of a grid, and going on after an interrupt.

outputs/xyz-00000/grid.json    the flags, with the random seeds that were drawn
                  00000.png    each image, by its place: x first, then y, then z
                  grid.png     all of them on one labeled sheet
"""

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor
from tqdm import tqdm

from sd.checkpoints.discovery import Models
from sd.checkpoints.model_files import content_of
from sd.cli.args import (
    FlagGroups,
    add_compute_flags,
    add_image_lists,
    add_model_flags,
    add_options,
    given_flags,
    load_pipeline,
    prompt_from_args,
    split_suffix,
)
from sd.cli.parser import ArgumentParser
from sd.cli.run import check_before_loading, print_notes, script_command
from sd.evaluation.grids.axes import parse_axis
from sd.evaluation.grids.grid import AXES, Grid, check_models, generate_cells, grid_sheet, plan_grid
from sd.pipeline.infotext import read_infotext
from sd.pipeline.settings import OPTIONS, GenerationSettings
from sd.pipeline.stable_diffusion import StableDiffusion
from sd.prompts.wildcards import expand_wildcards
from sd.utils.errors import UserError
from sd.utils.files import check_outdir, remove_orphans, replacing, save_png, write_png
from sd.utils.images import open_image

FILE_FLAGS = (
    *("init_img", "mask", "control_image", "region_mask"),
    *("ckpt", "vae", "lora", "embedding"),
)
LARGE_IMAGE = 1024 * 1024  # pixels
FLAGS_FILE, SHEET = "grid.json", "grid.png"
BAR = "{desc}: {percentage:3.0f}%|{bar}| {elapsed} so far, {remaining} left"
AXIS_HELP = 'NAME=VALUES, such as "steps=10-30 (+10)", "sampler=euler, dpmpp_2m" or "prompt_sr=red, blue"'


def grid_parser(description: str) -> FlagGroups:
    """Returns the flags of the script: one image's options, up to three axes, and those of files and speed."""
    parser = ArgumentParser(description=description)
    flags = FlagGroups(parser)
    add = flags.add
    add("prompt", "positional_prompt", nargs="?", metavar="PROMPT", help="text prompt; the same as --prompt")
    axes = parser.add_argument_group("axes")
    axes.add_argument("--x", metavar="AXIS", help=f"what changes from column to column: {AXIS_HELP}")
    axes.add_argument("--y", metavar="AXIS", help="what changes from row to row")
    axes.add_argument("--z", metavar="AXIS", help="what changes from sheet to sheet")
    add_options(flags, [row for row in OPTIONS if row.name != "num_images"], {"prompt": None})
    add("img2img", "--init-img", "--image", metavar="FILE", help="image to start from")
    add("img2img", "--mask", metavar="FILE", help="mask for it: white where to regenerate, black where to keep")
    add_image_lists(flags)
    add_model_flags(flags)
    add_compute_flags(parser, flags)
    add("performance", "--device", help="cpu, cuda or mps", default_help="a GPU where there is one")
    add("performance", "--taesd", metavar="PATH", help="decode with TAESD (a file or a folder), faster and less exact")
    add("output", "--outdir", default="outputs", help="folder for the folder of the grid")
    add("output", "--resume", metavar="FOLDER", help="go on with the grid in this folder; takes no other flags")
    return flags


def generate_grid(flags: FlagGroups, args: argparse.Namespace) -> None:
    """Generates the grid that the flags ask for, or the rest of the one in --resume, and its sheet."""
    if args.resume:
        folder = Path(args.resume)
        args = saved_flags(flags, args, folder)
    grid, inputs = plan_from_args(args)
    check_models(grid, Models(), args.vae)
    check_before_loading(args, [point.settings for point in grid.points], bool(args.init_img))
    if not args.resume:
        folder = new_folder(check_outdir(args.outdir), args, grid)
    remove_orphans(folder)
    images = dict(saved_images(folder, grid))
    columns, rows, sheets = grid.sizes
    shape = f"{columns}x{rows}" + (f"x{sheets}" if sheets > 1 else "")
    print(f"{folder}: {shape} images, seed {args.seed}; {len(images)} of {len(grid.points)} are there.")
    try:
        generate_missing(args, grid, inputs, folder, images)
    except KeyboardInterrupt:
        print(f"to go on: {script_command(['--resume', str(folder)])}", file=sys.stderr)
        raise
    save_sheet(grid, images, folder)


def plan_from_args(args: argparse.Namespace) -> tuple[Grid, dict[str, Any]]:
    """Returns the grid of the flags and the images that all its cells start from. Sets args.seed where it is random."""
    prompt = prompt_from_args(args)
    if prompt is None:
        raise UserError('missing prompt; pass it in quotes, such as "a red apple".')
    if args.mask and not args.init_img:
        raise UserError("--mask belongs to an image: give --init-img as well.")
    given = {row.name: getattr(args, row.name) for row in OPTIONS if row.name != "num_images"}
    settings = GenerationSettings(**given | {"prompt": prompt})
    args.seed, args.variation_seed = settings.seed, settings.variation_seed
    settings = settings.replace(
        prompt=expand_wildcards(prompt, args.seed), negative_prompt=expand_wildcards(args.negative_prompt, args.seed)
    )
    axes = [parse_axis(text) if (text := getattr(args, name.lower())) else None for name in AXES]
    inputs: dict[str, Any] = {
        "image": open_image(args.init_img) if args.init_img else None,
        "mask": open_image(args.mask) if args.mask else None,
        "control_image": [open_image(path) for path in args.control_image],
        "region_mask": [open_image(path) for path in args.region_mask],
    }
    grid = plan_grid(settings, axes, from_image=bool(args.init_img))
    check_image_size(grid, inputs["image"])
    return grid, inputs


def check_image_size(grid: Grid, image: Image.Image | None) -> None:
    """Raises UserError for a large image whose own size the cells would have."""
    if image is None or image.width * image.height <= LARGE_IMAGE:
        return
    if any(point.settings.width is None or point.settings.height is None for point in grid.points):
        raise UserError(
            f"the image is {image.width}x{image.height}: give --width and --height for the images of the grid."
        )


def new_folder(outdir: Path, args: argparse.Namespace, grid: Grid) -> Path:
    """Creates the next free folder xyz-00000 with the flags in it, axes and seeds as they were understood."""
    number = 0
    while True:
        folder = outdir / f"xyz-{number:05}"
        try:
            folder.mkdir()
            break
        except FileExistsError:
            number += 1
    understood = {name.lower(): None if axis is None else str(axis) for name, axis in zip(AXES, grid.axes)}
    understood |= absolute_paths(args)
    with replacing(folder / FLAGS_FILE) as part:
        part.write_text(json.dumps(vars(args) | understood, indent=1), encoding="utf-8")
    return folder


def absolute_paths(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the flags that name files, as absolute paths where such a file is there: for --resume from anywhere.

    A name that is no file and no model's folder is one in `weights/`, and stays.
    """

    def absolute(text: str) -> str:
        path, suffix = split_suffix(text)
        is_there = Path(path).is_file() or (Path(path).is_dir() and content_of(Path(path)).kind != "")
        return ":".join([str(Path(path).resolve()), *([] if suffix is None else [suffix])]) if is_there else text

    found: dict[str, Any] = {}
    for name in FILE_FLAGS:
        if value := getattr(args, name):
            found[name] = absolute(value) if isinstance(value, str) else [absolute(one) for one in value]
    if args.taesd:
        found["taesd"] = str(Path(args.taesd).resolve())
    return found


def saved_flags(flags: FlagGroups, args: argparse.Namespace, folder: Path) -> argparse.Namespace:
    """Returns the flags of the grid in a folder. Raises UserError where there is none, and for further flags."""
    if others := sorted(given_flags(flags.parser) - {"resume"}):
        first = "the prompt" if "prompt" in others[0] else f"--{others[0].replace('_', '-')}"
        raise UserError(f"--resume takes the flags of the first run: leave out {first}.")
    path = folder / FLAGS_FILE
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"file not found: {path}; give the folder of a grid, such as outputs/xyz-00000.") from error
    except ValueError as error:
        raise UserError(f"{path} is damaged: start the grid again.") from error
    if not isinstance(saved, dict) or not saved.keys() <= vars(args).keys():
        raise UserError(f"{path} is not of this version of the program: start the grid again.")
    return argparse.Namespace(**vars(args) | saved | {"resume": args.resume})


def saved_images(folder: Path, grid: Grid) -> Iterator[tuple[int, Image.Image]]:
    """Yields the intact images of a grid's folder by their places; removes broken ones."""
    for index in range(len(grid.points)):
        path = path_of(folder, index)
        if not path.exists():
            continue
        try:
            yield index, open_image(path)
        except UserError:
            print(f"note: {path} is broken and is generated again.")
            path.unlink()


def path_of(folder: Path, index: int) -> Path:
    return folder / f"{index:05}.png"


def generate_missing(
    args: argparse.Namespace, grid: Grid, inputs: dict[str, Any], folder: Path, images: dict[int, Image.Image]
) -> None:
    """Generates and saves the images that are not there, and adds them to `images`."""

    def load(ckpt: str | None, vae: str | None) -> StableDiffusion:
        changes = {"ckpt": ckpt or args.ckpt, "vae": vae or args.vae}
        return load_pipeline(argparse.Namespace(**vars(args) | changes))

    printed: set[str] = set()
    with closing(GridProgress(grid, images)) as progress:
        for index, output in generate_cells(load, grid, **inputs, done=set(images), on_step=progress.on_step):
            images[index] = output.images[0]
            path = save_png(output.images[0], folder, output.infotexts[0], number=index)
            with tqdm.external_write_mode():
                print_notes(output, printed)
                print(f"{path}  {grid.describe(index)}")


def save_sheet(grid: Grid, images: dict[int, Image.Image], folder: Path) -> None:
    """Saves the sheet, with the infotext of its first image and the axes in it, in place of an earlier one."""
    first = path_of(folder, 0)
    text = grid.infotext(read_infotext(first)) if first.exists() else ""
    sheet = grid_sheet(grid, images)
    write_png(sheet, folder / SHEET, text)
    print(f"{folder / SHEET}  all {len(images)}, {sheet.width}x{sheet.height}")


class GridProgress:
    """A progress bar over all cells, each weighed by its number of steps, with the time that is left."""

    def __init__(self, grid: Grid, done: dict[int, Image.Image]):
        self.weights = [point.settings.steps for point in grid.points]
        self.finished = 0.0
        self.total = sum(weight for index, weight in enumerate(self.weights) if index not in done)
        self.bar: tqdm | None = None  # created at the first step, so that an error before it prints one clean line

    def on_step(self, index: int) -> Any:
        """Returns the `on_step` of one cell."""
        before, weight = self.finished, self.weights[index]
        self.finished += weight

        def show(step: int, steps: int, x0: Tensor) -> None:
            if self.bar is None:
                self.bar = tqdm(total=self.total, desc="grid", bar_format=BAR, smoothing=0, leave=False)
            self.bar.update(before + weight * step / steps - self.bar.n)

        return show

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
