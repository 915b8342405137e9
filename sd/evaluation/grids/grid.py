"""A grid: the cells of up to three axes, their images one checkpoint after another, and one labeled sheet of them."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from PIL import Image

from sd.adapters.lora_tags import split_tags
from sd.checkpoints.discovery import AUTOMATIC, OWN_VAE, Models, locate
from sd.control.units import parse_units
from sd.evaluation.comparison import Column, check_files
from sd.evaluation.grids.axes import ORDER, Axis, Point, parse_axis
from sd.evaluation.grids.values import join_values
from sd.pipeline.image_inputs import ImageLike, as_image_list, as_images
from sd.pipeline.infotext import with_setting
from sd.pipeline.inputs.control import find_models
from sd.pipeline.inputs.second_pass import hires_upscaler
from sd.pipeline.output import GenerationOutput
from sd.pipeline.sampling_loop import OnStep
from sd.pipeline.settings import OPTIONS, GenerationSettings
from sd.pipeline.stable_diffusion import StableDiffusion
from sd.prompts.prompt_adapters import load_prompt_adapters
from sd.utils.errors import UserError
from sd.utils.image_grid import LARGEST, contact_sheet, stack_sheets

MAX_CELLS = 1000
MAX_SHEET = 64_000_000  # pixels of all cells of a sheet: larger cells are reduced
AXES = ("X", "Y", "Z")
BY_MODE = {row.name: row.mode for row in OPTIONS if row.mode}

Load = Callable[[str | None, str | None], StableDiffusion]


@dataclass(frozen=True)
class Grid:
    """The axes X (columns), Y (rows) and Z (sheets), None for one that is not used, and the cells, X changing fastest.

    x, y, z of cell i: i % columns, i // columns % rows, i // columns // rows.
    """

    axes: tuple[Axis | None, Axis | None, Axis | None]
    points: tuple[Point, ...]

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Returns the number of columns, rows and sheets."""
        columns, rows, sheets = (len(axis.values) if axis else 1 for axis in self.axes)
        return columns, rows, sheets

    def by_model(self, done: Collection[int] = ()) -> dict[tuple[str | None, str | None], list[int]]:
        """Returns the cells that are not done by their checkpoint and VAE, so that each is loaded once."""
        found: dict[tuple[str | None, str | None], list[int]] = {}
        for index, point in enumerate(self.points):
            if index not in done:
                found.setdefault((point.ckpt, point.vae), []).append(index)
        return found

    def describe(self, index: int) -> str:
        """Returns the values of a cell: "Steps: 20, Sampler: euler"."""
        columns, rows, _ = self.sizes
        places = (index % columns, index // columns % rows, index // columns // rows)
        return ", ".join(axis.labels()[i] for axis, i in zip(self.axes, places) if axis)

    def infotext(self, first: str) -> str:
        """Returns the infotext of the sheet: that of its first image, with the axes as the webui writes them."""
        text = with_setting(first, "Script", "X/Y/Z plot") if first else ""
        for name, axis in zip(AXES, self.axes):
            if axis and text:
                text = with_setting(text, f"{name} Type", axis.label)
                text = with_setting(text, f"{name} Values", join_values(axis.values))
        return text


def plan_grid(settings: GenerationSettings, axes: Sequence[Axis | str | None], from_image: bool = False) -> Grid:
    """Returns the grid of one to three axes, each an `Axis` or its text, such as "steps=10, 20"; None or "" for one
    that is not used.

    settings: of all cells; their seed is the same in all unless an axis changes it. from_image: whether there is an
    image to start from. Raises UserError for a value that cannot be used, for an axis that changes nothing, and for
    more than MAX_CELLS cells.
    """
    given = [(parse_axis(axis) if isinstance(axis, str) else axis) if axis else None for axis in axes]
    check_axes([axis for axis in given if axis], from_image)
    if settings.num_images != 1:
        raise UserError(
            f"a cell of a grid holds one image, not {settings.num_images}: generate one, or use the axis seed."
        )
    x, y, z = [*given, None, None, None][:3]
    grid = Grid((x, y, z), ())
    columns, rows, sheets = grid.sizes
    if columns * rows * sheets > MAX_CELLS:
        raise UserError(
            f"a grid of {columns}x{rows}x{sheets} has {columns * rows * sheets} images: the most is {MAX_CELLS}."
        )
    cells = [(i, j, k) for k in range(sheets) for j in range(rows) for i in range(columns)]
    return Grid((x, y, z), tuple(make_point(settings, grid.axes, places) for places in cells))


def check_axes(axes: list[Axis], from_image: bool) -> None:
    """Raises UserError for no axis, more than three, one that is given twice, and one that would change nothing."""
    if not axes:
        raise UserError("a grid needs an axis: give at least one, such as steps=10, 20, 30.")
    if len(axes) > len(AXES):
        raise UserError(f"there are {len(axes)} axes: a grid has at most three.")
    names = [axis.name for axis in axes]
    for name in names:
        if names.count(name) > 1 and name != "prompt_sr":
            raise UserError(f"the axis {name} is given twice: choose another one.")
        if BY_MODE.get(name) == "image" and not from_image:
            raise UserError(f"the axis {name} changes nothing without an image to start from: give one.")
        if BY_MODE.get(name) == "text" and from_image:
            raise UserError(f"the axis {name} is for images from text: leave it out, or the image to start from.")


def make_point(settings: GenerationSettings, axes: Sequence[Axis | None], places: Sequence[int]) -> Point:
    """Returns the cell at these places of the axes."""
    used = [(axis, place) for axis, place in zip(axes, places) if axis]
    used.sort(key=lambda pair: ORDER.index(pair[0].name) if pair[0].name in ORDER else len(ORDER))
    point = Point(settings)
    for axis, place in used:
        point = axis.apply(point, place)
    return point


def check_models(grid: Grid, models: Models, vae: str | None = None) -> None:
    """Raises UserError for a checkpoint, a VAE, a LoRA, an upscaler or a ControlNet that a cell names and is not there.

    vae: the separate VAE of the cells without one.
    """
    for ckpt, own in grid.by_model():
        check_files([Column(ckpt=ckpt)], own or vae)
        if own and not ckpt and own.lower() not in (*OWN_VAE, *AUTOMATIC):
            locate("VAE", own, models)
    for point in grid.points:
        settings = point.settings
        for tag in split_tags(settings.prompt).tags:
            models.find("LoRA", tag.name)
        hires_upscaler(settings, models)
        find_models(parse_units(settings.control), models)


def check_loras(pipe: StableDiffusion, points: Sequence[Point]) -> None:
    """Loads the adapters that the prompts name once, and unloads them. Raises UserError for one that does not fit."""
    tags = {tuple(split_tags(point.settings.prompt).tags): point.settings for point in points}
    for settings in tags.values():
        with load_prompt_adapters(pipe.adapters, settings.prompt, settings.negative_prompt):
            pass


def generate_cells(
    model: StableDiffusion | Load,
    grid: Grid,
    image: ImageLike | None = None,
    mask: ImageLike | None = None,
    control_image: ImageLike | Sequence[ImageLike] | None = None,
    region_mask: ImageLike | Sequence[ImageLike] | None = None,
    done: Collection[int] = (),
    on_step: Callable[[int], OnStep] | None = None,
) -> Iterator[tuple[int, GenerationOutput]]:
    """Generates the cells of a grid, and yields the index and the output of each as soon as it is there.

    model: a pipeline, or a function from a checkpoint and a VAE (each None for that of the whole grid) to one; it is
    called once for each, and a pipeline is released before the next is loaded. image, mask, control_image,
    region_mask: as for the pipeline. done: cells to leave out. on_step: returns the `on_step` of a cell. Raises
    UserError as the pipeline does.
    """
    image, mask = as_images(image, mask)
    controls = as_image_list(control_image, "control image")
    regions = as_image_list(region_mask, "region mask")
    load = loader_of(model) if isinstance(model, StableDiffusion) else model
    for (ckpt, vae), indices in grid.by_model(done).items():
        pipe = load(ckpt, vae)
        check_loras(pipe, [grid.points[index] for index in indices])
        with pipe.keep_prompt_loras():
            for index in indices:
                each = None if on_step is None else on_step(index)
                settings = grid.points[index].settings
                yield index, pipe.generate(settings, image, mask, each, control_images=controls, region_masks=regions)
        del pipe


def loader_of(pipe: StableDiffusion) -> Load:
    """Returns a function that loads checkpoints on a pipeline's device, and returns the pipeline itself for None.

    What was loaded into the pipeline by hand, LoRAs and embeddings, is in the pipeline alone.
    """

    def load(ckpt: str | None, vae: str | None) -> StableDiffusion:
        if ckpt is None and vae is None:
            return pipe
        other = StableDiffusion.from_pretrained(ckpt or pipe.path, pipe.device, pipe.dtype, vae)
        other.adapters.models = pipe.adapters.models
        other.set_optimizations(pipe.optimizations)
        return other

    return load


def grid_sheet(grid: Grid, images: Mapping[int, Image.Image]) -> Image.Image:
    """Returns one image of all cells with their labels: X above, Y at the left, Z above each of the sheets.

    images: by the index of the cell; a missing one leaves its cell empty. Cells are at most 512 pixels wide and high,
    and smaller where the sheet would have over MAX_SHEET pixels.
    """
    columns, rows, sheets = grid.sizes
    largest = min(LARGEST, int((MAX_SHEET / len(grid.points)) ** 0.5))
    x, y, z = (axis.labels() if axis else [""] for axis in grid.axes)
    tables = []
    for k in range(sheets):
        first = k * rows * columns
        cells = [[images.get(first + j * columns + i) for i in range(columns)] for j in range(rows)]
        tables.append(contact_sheet(cells, y, x, largest=largest))
    return stack_sheets(tables, z) if grid.axes[2] else tables[0]
