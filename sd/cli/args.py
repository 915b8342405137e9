"""The flags of the generating scripts, made from the table of options, and what they give: settings and a pipeline."""

import argparse
import copy
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from sd.adapters.lora_loader import LoraReport
from sd.checkpoints.discovery import BUNDLED, WEIGHTS, choose_checkpoint
from sd.checkpoints.predictions import PREDICTION_HELP, PREDICTIONS
from sd.cli.parser import ArgumentParser
from sd.cli.run import PREVIEW_EVERY
from sd.evaluation.comparison import Column
from sd.optimization.registry import list_optimizations, parse_names
from sd.pipeline.options import GROUPS, Option, check_whole
from sd.pipeline.settings import MAX_IMAGES, OPTIONS, GenerationSettings
from sd.pipeline.stable_diffusion import StableDiffusion
from sd.utils.device import DTYPES, check_device, device_of, dtype_of
from sd.utils.errors import UserError
from sd.utils.files import decode_argument
from sd.utils.images import cut_size


def generation_parser(description: str, mode: str = "text", defaults: Mapping[str, Any] | None = None) -> "FlagGroups":
    """Returns the flags of a generating script, in groups; CompVis' names of flags are accepted as aliases.

    mode: "text" for txt2img, "image" for img2img and inpainting. defaults: where they differ from the table's.
    """
    flags = FlagGroups(ArgumentParser(description=description))
    add_prompt_flags(flags)
    without_default = {"prompt": None}  # distinguishes an empty --prompt from a missing one
    add_options(flags, [row for row in OPTIONS if row.mode in ("", mode)], without_default | dict(defaults or {}))
    add = flags.add
    add("sampling", "--plms", dest="sampler", action="store_const", const="plms", help="same as --sampler plms")
    add(
        *("performance", "--guidance-interval"),
        action=GuidanceInterval,
        nargs=2,
        type=float,
        metavar=("START", "END"),
        help="same as --guidance-start START --guidance-end END",
    )
    add_image_lists(flags)
    add_model_flags(flags)
    add("performance", "--device", help="cpu, cuda or mps", default_help="a GPU where there is one")
    add_compute_flags(flags.parser, flags)
    add(
        *("performance", "--list-optimizations"),
        action=ListOptimizations,
        help="list the available optimizations for --device and --precision, if given before, and exit",
    )
    add_output_flags(flags)
    return flags


class FlagGroups:
    """A parser with titled groups of flags; the help of each flag ends with its default."""

    def __init__(self, parser: ArgumentParser):
        self.parser = parser
        self.groups = {title: parser.add_argument_group(title) for title in GROUPS}

    def add(self, group: str, *flags: str, help: str, default_help: str = "", **more: Any) -> None:
        self.groups[group].add_argument(*flags, help=with_default(help, more.get("default"), default_help), **more)


def with_default(help: str, default: object, default_help: str = "") -> str:
    """Returns a flag's help text with its default, or the description of the default, at the end."""
    if default_help:
        return f"{help} (default: {default_help})"
    if isinstance(default, bool) or default in (None, "", []):
        return help
    return f"{help} (default: {default:g})" if isinstance(default, (int, float)) else f"{help} (default: {default})"


def add_options(flags: FlagGroups, rows: Iterable[Option], defaults: Mapping[str, Any] | None = None) -> None:
    """Adds the flags of some rows of the table of options."""
    for row in rows:
        default = (defaults or {}).get(row.name, row.default)
        more: dict[str, Any] = {"default": default, "dest": row.name}
        if row.type is bool:
            more["action"] = argparse.BooleanOptionalAction if row.default else "store_true"
        else:
            as_type = decode_argument if row.type is str and row.group == "prompt" else row.type
            more |= {"type": as_type, "metavar": row.metavar or row.type.__name__.upper().replace("STR", "TEXT")}
        flags.add(
            row.group,
            *row.flags,
            help=row.help,
            default_help=row.default_help if default == row.default else "",
            **more,
        )


def add_prompt_flags(flags: FlagGroups) -> None:
    add = flags.add
    text = decode_argument
    add("prompt", "positional_prompt", nargs="?", type=text, metavar="PROMPT", help="text prompt; the same as --prompt")
    add("prompt", "--style", type=text, metavar="NAME", help="apply a style of data/styles.csv, such as watercolor")
    add(
        *("prompt", "--enhance"),
        action="store_true",
        help="rewrite the prompt with an LLM; falls back to a random style if no endpoint is configured",
    )
    add(
        *("prompt", "--llm-url"),
        metavar="URL",
        help="address of the OpenAI-compatible endpoint for --enhance, ending in /v1",
        default_help="OPENAI_BASE_URL",
    )
    add(
        *("prompt", "--llm-model"),
        metavar="NAME",
        help="name of the LLM for --enhance; its key is read from OPENAI_API_KEY",
        default_help="OPENAI_MODEL",
    )


