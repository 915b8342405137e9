"""Rendering of scenes: the background, then each cut-out, resized, recolored, rotated and mirrored as given."""

import random

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sd.training.pretrain.emoji_dataset import SIZE
from sd.training.pretrain.scenes.backgrounds import draw_background
from sd.training.pretrain.scenes.colors import main_color, recolor
from sd.training.pretrain.scenes.cutouts import Cutouts, scaled_size
from sd.training.pretrain.scenes.grammar import Scene
from sd.training.pretrain.scenes.layout import Placed

VISIBLE = 0.06  # opacity


def render(scene: Scene, cutouts: Cutouts) -> Image.Image:
    """Return the scene as RGB, SIZE x SIZE."""
    background = draw_background(scene.content.background, SIZE, random.Random(f"background {scene.seed}"))
    image = Image.fromarray(background).convert("RGBA")
    for placed in scene.objects:
        image.alpha_composite(render_object(placed, cutouts), (placed.left, placed.top))
    return image.convert("RGB")


def render_object(placed: Placed, cutouts: Cutouts) -> Image.Image:
    """Return one object alone, RGBA, in the size of its box."""
    whole = cutouts.image(placed.name, placed.style)
    image = whole.resize(scaled_size(whole.size, placed.side), Image.Resampling.BICUBIC)
    if placed.color is not None:
        pixels = np.asarray(image)
        image = Image.fromarray(recolor(pixels, main_color(pixels), placed.color))
    if placed.flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if placed.turn:
        image = image.rotate(placed.turn, Image.Resampling.BICUBIC, expand=True)
    box = Image.new("RGBA", (placed.width, placed.height))
    box.alpha_composite(image.crop((0, 0, min(image.width, placed.width), min(image.height, placed.height))))
    return box


def render_batch(scenes: list[Scene], cutouts: Cutouts) -> Tensor:
    """Return (B, 3, SIZE, SIZE) in [-1, 1]."""
    images = np.stack([np.asarray(render(scene, cutouts)) for scene in scenes])
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def masks(scene: Scene, cutouts: Cutouts) -> np.ndarray:
    """Return (objects, SIZE, SIZE) bool: where each object is visible, to measure attention maps."""
    found = np.zeros((len(scene.objects), SIZE, SIZE), bool)
    for mask, placed in zip(found, scene.objects):
        alpha = np.asarray(render_object(placed, cutouts).getchannel("A")) > 255 * VISIBLE
        mask[placed.top : placed.top + placed.height, placed.left : placed.left + placed.width] = alpha
    return found
