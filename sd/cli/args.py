"""The flags that the generating scripts share, and what they mean: settings, and a loaded pipeline."""

import argparse
import copy
from pathlib import Path

from PIL import Image

from sd.checkpoints.discovery import BUNDLED, WEIGHTS, choose_checkpoint
from sd.cli.run import PREVIEW_EVERY
from sd.evaluation.comparison import Column
from sd.optimization.registry import list_optimizations, parse_names
from sd.pipeline.settings import HIRES_UPSCALERS, MAX_IMAGES, GenerationSettings, check_whole
from sd.pipeline.stable_diffusion import StableDiffusion
from sd.pipeline.taesd import load_taesd
from sd.samplers import SAMPLERS
from sd.schedule import SCHEDULES
from sd.utils.device import DTYPES, check_device, device_of, dtype_of
from sd.utils.errors import UserError


def drawing_parser(description: str) -> argparse.ArgumentParser:
    """The flags of all drawing scripts; CompVis' spellings stand beside ours."""
    parser = argparse.ArgumentParser(description=description)
    add = parser.add_argument
    add("words", nargs="?", metavar="PROMPT", help="what to draw")
    add("--prompt", help="the same, as a flag")
    add("--negative-prompt", "--negative_prompt", default="", help="what to stay away from")
    add("--style", metavar="NAME", help="a look from sd/data/styles.csv, such as watercolor")
    add("--enhance", action="store_true", help="let a chat model write the prompts, or a style where there is none")
    add("--llm-url", metavar="URL", help="its OpenAI-compatible address, ending in /v1 (OPENAI_BASE_URL)")
    add("--llm-model", metavar="NAME", help="its name (OPENAI_MODEL); a key is read from OPENAI_API_KEY")
    add("--ckpt", "--model", metavar="FILE", help="a checkpoint, or its name in weights/ (default: yours, or ours)")
    add_vae(parser)
    add(
        "--lora",
        action="append",
        default=[],
        metavar="FILE[:STRENGTH]",
        help="a LoRA, or its name in weights/loras/; may be given several times",
    )
    add(
        "--embedding",
        action="append",
        default=[],
        metavar="FILE[:WORD]",
        help="a textual inversion, likewise in weights/embeddings/",
    )
    add("--outdir", default="outputs", help="folder for the pictures (outputs)")
    add("--steps", "--ddim_steps", type=int, default=50, help="how many steps (50)")
    add("--guidance-scale", "--scale", type=float, default=7.5, help="how strictly to follow the prompt (7.5)")
    add(
        "--sampler",
        default="ddpm",
        help=f"one of {', '.join(SAMPLERS)} (ddpm); dpmpp_2m and euler_a need fewer steps, 20 to 30 as a rule",
    )
    add("--plms", dest="sampler", action="store_const", const="plms", help="the same as --sampler plms")
    add("--schedule", default="", help=f"one of {', '.join(SCHEDULES)} (the sampler's own)")
    add("--seed", type=int, help="the first picture's seed; the next ones count up (any)")
    add("--width", "--W", type=int, help="in pixels, a multiple of 8 (the model's own)")
    add("--height", "--H", type=int, help="in pixels, a multiple of 8 (the model's own)")
    add("--num-images", "--n_samples", type=int, default=1, help="pictures at once (1)")
    add("--n-iter", "--n_iter", type=int, default=1, help="how many times over (1)")
    add("--clip-skip", type=int, default=1, help="1: CLIP's last layer, 2: the one before, as in the webui (1)")
    add("--guidance-rescale", type=float, default=0.0, help="0 to 1: take back contrast that guidance adds (0)")
    interval = "guide between these shares of the way from noise (0) to picture (1) only, such as 0.1 0.7: quicker"
    add("--guidance-interval", type=float, nargs=2, metavar=("START", "END"), default=(0.0, 1.0), help=interval)
    add("--step-cache", type=int, default=1, metavar="N", help="the whole U-Net every N-th time only: quicker (1)")
    add("--token-merging", type=float, default=0.0, metavar="RATIO", help="up to 0.75: quicker large pictures (0)")
    add("--variation-seed", type=int, help="a second seed, to turn the first one's noise towards")
    add("--variation-strength", type=float, default=0.0, help="how far, 0 to 1 (0)")
    add("--tiling", action="store_true", help="edges that continue at the opposite ones")
    add("--device", help="cpu, cuda, mps (a GPU where there is one)")
    add_ways_to_compute(parser)
    add("--list-optimizations", action=ListOptimizations, help="say which there are, and which are on, and leave")
    add("--taesd", metavar="PATH", help="TAESD's weights: decode with it, which is quicker and coarser")
    add("--preview", action="store_true", help=f"write preview.png every {PREVIEW_EVERY} steps")
    add("--skip-grid", "--skip_grid", action="store_true", help="no contact sheet of several pictures")
    return parser


def given_flags(parser: argparse.ArgumentParser) -> set[str]:
    """The names of the arguments that the command line holds, also of those that repeat a default."""
    bare = copy.deepcopy(parser)
    for action in bare._actions:
        action.default = argparse.SUPPRESS
    return set(vars(bare.parse_args()))