def add_model_flags(flags: FlagGroups) -> None:
    add = flags.add
    add(
        *("adapters", "--ckpt", "--model"),
        metavar="FILE",
        help="checkpoint file or diffusers folder, or the name of one in weights/",
        default_help="your own one in weights/, else the bundled model",
    )
    add_model_choices(flags.groups["adapters"])
    add(
        *("adapters", "--lora"),
        action="append",
        default=[],
        metavar="FILE[:STRENGTH]",
        help="LoRA file, or the name of one in weights/loras/ (repeatable)",
    )
    add(
        *("adapters", "--embedding"),
        action="append",
        default=[],
        metavar="FILE[:WORD]",
        help="textual inversion file, or the name of one in weights/embeddings/ (repeatable)",
    )


def add_output_flags(flags: FlagGroups) -> None:
    add = flags.add
    add("output", "--outdir", default="outputs", help="folder for the images")
    add("output", "--n-iter", "--n_iter", type=int, default=1, help="number of times to generate --num-images images")
    add("output", "--preview", action="store_true", help=f"write preview.png every {PREVIEW_EVERY} steps")
    add("output", "--skip-grid", "--skip_grid", action="store_true", help="save no grid of all images")
    taesd = "decode with TAESD (a file or a folder), which is faster and less exact; used for previews too"
    add("performance", "--taesd", metavar="PATH", help=taesd)


def given_flags(parser: ArgumentParser) -> set[str]:
    """Returns the names of the arguments on the command line, including those that repeat a default."""
    bare = copy.deepcopy(parser)
    for action in bare._actions:
        action.default = argparse.SUPPRESS
    return set(vars(bare.parse_args()))


def add_model_choices(parser: Any) -> None:
    """Adds --vae and --prediction to a parser or a group."""
    parser.add_argument(
        "--vae",
        metavar="FILE",
        help="separate VAE: a file, a name in weights/vae/, or none for the checkpoint's own "
        "(default: NAME.vae.safetensors beside the checkpoint if there is one, else the checkpoint's own)",
    )
    parser.add_argument(
        "--prediction",
        choices=list(PREDICTIONS),
        metavar="KIND",
        help=f"{PREDICTION_HELP} (default: as the file is marked, else eps)",
    )


class GuidanceInterval(argparse.Action):
    """Sets guidance_start and guidance_end with one flag."""

    def __init__(self, option_strings: list[str], dest: str, **more: Any):
        super().__init__(option_strings, dest=argparse.SUPPRESS, default=argparse.SUPPRESS, **more)

    def __call__(self, parser: argparse.ArgumentParser, args: argparse.Namespace, values: Any, *_: object) -> None:
        args.guidance_start, args.guidance_end = values


class ListOptimizations(argparse.Action):
    """Prints the optimizations and exits, as --help does."""

    def __init__(self, **more: Any):
        super().__init__(nargs=0, **more)

    def __call__(self, parser: argparse.ArgumentParser, args: argparse.Namespace, *_: object) -> None:
        device = device_of(args.device)
        print(list_optimizations(device, dtype_of(args.precision, device)))
        parser.exit()


def add_compute_flags(parser: ArgumentParser, flags: FlagGroups | None = None) -> None:
    """Adds --precision and --optimize to a parser, or to the performance group of `flags`."""
    target = flags.groups["performance"] if flags else parser
    target.add_argument(
        "--precision",
        choices=["auto", "full", "autocast", *DTYPES],
        default="auto",
        help="precision of the networks; auto is fp32 on a CPU and fp16 on a GPU (default: auto)",
    )
    target.add_argument(
        "--optimize",
        metavar="NAMES",
        help="optimizations, separated by commas, such as exact,int8; or none (default: exact, those that do not "
        "change the image)",
    )


def settings_from_args(args: argparse.Namespace, **changes: Any) -> GenerationSettings:
    """Returns the flags as settings. Raises UserError for a missing prompt or a value that cannot be used."""
    given = vars(args) | {"prompt": prompt_from_args(args)} | changes
    if given["prompt"] is None:
        raise UserError('missing prompt; pass it in quotes, such as "a red apple".')
    check_whole("n_iter", args.n_iter, 1, MAX_IMAGES)
    return GenerationSettings(**{row.name: given[row.name] for row in OPTIONS if row.name in given})


