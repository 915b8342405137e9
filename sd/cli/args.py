"""What the drawing scripts share: their flags, the choice of a checkpoint, the progress bar, the saving."""

import argparse
import copy
import time
from contextlib import closing
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

from sd.checkpoints.checkpoint import DTYPES
from sd.checkpoints.discovery import BUNDLED, WEIGHTS, Models, locate
from sd.cli.distributed import processes
from sd.cli.requests import Drawing, spell_out
from sd.optimization.registry import NO_OPTIMIZATIONS, list_optimizations
from sd.pipeline.settings import HIRES_UPSCALERS, MAX_IMAGES, Settings, check_whole
from sd.pipeline.stable_diffusion import Pictures, StableDiffusion, default_device, default_dtype
from sd.pipeline.taesd import load_taesd
from sd.prompts.enhance import PromptWriter, in_style
from sd.prompts.llm import find_endpoint
from sd.samplers import SAMPLERS
from sd.schedule import SCHEDULES
from sd.utils.errors import UserError
from sd.utils.images import check_outdir, grid, save_png, write_png

PREVIEW_EVERY = 5  # steps


def drawing_parser(description: str) -> argparse.ArgumentParser:
    """The flags of all drawing scripts; CompVis' spellings stand beside ours."""
    parser = argparse.ArgumentParser(description=description)
    add = parser.add_argument
    add("words", nargs="?", metavar="PROMPT", help="what to draw")
    add("--prompt", help="the same, as a flag")
    add("--negative-prompt", "--negative_prompt", default="", help="what to stay away from")
    add("--style", metavar="NAME", help="a look from data/styles.csv, such as watercolor")
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
        help="patches for speed, such as exact,int8 or shared-start,fused-geglu, or none (exact)",
    )


def add_hires(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--hires-scale", type=float, default=1.0, help="over 1: draw a second time, so many times as large (1)")
    add("--hires-strength", type=float, default=0.7, help="how much the second time may change, 0 to 1 (0.7)")
    add("--hires-steps", type=int, default=0, help="steps of the second time (0: as many as the first)")
    add("--hires-upscaler", default="latent", help=f"one of {', '.join(HIRES_UPSCALERS)} (latent)")


def settings_of(args: argparse.Namespace, **changes: object) -> Settings:
    """The flags as `Settings`."""
    prompt = args.prompt if args.prompt is not None else args.words
    start, end = args.guidance_interval
    given = vars(args) | {"prompt": prompt, "guidance_start": start, "guidance_end": end} | changes
    if given["prompt"] is None:
        raise UserError('say what to draw: give a prompt in quotes, such as "a red apple".')
    check_whole("number of times over (--n-iter)", args.n_iter, 1, MAX_IMAGES)
    return Settings(**{name: given[name] for name in Settings.__dataclass_fields__ if name in given})


def with_picture_size(settings: Settings, image: Image.Image, model_size: int) -> Settings:
    """The picture's own size where none is asked for; one far larger than the model's is drawn at the model's area."""
    if settings.width is not None or settings.height is not None:
        return settings
    width, height = image.size
    scale = (model_size**2 / (width * height)) ** 0.5
    if scale > 0.5:
        return settings
    width, height = (max(8, round(side * scale) // 8 * 8) for side in image.size)
    print(f"the picture is {image.width}x{image.height}: drawing at {width}x{height}; --W and --H choose another size.")
    return settings.but(width=width, height=height)


def load_pipeline(args: argparse.Namespace) -> StableDiffusion:
    """The checkpoint that the flags name, or the one to take when they name none."""
    path = choose_checkpoint(args.ckpt, WEIGHTS)
    if path.resolve() != BUNDLED:
        print(f"checkpoint: {path}{'' if args.ckpt else '; --ckpt emoji takes the bundled model'}")
    device = device_of(args.device)
    check_device(device)
    pipe = StableDiffusion.from_pretrained(path, device, dtype_of(args.precision, device), args.vae)
    pipe.optimizations = optimizations_of(args.optimize)
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


def device_of(name: str | None) -> torch.device:
    """None: a GPU where there is one. Raises UserError for what is no device's name."""
    try:
        return default_device() if name is None else torch.device(name)
    except RuntimeError as error:
        raise UserError(f"there is no device {name!r}: write cpu, cuda, cuda:1 or mps.") from error


def check_device(device: torch.device) -> None:
    """Raises UserError for one that cannot be used here. On a GPU it takes what memory a process takes there."""
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"the device {device} cannot be used here: {str(error).splitlines()[0]}") from error


def optimizations_of(names: str | None) -> list[str] | None:
    """Names with commas between; None, the exact ones, where there are none."""
    if names is None:
        return None
    return [] if names == NO_OPTIMIZATIONS else [name.strip() for name in names.split(",")]


def split_end(text: str) -> tuple[str, str | None]:
    """FILE[:END]; a file whose own name has a colon is taken as it is."""
    path, colon, end = text.rpartition(":")
    return (path, end) if colon and not Path(text).exists() else (text, None)


def number(text: str, strength: str) -> float:
    try:
        return float(strength)
    except ValueError as error:
        raise UserError(f"--lora {text} ends in no strength: write FILE or FILE:0.8.") from error


def dtype_of(precision: str, device: torch.device) -> torch.dtype:
    """What a flag means. "autocast", CompVis' word, is half precision where the device is made for it."""
    if precision == "autocast" and device.type != "cpu":
        return torch.float16
    if precision == "autocast":
        return torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else torch.float32
    return DTYPES.get("fp32" if precision == "full" else precision, default_dtype(device))


def choose_checkpoint(name: str | None, folder: Path) -> Path:
    """A path as it is, or a name in `folder`; without one, the person's own checkpoint there, or the bundled one."""
    models = Models(folder)
    return locate("checkpoint", name, models) if name else models.checkpoint()


def spelled_out(pipe: StableDiffusion, settings: list[Settings], args: argparse.Namespace) -> list[Drawing]:
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
            pictures = pipe.draw(one, image, mask, on_step=shower)
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