def add_vae(parser: argparse.ArgumentParser) -> None:
    text = "separate VAE: a file, or a name in weights/vae/; none: the checkpoint's own "
    text += "(default: NAME.vae.safetensors beside the checkpoint where there is one, else the checkpoint's own)"
    parser.add_argument("--vae", metavar="FILE", help=text)


class ListOptimizations(argparse.Action):
    """Leaves as --help does; for the device and precision that stand before it."""

    def __init__(self, *args: object, **more: object):
        super().__init__(*args, nargs=0, **more)

    def __call__(self, parser: argparse.ArgumentParser, args: argparse.Namespace, *_: object) -> None:
        device = device_of(args.device)
        print(list_optimizations(device, dtype_of(args.precision, device)))
        parser.exit()


def add_ways_to_compute(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--precision",
        choices=["auto", "full", "autocast", *DTYPES],
        default="auto",
        help="auto: fp32 on CPU, fp16 on GPU (auto)",
    )
    add(
        "--optimize",
        metavar="NAMES",
        help="patches for speed, such as exact,int8 or shared-cfg-prefix,fused-geglu, or none (exact)",
    )


def add_hires(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--hires-scale", type=float, default=1.0, help="over 1: draw a second time, so many times as large (1)")
    add("--hires-strength", type=float, default=0.7, help="how much the second time may change, 0 to 1 (0.7)")
    add("--hires-steps", type=int, default=0, help="steps of the second time (0: as many as the first)")
    add("--hires-upscaler", default="latent", help=f"one of {', '.join(HIRES_UPSCALERS)} (latent)")


def settings_of(args: argparse.Namespace, **changes: object) -> GenerationSettings:
    """The flags as `GenerationSettings`."""
    prompt = args.prompt if args.prompt is not None else args.words
    start, end = args.guidance_interval
    given = vars(args) | {"prompt": prompt, "guidance_start": start, "guidance_end": end} | changes
    if given["prompt"] is None:
        raise UserError('say what to draw: give a prompt in quotes, such as "a red apple".')
    check_whole("number of times over (--n-iter)", args.n_iter, 1, MAX_IMAGES)
    return GenerationSettings(
        **{name: given[name] for name in GenerationSettings.__dataclass_fields__ if name in given}
    )


def with_picture_size(settings: GenerationSettings, image: Image.Image, model_size: int) -> GenerationSettings:
    """The picture's own size where none is asked for; one far larger than the model's is drawn at the model's area."""
    if settings.width is not None or settings.height is not None:
        return settings
    width, height = image.size
    scale = (model_size**2 / (width * height)) ** 0.5
    if scale > 0.5:
        return settings
    width, height = (max(8, round(side * scale) // 8 * 8) for side in image.size)
    print(f"the picture is {image.width}x{image.height}: drawing at {width}x{height}; --W and --H choose another size.")
    return settings.replace(width=width, height=height)


def load_pipeline(args: argparse.Namespace) -> StableDiffusion:
    """The checkpoint that the flags name, or the one to take when they name none."""
    path = choose_checkpoint(args.ckpt, WEIGHTS)
    if path.resolve() != BUNDLED:
        print(f"checkpoint: {path}{'' if args.ckpt else '; --ckpt emoji takes the bundled model'}")
    device = device_of(args.device)
    check_device(device)
    pipe = StableDiffusion.from_pretrained(path, device, dtype_of(args.precision, device), args.vae)
    pipe.optimizations = parse_names(args.optimize)
    pipe.optimize()
    for text in args.lora:
        path, strength = split_end(text)
        name = Path(path).stem
        taken = sum(one == name or one.startswith(f"{name} (") for one in pipe.adapters.names())
        name = f"{name} ({taken + 1})" if taken else None  # given twice, they add up
        print(pipe.load_lora(path, 1.0 if strength is None else number(text, strength), name=name))
    for text in args.embedding:
        print(pipe.load_embedding(*split_end(text)))
    if args.taesd:
        pipe.taesd = load_taesd(args.taesd, pipe.device)
        pipe.decode_with_taesd = True
    return pipe


def split_end(text: str) -> tuple[str, str | None]:
    """FILE[:END]; a file whose own name has a colon is taken as it is."""
    path, colon, end = text.rpartition(":")
    return (path, end) if colon and not Path(text).exists() else (text, None)


def number(text: str, strength: str) -> float:
    try:
        return float(strength)
    except ValueError as error:
        raise UserError(f"--lora {text} ends in no strength: write FILE or FILE:0.8.") from error


def column_of(text: str) -> Column:
    """A column as people write it: lora=FILE[:STRENGTH], embedding=FILE[:WORD], ckpt=FILE, several joined by " + "."""
    ckpt, loras, embeddings = None, [], []
    for part in text.split(" + "):
        kind, _, value = part.strip().partition("=")
        if not value or kind not in ("lora", "embedding", "ckpt") or (kind == "ckpt" and ckpt):
            raise UserError(f"{part!r} is no column: write lora=FILE:0.8, embedding=FILE or ckpt=FILE.")
        path, end = split_end(value)
        if kind == "ckpt":
            ckpt = value
        elif kind == "lora":
            loras.append((path, 1.0 if end is None else number(value, end)))
        else:
            embeddings.append((path, end))
    return Column(ckpt, tuple(loras), tuple(embeddings))