def prompt_from_args(args: argparse.Namespace) -> str | None:
    """Returns --prompt, which may be empty, else the positional prompt."""
    return args.prompt if args.prompt is not None else args.positional_prompt


def with_image_size(
    settings: GenerationSettings, image: Image.Image, model_size: int
) -> tuple[GenerationSettings, str]:
    """Returns settings with a size for an image much larger than the model's area, and a sentence about it.

    The size has the image's shape and about the model's area. A given size stays, and that of other images is left to
    the pipeline; the sentence is then "".
    """
    if settings.width is not None or settings.height is not None:
        return settings, ""
    scale = (model_size**2 / (image.width * image.height)) ** 0.5
    if scale > 0.5:
        return settings, ""
    width, height = cut_size(*(round(side * scale) for side in image.size))
    note = f"the image is {image.width}x{image.height}: generating at {width}x{height}; use --W and --H for another."
    return settings.replace(width=width, height=height), note


def load_pipeline(args: argparse.Namespace) -> StableDiffusion:
    """Returns the pipeline of the checkpoint that the flags name, or of the default one, with the flags' adapters."""
    path = choose_checkpoint(args.ckpt, WEIGHTS)
    if path.resolve() != BUNDLED:
        print(f"checkpoint: {path}{'' if args.ckpt else '; --ckpt emoji uses the bundled model'}")
    device = device_of(args.device)
    check_device(device)
    pipe = StableDiffusion.from_pretrained(path, device, dtype_of(args.precision, device), args.vae, args.prediction)
    pipe.set_optimizations(parse_names(args.optimize))
    pipe.optimize()
    for text in args.lora:
        print(load_lora(pipe, text))
    for text in args.embedding:
        print(pipe.load_embedding(*split_suffix(text)))
    if args.taesd:
        pipe.enable_taesd(args.taesd)
    return pipe


def load_lora(pipe: StableDiffusion, text: str) -> LoraReport:
    """Loads FILE[:STRENGTH] into a pipeline; a LoRA that is given twice gets a name of its own, so that they add up."""
    path, strength = split_suffix(text)
    name = Path(path).stem
    taken = sum(one == name or one.startswith(f"{name} (") for one in pipe.adapters.names())
    return pipe.load_lora(
        path,
        1.0 if strength is None else parse_strength(text, strength),
        name=f"{name} ({taken + 1})" if taken else None,
    )


def split_suffix(text: str) -> tuple[str, str | None]:
    """Splits FILE[:SUFFIX]; a file whose own name has a colon is taken as it is."""
    path, colon, suffix = text.rpartition(":")
    return (path, suffix) if colon and not Path(text).exists() else (text, None)


def parse_strength(text: str, strength: str) -> float:
    """Returns the strength as a number. Raises UserError, which names the whole `text`, where it is none."""
    try:
        return float(strength)
    except ValueError as error:
        raise UserError(f"--lora {text} ends in no strength: use FILE or FILE:0.8.") from error


def parse_column(text: str) -> Column:
    """Parses lora=FILE[:STRENGTH], embedding=FILE[:WORD] or ckpt=FILE, or several of them joined by " + "."""
    ckpt: str | None = None
    loras: list[tuple[str, float]] = []
    embeddings: list[tuple[str, str | None]] = []
    for part in text.split(" + "):
        kind, _, value = part.strip().partition("=")
        if not value or kind not in ("lora", "embedding", "ckpt") or (kind == "ckpt" and ckpt):
            raise UserError(f"{part!r} is no column: use lora=FILE:0.8, embedding=FILE or ckpt=FILE.")
        path, suffix = split_suffix(value)
        if kind == "ckpt":
            ckpt = value
        elif kind == "lora":
            loras.append((path, 1.0 if suffix is None else parse_strength(value, suffix)))
        else:
            embeddings.append((path, suffix))
    return Column(ckpt, tuple(loras), tuple(embeddings))


def add_image_lists(flags: "FlagGroups") -> None:
    """Adds the flags of files that belong to other options: control images and region masks."""
    flags.add(
        *("control", "--control-image"),
        action="append",
        default=[],
        metavar="FILE",
        help="image for --control, one for each ControlNet or one for all (repeatable)",
        default_help="the init image of img2img",
    )
    flags.add(
        *("prompt", "--region-mask"),
        action="append",
        default=[],
        metavar="FILE",
        help="mask of a region of the prompt, white where it works, one for each region (repeatable)",
        default_help="ADDCOL and ADDROW in the prompt divide the image",
    )
