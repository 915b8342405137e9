"""The options that the three fine-tuning scripts share, and how they become a run."""

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any

from sd.checkpoints.discovery import WEIGHTS, choose_checkpoint
from sd.cli.args import add_model_choices
from sd.cli.parser import ArgumentParser
from sd.training.finetune.data.image_folder import check_image_folder
from sd.training.finetune.finetune import Result, check_name, finetune
from sd.training.finetune.recipes import (
    FILE_FORMATS,
    KINDS,
    SCHEDULES,
    TARGETS,
    TOKEN_LENGTHS,
    Recipe,
    defaults_of,
    recipe_for,
)
from sd.training.finetune.setup import load_for_training
from sd.utils.device import DTYPES, check_device, device_of
from sd.utils.files import decode_argument

SWITCHES = {"scale_lr": False, "checkpointing": False, "clean": False, "flip": True, "buckets": True}  # and defaults


class OptionGroups:
    """An argument parser in groups, in which each help text ends with its default, for a large model and the bundled
    one.
    """

    def __init__(self, method: str, description: str, examples: str):
        self.method = method
        self.parser = ArgumentParser(description=description, epilog=examples)
        self.group: argparse._ActionsContainer = self.parser

    def begin_group(self, title: str) -> None:
        self.group = self.parser.add_argument_group(title)

    def add_option(self, *flags: str, help: str, default: str | None = None, **more: Any) -> None:
        """Add an option to the current group. default: its text in the help; None for the value in `recipes.py`."""
        name = more.get("dest") or flags[0].removeprefix("--").replace("-", "_")
        shown_default = default if default is not None else describe_default(self.method, str(name))
        self.group.add_argument(*flags, help=f"{help} (default: {shown_default})" if shown_default else help, **more)


def describe_default(method: str, name: str) -> str:
    """Return the default of a setting as text."""
    large, small = (defaults_of(method, is_small)[name] for is_small in (False, True))
    return (
        format_default(large) if large == small else f"{format_default(large)}; bundled model: {format_default(small)}"
    )


