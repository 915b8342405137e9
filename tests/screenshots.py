"""Make the README's screenshots of the page, with the bundled model: make screenshots

Takes some minutes. ARGS=--quick is to see how the page looks, with worse images on it.
"""

import argparse
import io
import tempfile
from pathlib import Path

from browser_page import Browser, chromium
from PIL import Image, ImageDraw
from web_client import HERE, listening

from sd.training.finetune.recipes import recipe_for
from sd.web.jobs import finetune
from sd.web.jobs.generate import ImageGenerator
from sd.web.jobs.model_index import Models
from sd.web.jobs.queue import Jobs
from sd.web.jobs.worker import JobRunner
from sd.web.server import create_app

ROOT = Path(__file__).resolve().parents[1]
PROMPTS = ("a cat face, noto emoji", "three stars", "a tree, fluent flat emoji", "a blue apple")
HEIGHT = 1180
LONG = 2150  # the whole viewer
TALL = 1700  # so that the mask is in sight too


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=ROOT / "docs")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models = Models(loras=folder / "loras", embeddings=folder / "embeddings")
        for path in (models.folders["LoRA"], models.folders["embedding"]):
            path.mkdir()
        if args.quick:
            quick = dict(preview_steps=3, saves=2, batch=2)
            finetune.recipe_for = lambda *names, **given: recipe_for(*names, **given | quick)
        app = create_app(Jobs(folder / "jobs", JobRunner(ImageGenerator(models))), models)
        with listening(app) as port, chromium(f"{HERE}:{port}/", height=HEIGHT) as page:
            page.patience = 3600
            page.open()
            show_generating(page, args)
            show_inpainting(page, args)
            show_looking(page, args)
            show_training(page, args, folder)


def show_generating(page: Browser, args: argparse.Namespace) -> None:
    """A gallery, and an image on its way."""
    steps = 4 if args.quick else 30
    for prompt in PROMPTS:
        generate(page, Prompt=prompt, Steps=steps, Guidance=4, Seed=7, Batch_count=4)
    steps = 20 if args.quick else 150  # more than a second's
    page.write(Prompt="a red heart, noto emoji", Steps=steps, Batch_count=1)
    page.press("Generate")
    page.until(lambda: page.find("//img[@alt='Preview']"), "preview")
    page.until(lambda: int(page.state("running", "done").split()[1]) > steps * 0.6, "later step")
    save(page, args.folder / "page-generate.png")
    page.state("done")


def generate(page: Browser, **fields: object) -> None:
    """Waits until it is in the gallery."""
    before = len(page.images("gallery"))
    page.write(**fields)
    page.press("Generate")
    page.until(lambda: len(page.images("gallery")) > before, "new images in the gallery")


def show_inpainting(page: Browser, args: argparse.Namespace) -> None:
    """The newest image's middle, masked and generated again."""
    page.enlarge(0)
    page.press("Start from this image")
    page.paint((0.3, 0.4), (0.7, 0.4), (0.7, 0.48), (0.3, 0.48), (0.3, 0.56), (0.7, 0.56))
    generate(page, Prompt="a yellow heart, noto emoji", Denoising_strength=1)
    width = page.driver.get_window_size()["width"]
    page.driver.set_window_size(width, TALL)
    page.driver.execute_script("scrollTo(0, 0)")
    save(page, args.folder / "page-inpaint.png")
    page.driver.set_window_size(width, HEIGHT)


def show_looking(page: Browser, args: argparse.Namespace) -> None:
    """A run, step by step."""
    page.tab("Look inside")
    page.write(Prompt="a rocket, fluent flat emoji")
    page.press("Look inside")
    page.until(lambda: page.find("//sd-inside//h3"), "viewer")
    width = page.driver.get_window_size()["width"]
    page.driver.set_window_size(width, LONG)
    save(page, args.folder / "page-look.png")
    page.driver.set_window_size(width, HEIGHT)


def show_training(page: Browser, args: argparse.Namespace, folder: Path) -> None:
    page.tab("Train")
    page.give("Images to train on, 5 to 15", *[creature(i, folder) for i in range(8)])
    page.until(lambda: len(page.find("//ul[@aria-label='Chosen images']/li")) == 8, "images")
    page.write(Name="blob", What_it_is="face", Training_steps=4 if args.quick else 120)
    page.press("Train")
    page.state("done")
    page.until(lambda: page.find("//img[@alt='Contact sheet, step by step']"), "contact sheet")
    save(page, args.folder / "page-train.png")


def creature(i: int, folder: Path) -> Path:
    """Somebody blue with big eyes, each time a little different."""
    image = Image.new("RGB", (512, 512), "white")
    draw = ImageDraw.Draw(image)
    x, y = 256 + 12 * (i % 3 - 1), 270 + 10 * (i % 4 - 2)
    draw.polygon([(x - 150, y - 60), (x - 110, y - 210), (x - 40, y - 120)], "#1d4ed8")
    draw.polygon([(x + 150, y - 60), (x + 110, y - 210), (x + 40, y - 120)], "#1d4ed8")
    draw.ellipse((x - 180, y - 150, x + 180, y + 180), "#3b82f6")
    for side in (-70, 70):
        draw.ellipse((x + side - 48, y - 60, x + side + 48, y + 36), "#fde047")
        pupil = x + side + 8 * (i % 5 - 2)
        draw.ellipse((pupil - 18, y - 30, pupil + 18, y + 6), "#111827")
    draw.arc((x - 70, y + 20, x + 70, y + 120), 20, 160, "#111827", 12)
    path = folder / f"creature-{i}.png"
    image.save(path)
    return path


def save(page: Browser, path: Path) -> None:
    shot = Image.open(io.BytesIO(page.driver.get_screenshot_as_png())).convert("RGB")
    shot.save(path, optimize=True)
    print(f"{path}  {path.stat().st_size >> 10} kB")


if __name__ == "__main__":
    main()
