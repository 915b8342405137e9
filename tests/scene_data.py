"""Cut-outs of plain shapes and tiny networks, for tests of scenes without any package."""

import json
from dataclasses import asdict
from pathlib import Path

import torch
from PIL import Image, ImageDraw

from sd.training.pretrain.scenes.cutouts import Cutout, Cutouts, measured_colors, trim
from sd.training.pretrain.train_clip import new_clip
from sd.vae import AutoencoderKL

STYLES = ("noto emoji", "fluent emoji")
SHAPES = {  # fill, and width and height in the 128 x 128 square
    "red apple": ((223, 34, 37), 100, 96),
    "cat": ((143, 143, 143), 90, 110),
    "dog": ((120, 72, 41), 110, 90),
    "star": ((246, 215, 50), 100, 100),
    "tree": ((55, 174, 54), 70, 120),
    "car": ((26, 111, 225), 120, 60),
    "cactus": ((55, 174, 54), 60, 100),
    "house": ((251, 137, 190), 100, 100),
}


def make_cutouts(folder: Path) -> Cutouts:
    """Each of SHAPES as an ellipse with a darker dot in both STYLES, prepared as `prepare_cutouts` does."""
    lines = []
    for style in STYLES:
        for name, (fill, width, height) in SHAPES.items():
            whole = Image.new("RGBA", (128, 128))
            box = (64 - width // 2, 64 - height // 2, 64 + width // 2, 64 + height // 2)
            ImageDraw.Draw(whole).ellipse(box, fill=(*fill, 255))
            ImageDraw.Draw(whole).ellipse((60, 60, 68, 68), fill=(20, 20, 20, 255))
            image, (left, top) = trim(whole)
            file = folder / "cutouts" / f"{name}-{style}.png"
            file.parent.mkdir(exist_ok=True, parents=True)
            image.save(file)
            natural, colors = measured_colors(image)
            about = (name, style, "train", str(file.relative_to(folder)))
            lines.append(asdict(Cutout(*about, *image.size, left, top, natural, colors)))
    (folder / "cutouts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return Cutouts(folder)


def tiny_clip():
    torch.manual_seed(0)
    vision = {"image_size": 64, "patch_size": 16, "width": 32, "layers": 1, "heads": 2}
    return new_clip({"width": 32, "layers": 2, "heads": 2}, vision, 16)


def tiny_vae():
    torch.manual_seed(0)
    return AutoencoderKL(channels=32, channel_mult=(1, 1, 1, 1), num_res_blocks=1)
