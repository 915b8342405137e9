"""The options of train_controlnet.py, and how they become a run."""

import argparse
from dataclasses import fields
from functools import partial
from pathlib import Path

import torch

from sd.checkpoints.discovery import WEIGHTS, choose_checkpoint
from sd.cli.args import add_model_choices
from sd.cli.parser import ArgumentParser
from sd.pipeline.stable_diffusion import StableDiffusion
from sd.training.controlnet.conditions import CONDITIONS
from sd.training.controlnet.recipe import ControlRecipe, control_defaults, control_recipe
from sd.training.controlnet.sources import FolderSource, SceneSource, Source, Variation, check_latents
from sd.training.controlnet.train import train_controlnet
from sd.training.finetune.data.captions import Captions
from sd.training.finetune.data.image_folder import ImageFolder, check_image_folder
from sd.training.finetune.data.long_captions import fits_in_chunks
from sd.training.finetune.recipes import TOKEN_LENGTHS
from sd.training.finetune.setup import MAX_HELD_OUT, encode_folder, truncation_warning
from sd.training.pretrain.emoji_dataset import SIZE
from sd.training.pretrain.scene_latents import SceneLatents, make_latents
from sd.training.pretrain.scenes.cutouts import Cutouts
from sd.training.pretrain.scenes.stream import SceneStream
from sd.utils.device import DTYPES, check_device, device_of
from sd.utils.errors import SettingError, UserError

NUMBERS = {  # options with a number: the type, and the help text
    "steps": (int, "number of training steps"),
    "batch": (int, "number of examples in a batch, in each process"),
    "accumulate": (int, "number of batches whose gradients are summed for one step"),
    "lr": (float, "learning rate, constant after the warmup"),
    "warmup": (int, "number of steps in which the learning rate rises from 0"),
    "ema": (float, "decay of the averaged weights; 0 for no average"),
    "empty_captions": (float, "fraction of captions that are left empty, 0 to 1"),
    "seed": (int, "seed of everything random"),
    "save_minutes": (float, "minutes between saves of the state, the newest file and a sheet of previews"),
    "previews": (int, "number of preview images on each sheet; 0 for no sheet"),
    "preview_steps": (int, "number of sampling steps of a preview image"),
    "guidance_scale": (float, "guidance scale of the preview images"),
}
SCENES = 6000  # encoded where no latents are given


def default_text(name: str) -> str:
    """Return the default of a setting, for a large model and for the bundled one."""
    large, small = (control_defaults(is_small)[name] for is_small in (False, True))
    return f"{large}" if large == small else f"{large}; bundled model: {small}"


def control_parser(description: str, examples: str) -> ArgumentParser:
    """Return the parser; omitted options take the defaults of the model."""
    parser = ArgumentParser(description=description, epilog=examples)
    group = parser.add_argument_group("model and examples")
    add = group.add_argument
    add("--ckpt", "--model", metavar="FILE",
        help="checkpoint to train for: a file, a diffusers folder, or a name in weights/ "
        "(default: your downloaded model, else the bundled one)")  # fmt: skip
    add_model_choices(group)
    add("--images", type=Path, metavar="DIR",
        help="folder of images with captions (.txt, .caption or metadata.jsonl); cropped to squares")  # fmt: skip
    add("--scenes", type=Path, metavar="DIR",
        help="folder of prepare_scenes.py: scenes of the bundled model's world, in place of --images")  # fmt: skip
    add("--latents", type=Path, metavar="DIR",
        help="latents of these scenes from train_scenes.py (default: encoded into the run's folder)")  # fmt: skip
    add("--scene-count", type=int, metavar="N",
        help=f"number of scenes to encode where no --latents are given (default: {SCENES})")  # fmt: skip
    add("--conditions", nargs="+", choices=list(CONDITIONS), metavar="NAME",
        help=f"condition images, one for each example: {', '.join(CONDITIONS)} (default: canny scribble)")  # fmt: skip
    add("--size", type=int, metavar="PIXELS", help="image size for training (default: the model's own size)")
    add("--no-flip", dest="flip", action="store_false", help="do not mirror images at random (default: mirrored)")
    add("--crops", type=int, metavar="N",
        help=f"number of crops of each image; 1 crops the middle (default: {default_text('crops')})")  # fmt: skip
    group = parser.add_argument_group("training")
    for name, (kind, text) in NUMBERS.items():
        metavar = "N" if kind is int else "X"
        group.add_argument(
            f"--{name.replace('_', '-')}", type=kind, metavar=metavar, help=f"{text} (default: {default_text(name)})"
        )
    group.add_argument("--precision", choices=list(DTYPES),
        help="precision of the frozen networks and of all products (default: the fastest of the device)")  # fmt: skip
    group.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1 or mps (default: a GPU where there is one)")
    group.add_argument("--threads", type=int, metavar="N", help="number of CPU threads (default: one for each core)")
    group = parser.add_argument_group("files")
    group.add_argument("--name", required=True, help="name of the ControlNet; --control uses it")
    group.add_argument("--output", type=Path, metavar="FILE",
        help="path of the result, .safetensors (default: weights/controlnet/NAME.safetensors)")  # fmt: skip
    group.add_argument("--run-dir", dest="run", type=Path, metavar="DIR",
        help="folder of this run, from which the same command resumes (default: runs/controlnet-NAME)")  # fmt: skip
    return parser


