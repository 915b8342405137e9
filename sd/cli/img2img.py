"""Shared code of img2img.py and inpaint.py, after their images are open."""

import argparse

from PIL import Image

from sd.cli.args import load_pipeline, settings_from_args, with_image_size
from sd.cli.run import expand_requests, generate_and_save


def generate_from_image(args: argparse.Namespace, image: Image.Image, mask: Image.Image | None = None) -> None:
    """Generates what the flags ask for from an image, and saves it. Raises UserError, before anything is loaded, for
    flags that cannot be used.
    """
    settings = settings_from_args(args)
    pipe = load_pipeline(args)
    settings = with_image_size(settings, image, pipe.image_size)
    first, count = settings.seeds()[0], settings.num_images
    todo = [settings.replace(seed=first + i * count) for i in range(args.n_iter)]
    generate_and_save(pipe, expand_requests(pipe, todo, args), args, image, mask)
