"""The main part of the generating scripts: expand prompts, generate, save, report."""

import argparse
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

from sd.checkpoints.discovery import BUNDLED, Models
from sd.cli.requests import Enhance, GenerationRequest, expand_request, split_by_image
from sd.pipeline.inputs.sizes import check_named_models
from sd.pipeline.output import GenerationOutput
from sd.pipeline.settings import GenerationSettings
from sd.pipeline.stable_diffusion import StableDiffusion
from sd.prompts.enhance import PromptEnhancer, apply_style
from sd.prompts.llm import find_endpoint
from sd.utils.device import rank_and_world_size
from sd.utils.files import check_outdir, remove_orphans, save_png, write_png
from sd.utils.image_grid import grid
from sd.utils.images import open_image

PREVIEW_EVERY = 5  # steps


def expand_requests(
    pipe: StableDiffusion, settings: list[GenerationSettings], args: argparse.Namespace
) -> list[GenerationRequest]:
    """Expands the wildcards of each image by its seed, then applies --enhance or --style. Prints the notes."""
    enhance: Enhance | None = None
    if args.enhance:
        endpoint = find_endpoint(args.llm_url, args.llm_model)
        is_bundled = pipe.path is not None and pipe.path.resolve() == BUNDLED
        enhance = PromptEnhancer(endpoint, args.style, emoji=is_bundled)
    elif args.style is not None:
        enhance = apply_style(args.style)
    requests = [request for one in settings for request in expand_request(one, enhance)]
    for note in dict.fromkeys(request.note for request in requests if request.note):
        print(f"note: {note}")
    return requests


def check_before_loading(args: argparse.Namespace, todo: list[GenerationSettings], has_image: bool = False) -> None:
    """Raises UserError for control images and region masks that cannot be used, and for models that are not there.

    todo: the settings of all images. has_image: whether they start from an image. A checkpoint takes long to load, so
    that this comes first.
    """
    for path in (*args.control_image, *args.region_mask):
        open_image(path)
    for settings in todo:
        check_named_models(settings, Models(), len(args.control_image), len(args.region_mask), has_image)


def script_command(arguments: Sequence[str]) -> str:
    """Return a command for the shell that runs this script again, with these arguments."""
    program = ["python", sys.argv[0]] if sys.argv[0].endswith(".py") else [sys.argv[0]]
    return shlex.join([*program, *arguments])


@contextmanager
def resume_hint(args: argparse.Namespace, settings: GenerationSettings) -> Iterator[None]:
    """Where Ctrl-C ends the context, print the command that generates the rest, with the seeds that were random.

    settings: those of the first image.
    """
    try:
        yield
    except KeyboardInterrupt:
        more = [] if args.resume else ["--resume"]
        if not getattr(args, "from_png", None):  # which has its seeds
            more += ["--seed", str(settings.seed)] if args.seed is None else []
            is_varied = settings.variation_strength and args.variation_seed is None
            more += ["--variation-seed", str(settings.variation_seed)] if is_varied else []
        print(f"to go on: {script_command([*sys.argv[1:], *more])}", file=sys.stderr)
        raise


def generate_and_save(
    pipe: StableDiffusion,
    requests: list[GenerationRequest],
    args: argparse.Namespace,
    image: Image.Image | None = None,
    mask: Image.Image | None = None,
) -> None:
    """Generates one request after another with a progress bar; saves each image once it is made, then a grid of all.

    One of several processes saves no grid, as it generates a part of the images only.
    """
    folder, (rank, count) = check_outdir(args.outdir), rank_and_world_size()
    control_images = [open_image(path) for path in args.control_image]
    region_masks = [open_image(path) for path in args.region_mask]
    remove_orphans(folder)
    images: list[Image.Image] = []
    prompts: list[str] = []
    printed: set[str] = set()
    with pipe.keep_prompt_loras():
        for request in requests:
            if request.template:
                print(f"prompt: {request.settings.prompt}")
            parts = split_for_device(pipe, request)
            with closing(ProgressBar(pipe, folder if args.preview and rank == 0 else None, len(parts))) as progress:
                for part in parts:
                    began = time.perf_counter()
                    output = pipe.generate(
                        *(part.settings, image, mask, progress),
                        control_images=control_images,
                        region_masks=region_masks,
                    )
                    seconds = time.perf_counter() - began
                    progress.end_part()
                    with tqdm.external_write_mode():
                        print_notes(output, printed)
                        save_images(part, output, folder, seconds)
                    if not args.skip_grid and count == 1:
                        images += output.images
                        prompts += [request.settings.prompt] * len(output.images)
    if len(images) > 1:
        labels = prompts if len(set(prompts)) > 1 else None
        print(f"{save_png(grid(images, labels=labels), folder, prefix='grid-')}  all {len(images)}")


def split_for_device(pipe: StableDiffusion, request: GenerationRequest) -> list[GenerationRequest]:
    """Returns a request for each image on a CPU, which makes one after another, so that a Ctrl-C loses none; on a GPU,
    which makes all at once, the request itself.
    """
    if pipe.device.type != "cpu":
        return [request]
    singly = split_by_image(request.settings)
    numbers = [None if request.number is None else request.number + i for i in range(len(singly))]
    return [replace(request, settings=one, number=number) for one, number in zip(singly, numbers)]


def save_images(request: GenerationRequest, output: GenerationOutput, folder: Path, seconds: float) -> None:
    """Saves the images of a request and prints a line for each. seconds: how long all of them took."""
    texts = request.texts(output.infotexts)
    for i, (image, seed, text) in enumerate(zip(output.images, output.seeds, texts)):
        number = None if request.number is None else request.number + i
        path = save_png(image, folder, text, request.prefix, number)
        print(f"{path}  seed {seed}  {seconds / len(output.images):.1f} s")


def print_notes(output: GenerationOutput, printed: set[str]) -> None:
    """Prints the reports and notes of an output, each once. printed: those of earlier outputs, which it extends."""
    for report in output.reports:
        if str(report) not in printed:
            print(report)
            printed |= {str(report), *report.notes}  # the text of a report has its notes in it
    for note in output.notes:
        if note not in printed:
            print(f"note: {note}")
            printed.add(note)


class ProgressBar:
    """An `on_step` that shows a progress bar and, where there is a folder, writes preview.png every few steps.

    parts: how many calls of the pipeline it is for, each of which ends with `end_part`.
    """

    def __init__(self, pipe: StableDiffusion, folder: Path | None, parts: int = 1):
        self.pipe, self.folder, self.parts = pipe, folder, parts
        self.before = 0  # steps of the parts that have ended
        self.bar: tqdm | None = None  # created at the first step, so that an error before it prints one clean line

    def __call__(self, done: int, total: int, x0: torch.Tensor) -> None:
        if self.bar is None:
            self.bar = tqdm(total=total * self.parts, desc="generating", unit="step", leave=False)
        done += self.before
        self.bar.update(done - self.bar.n)
        if self.folder is not None and done % PREVIEW_EVERY == 0:
            write_png(grid(self.pipe.preview(x0)), self.folder / "preview.png")

    def end_part(self) -> None:
        self.before = self.bar.n if self.bar is not None else 0

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
