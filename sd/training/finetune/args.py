"""What the three training scripts share: their options, and what is done with them."""

import argparse
from dataclasses import fields
from pathlib import Path

from sd.checkpoints.discovery import choose_checkpoint
from sd.cli.args import add_vae
from sd.pipeline.stable_diffusion import WEIGHTS
from sd.training.finetune.finetune import Result, teach
from sd.training.finetune.recipes import (
    DIALECTS,
    KINDS,
    SCHEDULES,
    TARGETS,
    TOKEN_LENGTHS,
    Recipe,
    defaults_of,
    recipe_for,
)
from sd.training.finetune.setup import load_to_teach
from sd.utils.device import DTYPES, check_device, device_of


class Options:
    """A parser in groups, in which each setting's help ends with its default, for a large model and the bundled one."""

    def __init__(self, method: str, description: str, examples: str):
        self.method = method
        self.parser = argparse.ArgumentParser(
            description=description, epilog=examples, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        self.group = self.parser

    def begin(self, title: str) -> None:
        self.group = self.parser.add_argument_group(title)

    def add(self, *flags: str, help: str, default: str | None = None, **more: object) -> None:
        """default: what the help says of it; None for what `recipes.py` has under the option's name."""
        name = more.get("dest") or flags[0].removeprefix("--").replace("-", "_")
        told = default if default is not None else default_of(self.method, str(name))
        self.group.add_argument(*flags, help=f"{help} (default: {told})" if told else help, **more)


def default_of(method: str, name: str) -> str:
    """A setting's default in words."""
    large, small = (defaults_of(method, is_small)[name] for is_small in (False, True))
    return spoken(large) if large == small else f"{spoken(large)}; bundled model: {spoken(small)}"


def spoken(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return " ".join(value) if isinstance(value, tuple) else str(value)


def teaching_parser(method: str, description: str, examples: str) -> Options:
    """The options of all three methods; those that are left out take the method's and the model's defaults."""
    options = Options(method, description, examples)
    add_images(options)
    add_training(options)
    add_previews(options)
    add_files(options)
    return options


def add_images(options: Options) -> None:
    options.begin("model and images")
    add = options.add
    add("--ckpt", "--model", metavar="FILE", default="your downloaded model, else the bundled one",
        help="checkpoint to train from: a file, a diffusers folder, or a name in weights/")  # fmt: skip
    add_vae(options.group)
    add("--images", required=True, metavar="DIR", default="",
        help="folder of images, 5 to 15 for an object; captions in .txt or .caption files or in metadata.jsonl; "
        "sub-folders such as '10_sks dog' are read as kohya's scripts do")  # fmt: skip
    add("--class-word", metavar="WORD", default="none", help="what kind of thing the images show, such as dog")
    add("--kind", choices=KINDS, help="what the images have in common")
    add("--max-token-length", type=int, choices=TOKEN_LENGTHS, help="tokens of a caption that are read")
    add("--size", type=int, metavar="PIXELS", default="the model's own size", help="image size to train at")
    add("--no-flip", dest="flip", action="store_false", default="images are mirrored at random",
        help="do not mirror images: for faces, text and whatever has a left and a right side")  # fmt: skip
    add("--crops", type=int, metavar="N", help="number of crops of each image; 1 is its middle")
    add("--no-buckets", dest="buckets", action="store_false", default="aspect ratios are kept",
        help="crop every image to a square")  # fmt: skip


def add_training(options: Options) -> None:
    options.begin("training")
    add = options.add
    add("--steps", type=int, metavar="N", help="number of training steps")
    add("--batch", type=int, metavar="N", help="images in a batch")
    add("--accumulate", type=int, metavar="N", help="batches whose gradients make one step")
    add("--lr", type=float, metavar="RATE", help="learning rate")
    add("--scale-lr", action="store_true", help="multiply the learning rate by the number of images in a step")
    add("--schedule", choices=SCHEDULES, help="schedule of the learning rate")
    add("--warmup", type=int, metavar="N", help="steps in which the learning rate rises from 0")
    add("--weight-decay", type=float, metavar="RATE", help="weight decay of AdamW")
    add("--min-snr", type=float, metavar="GAMMA", help="gamma of Min-SNR loss weighting; 0 turns it off")
    add("--noise-offset", type=float, metavar="X", help="noise offset, about 0.1 for very dark or bright images")
    add("--seed", type=int, metavar="N", help="seed of everything random")
    add("--checkpointing", action="store_true",
        help="gradient checkpointing: less memory, a third more time")  # fmt: skip
    add("--precision", choices=list(DTYPES), default="the fastest of the device",
        help="precision of the frozen networks; for DreamBooth of mixed precision")  # fmt: skip
    add("--device", metavar="NAME", default="a GPU where there is one, else cpu", help="cpu, cuda, cuda:1 or mps")


def add_previews(options: Options) -> None:
    options.begin("preview images")
    add = options.add
    add("--prompt", dest="prompts", action="append", metavar="TEXT", default="four that suit the model",
        help="prompt of a preview image, with {} where the new word goes; may be given several times")  # fmt: skip
    add("--saves", type=int, metavar="N", help="number of files to choose from, each with its preview images")
    add("--preview-steps", type=int, metavar="N", default=default_of(options.method, "preview_steps")
        + "; large model on a CPU: 12", help="sampling steps of a preview image")  # fmt: skip
    add("--guidance-scale", type=float, metavar="X", help="guidance scale of the preview images")


def add_files(options: Options) -> None:
    options.begin("files")
    add = options.add
    folder = {"ti": "weights/embeddings", "lora": "weights/loras", "dreambooth": "weights"}[options.method]
    kinds = {"ti": ".safetensors or .pt", "lora": ".safetensors"}
    kind = kinds.get(options.method, ".safetensors, .ckpt, or without an ending a diffusers folder")
    add("--output", type=Path, metavar="FILE", default=f"{folder}/NAME.safetensors",
        help=f"where the result goes: {kind}; an existing folder gets a file into it")  # fmt: skip
    add("--run-dir", dest="run", type=Path, metavar="DIR", default=f"runs/{options.method}-NAME",
        help="folder of everything that belongs to this run; the same command goes on with it")  # fmt: skip
    add("--save-minutes", type=float, metavar="X",
        help="minutes between saves of the state that an interrupted run goes on from")  # fmt: skip
    add("--keep-last", type=int, metavar="N", default="all", help="keep only the last N of the --saves files")
    add("--clean", action="store_true",
        help="at the end, delete the state, the encoded images and the files of all steps")  # fmt: skip


def add_targets(options: Options) -> None:
    options.begin("LoRA")
    add = options.add
    add("--rank", type=int, metavar="N", help="rank of each layer's change")
    add("--alpha", type=float, metavar="X", default="the rank", help="alpha: the change is scaled by alpha / rank")
    add("--targets", nargs="+", choices=TARGETS,
        help="layers to train: cross-attention, all attention, feed-forward, the text encoder")  # fmt: skip
    add_text_lr(options)
    add("--format", dest="dialect", choices=DIALECTS, help="format of the file; peft makes a folder")


def add_text_lr(options: Options) -> None:
    options.add("--text-lr", type=float, metavar="RATE", default="half of --lr",
        help="learning rate of the text encoder, which trains it; with --lr 0 it is trained alone")  # fmt: skip


def teach_from(options: Options, method: str, named: str) -> Result:
    """Trains what the options say. named: the one that has the result's name."""
    args = options.parser.parse_args()
    given = {field.name: getattr(args, field.name, None) for field in fields(Recipe)}
    for switch, off in (
        ("scale_lr", False),
        ("checkpointing", False),
        ("clean", False),
        ("flip", True),
        ("buckets", True),
    ):
        given[switch] = None if given[switch] == off else given[switch]  # not given
    for listed in ("targets", "prompts"):
        given[listed] = tuple(given[listed]) if given[listed] else None
    Recipe(**{key: value for key, value in given.items() if value is not None})  # mistakes, before a model is read
    check_device(device_of(args.device))
    name = getattr(args, named)
    pipe = load_to_teach(method, choose_checkpoint(args.ckpt, WEIGHTS), args.device, args.precision, args.vae)
    recipe = recipe_for(method, pipe, name, **given)
    return teach(method, args.images, name, pipe, recipe, run=args.run, output=args.output)