def format_default(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return " ".join(value) if isinstance(value, tuple) else str(value)


def training_parser(method: str, description: str, examples: str) -> OptionGroups:
    """Return the options of all three methods; omitted ones take the defaults of the method and the model."""
    options = OptionGroups(method, description, examples)
    add_images(options)
    add_training(options)
    add_previews(options)
    add_files(options)
    return options


def add_images(options: OptionGroups) -> None:
    options.begin_group("model and images")
    add = options.add_option
    add("--ckpt", "--model", metavar="FILE", default="your downloaded model, else the bundled one",
        help="checkpoint to train from: a file, a diffusers folder, or a name in weights/")  # fmt: skip
    add_model_choices(options.group)
    add("--images", required=True, metavar="DIR", default="",
        help="folder of images, 5 to 15 for an object; captions in .txt or .caption files or in metadata.jsonl; "
        "subfolders such as '10_sks dog' are read as in kohya's scripts")  # fmt: skip
    add(
        "--class-word",
        type=decode_argument,
        metavar="WORD",
        default="none",
        help="class of the object in the images, such as dog",
    )
    add("--kind", choices=KINDS, help="whether the images share an object or a style")
    add("--max-token-length", type=int, choices=TOKEN_LENGTHS, help="maximum number of tokens of a caption")
    add("--size", type=int, metavar="PIXELS", default="the model's own size", help="image size for training")
    add("--no-flip", dest="flip", action="store_false", default="images are mirrored at random",
        help="disable random horizontal flips: for faces, text and other asymmetric subjects")  # fmt: skip
    add("--crops", type=int, metavar="N", help="number of crops of each image; 1 crops the middle")
    add("--no-buckets", dest="buckets", action="store_false", default="aspect ratios are kept",
        help="crop every image to a square")  # fmt: skip


def add_training(options: OptionGroups) -> None:
    options.begin_group("training")
    add = options.add_option
    add("--steps", type=int, metavar="N", help="number of training steps")
    add("--batch", type=int, metavar="N", help="number of images in a batch, in each process")
    add("--accumulate", type=int, metavar="N", help="number of batches whose gradients are summed for one step")
    add("--lr", type=float, metavar="RATE", help="learning rate")
    add("--scale-lr", action="store_true", help="multiply the learning rate by the number of images in a step")
    add("--schedule", choices=SCHEDULES, help="schedule of the learning rate after the warmup")
    add("--warmup", type=int, metavar="N", help="number of steps in which the learning rate rises from 0")
    add("--weight-decay", type=float, metavar="RATE", help="weight decay of AdamW")
    add("--min-snr", type=float, metavar="GAMMA", help="gamma of Min-SNR loss weighting; 0 turns it off")
    add("--noise-offset", type=float, metavar="X",
        help="noise offset, about 0.1 for very dark or bright images; zero terminal SNR needs none")  # fmt: skip
    add("--seed", type=int, metavar="N", help="seed of everything random")
    add("--checkpointing", action="store_true",
        help="gradient checkpointing: less memory, a third more time")  # fmt: skip
    add("--precision", choices=list(DTYPES), default="the fastest of the device",
        help="precision of the frozen networks; for DreamBooth the mixed precision")  # fmt: skip
    add("--device", metavar="NAME", default="a GPU where there is one, else cpu", help="cpu, cuda, cuda:1 or mps")


def add_previews(options: OptionGroups) -> None:
    options.begin_group("preview images")
    add = options.add_option
    add("--prompt", dest="prompts", action="append", type=decode_argument, metavar="TEXT",
        default="four that suit the model",
        help="validation prompt, with {} for the new word (repeatable)")  # fmt: skip
    add(
        "--saves",
        type=int,
        metavar="N",
        help="number of steps that are saved, with preview images, and compared at the end",
    )
    add("--preview-steps", type=int, metavar="N", default=describe_default(options.method, "preview_steps")
        + "; large model on a CPU: 12", help="number of sampling steps of a preview image")  # fmt: skip
    add("--guidance-scale", type=float, metavar="X", help="guidance scale of the preview images")


def add_files(options: OptionGroups) -> None:
    options.begin_group("files")
    add = options.add_option
    folder = {"ti": "weights/embeddings", "lora": "weights/loras", "dreambooth": "weights"}[options.method]
    kinds = {"ti": ".safetensors or .pt", "lora": ".safetensors"}
    kind = kinds.get(options.method, ".safetensors, .ckpt, or without a suffix a diffusers folder")
    add("--output", type=Path, metavar="FILE", default=f"{folder}/NAME.safetensors",
        help=f"path of the result: {kind}; into an existing folder the file NAME.safetensors")  # fmt: skip
    add("--run-dir", dest="run", type=Path, metavar="DIR", default=f"runs/{options.method}-NAME",
        help="folder of everything that belongs to this run, from which the same command resumes")  # fmt: skip
    add("--save-minutes", type=float, metavar="X",
        help="minutes between saves of the state from which an interrupted run resumes")  # fmt: skip
    add("--keep-last", type=int, metavar="N", default="all", help="number of the latest saved steps to keep")
    add("--clean", action="store_true",
        help="at the end, delete the state, the encoded images and the files of all saved steps")  # fmt: skip


def add_targets(options: OptionGroups) -> None:
    options.begin_group("LoRA")
    add = options.add_option
    add("--rank", type=int, metavar="N", help="rank of the LoRA layers")
    scale = "alpha of the LoRA layers, whose change is scaled by alpha / rank"
    add("--alpha", type=float, metavar="X", default="the rank", help=scale)
    add("--targets", nargs="+", choices=TARGETS,
        help="layers to train: cross-attention, all attention, feed-forward, text encoder (one or more)")  # fmt: skip
    add_text_lr(options)
    add("--format", dest="file_format", choices=FILE_FORMATS, help="format of the LoRA file; peft writes a folder")


def add_text_lr(options: OptionGroups) -> None:
    options.add_option("--text-lr", type=float, metavar="RATE", default="half of --lr",
        help="learning rate of the text encoder, which trains it; with --lr 0 it alone is trained")  # fmt: skip


def train_from_args(options: OptionGroups, method: str, named: str) -> Result:
    """Parse the arguments and train. named: the option that holds the result's name."""
    args = options.parser.parse_args()
    given = {field.name: getattr(args, field.name, None) for field in fields(Recipe)}
    for switch, default in SWITCHES.items():
        given[switch] = None if given[switch] == default else given[switch]  # None: not given
    for listed in ("targets", "prompts"):
        given[listed] = tuple(given[listed]) if given[listed] else None
    Recipe(**{key: value for key, value in given.items() if value is not None})  # errors before a model is loaded
    check_device(device_of(args.device))
    name = getattr(args, named)
    check_name(name)
    check_image_folder(args.images)
    path = choose_checkpoint(args.ckpt, WEIGHTS)
    pipe = load_for_training(method, path, args.device, args.precision, args.vae, args.prediction)
    recipe = recipe_for(method, pipe, name, **given)
    return finetune(method, args.images, name, pipe, recipe, run=args.run, output=args.output)