def train_from_args(parser: ArgumentParser) -> Path:
    """Parse the arguments and train; return the path of the result."""
    args = parser.parse_args()
    check_sources(args)
    given = {field.name: getattr(args, field.name, None) for field in fields(ControlRecipe)}
    given["conditions"] = tuple(args.conditions) if args.conditions else None
    ControlRecipe(
        **{key: value for key, value in given.items() if value is not None}
    )  # errors before a model is loaded
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    device = device_of(args.device)
    check_device(device)
    if args.images:
        check_image_folder(args.images)
    path = choose_checkpoint(args.ckpt, WEIGHTS)
    # In fp32, because the ControlNet starts from these weights; afterwards the networks are frozen in half precision.
    pipe = StableDiffusion.from_pretrained(path, device, torch.float32, args.vae, args.prediction)
    recipe = control_recipe(pipe, **given)
    if args.images:
        build = partial(folder_source, pipe, recipe, args.images)
    else:
        build = partial(scene_source, pipe, recipe, args.scenes, args.latents, args.scene_count or SCENES)
    return train_controlnet(args.name, pipe, build, recipe, args.run, args.output)


def check_sources(args: argparse.Namespace) -> None:
    """Raise UserError unless the examples come from one place, and for options without an effect there."""
    if bool(args.images) == bool(args.scenes):
        raise UserError("give the examples once: --images with a folder, or --scenes with the prepared cut-outs.")
    if args.images and (args.latents or args.scene_count):
        raise UserError("--latents and --scene-count are for --scenes: images are encoded by themselves.")
    if args.latents and args.scene_count:
        raise UserError("--scene-count has no effect with --latents, which has all its scenes: leave one of them out.")
    if args.scenes and (args.size or args.crops or not args.flip):
        raise UserError("--size, --crops and --no-flip are for --images: scenes have one size and their own layout.")
    if args.scene_count is not None and args.scene_count < 1:
        raise SettingError("scene_count", f"must be 1 or more, not {args.scene_count}")


def folder_source(pipe: StableDiffusion, recipe: ControlRecipe, images: Path, run: Path) -> Source:
    """Return the images of a folder as examples, encoded now or in an earlier run.

    Raises UserError where an image has no caption.
    """
    folder = ImageFolder(images)
    without = [image.path.name for image in folder.images if not (image.captions or image.folder_caption)]
    if without:
        raise UserError(
            f"{len(without)} of {len(folder)} images have no caption, such as {without[0]}: write one into a .txt file "
            "of the same name, or move these images away."
        )
    latents = encode_folder(folder, pipe, recipe, buckets=False, file=run / "latents.pt")
    fitting = partial(fits_in_chunks, pipe.tokenizer, tokens=TOKEN_LENGTHS[-1])
    captions = Captions(folder, fits=fitting)
    if captions.shortened:
        print(truncation_warning(captions.shortened, TOKEN_LENGTHS[-1]))
    held_out = min(MAX_HELD_OUT, len(folder) // 20)
    return FolderSource(latents, captions, Variation(recipe.conditions, recipe.empty_captions), held_out)


def scene_source(
    pipe: StableDiffusion, recipe: ControlRecipe, data: Path, latents: Path | None, count: int, run: Path
) -> Source:
    """Return scenes as examples, from given latents or encoded into the run's folder.

    Raises UserError where the model generates another size, or where the latents belong to another VAE.
    """
    if pipe.image_size != SIZE:
        raise UserError(
            f"scenes have {SIZE} pixels and this checkpoint generates {pipe.image_size}: train it on --images."
        )
    stream = SceneStream(Cutouts(data))
    folder = latents or run / "latents"
    if latents is None:
        folder.mkdir(parents=True, exist_ok=True)
        make_latents(pipe.vae, stream, folder, count)
    scenes = SceneLatents(folder)
    check_latents(scenes, stream, pipe.vae, folder)
    return SceneSource(stream, scenes, Variation(recipe.conditions, recipe.empty_captions))
