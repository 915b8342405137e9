"""What the generating scripts do once their flags are read: expand prompts, generate, save, report."""

import argparse
import time
from contextlib import closing
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

from sd.checkpoints.discovery import BUNDLED
from sd.cli.distributed import processes
from sd.cli.requests import Drawing, spell_out
from sd.pipeline.settings import GenerationSettings
from sd.pipeline.stable_diffusion import Pictures, StableDiffusion
from sd.prompts.enhance import PromptWriter, in_style
from sd.prompts.llm import find_endpoint
from sd.utils.files import check_outdir, save_png, write_png
from sd.utils.image_grid import grid

PREVIEW_EVERY = 5  # steps


def spelled_out(pipe: StableDiffusion, settings: list[GenerationSettings], args: argparse.Namespace) -> list[Drawing]:
    """Each picture's own words: its wildcards by its seed, then --enhance or --style."""
    write = None
    if args.enhance:
        endpoint = find_endpoint(args.llm_url, args.llm_model)
        write = PromptWriter(endpoint, args.style, emoji=pipe.path.resolve() == BUNDLED)
    elif args.style is not None:
        write = in_style(args.style)
    drawings = [drawing for one in settings for drawing in spell_out(one, write)]
    for note in dict.fromkeys(drawing.note for drawing in drawings if drawing.note):
        print(f"note: {note}")
    return drawings


def draw_and_save(
    pipe: StableDiffusion,
    drawings: list[Drawing],
    args: argparse.Namespace,
    image: Image.Image | None = None,
    mask: Image.Image | None = None,
) -> None:
    """Makes one drawing after another with a progress bar; saves each one's pictures at once, then a sheet.

    One of several processes makes no sheet: it has a share of the pictures only.
    """
    folder, (rank, count) = check_outdir(args.outdir), processes()
    drawn, prompts, told = [], [], set()
    for drawing in drawings:
        one = drawing.settings
        if drawing.template:
            print(f"prompt: {one.prompt}")
        began = time.perf_counter()
        with closing(Shower(pipe, folder if args.preview and rank == 0 else None)) as shower:
            pictures = pipe.generate(one, image, mask, on_step=shower)
        seconds = time.perf_counter() - began
        tell(pictures, told)
        texts = drawing.texts(pictures.infotexts)
        for i, (picture, seed, text) in enumerate(zip(pictures.images, pictures.seeds, texts)):
            number = None if drawing.number is None else drawing.number + i
            path = save_png(picture, folder, text, drawing.prefix, number)
            print(f"{path}  seed {seed}  {seconds / len(pictures.images):.1f} s")
        if not args.skip_grid and count == 1:
            drawn += pictures.images
            prompts += [one.prompt] * len(pictures.images)
    if len(drawn) > 1:
        labels = prompts if len(set(prompts)) > 1 else None
        print(f"{save_png(grid(drawn, labels=labels), folder, prefix='grid-')}  all {len(drawn)}")


def tell(pictures: Pictures, told: set[str]) -> None:
    """Prints the reports and notes that came with some pictures, unless they are among those told before."""
    for report in pictures.reports:
        if str(report) not in told:
            print(report)
            told |= {str(report), *report.notes}  # a report has its warnings in it
    for note in pictures.notes:
        if note not in told:
            print(f"note: {note}")
            told.add(note)


class Shower:
    """An `on_step` that moves a progress bar and, where there is a folder, writes a preview into it now and then."""

    def __init__(self, pipe: StableDiffusion, folder: Path | None):
        self.pipe, self.folder = pipe, folder
        self.bar: tqdm | None = None  # from the first step on: a mistake found before it is one clean line

    def __call__(self, done: int, total: int, x0: torch.Tensor) -> None:
        if self.bar is None:
            self.bar = tqdm(total=total, desc="drawing", unit="step", leave=False)
        self.bar.update(done - self.bar.n)
        if self.folder is not None and done % PREVIEW_EVERY == 0:
            write_png(grid(self.pipe.preview(x0)), self.folder / "preview.png")

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
