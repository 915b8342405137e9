"""Training of a ControlNet: the frozen U-Net's loss under its control, and a run from the first step to the file.

Only the ControlNet's weights have gradients. The U-Net's encoder runs without any; through its decoder the gradient
reaches what the ControlNet adds to the skip connections, but no gradient of a frozen weight is computed.
"""

import copy
import json
import shlex
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from sd.checkpoints.discovery import BUNDLED, CONTROLNETS
from sd.control.controlled_unet import Control, ControlledUNet
from sd.control.controlnet import ControlNetModel, controlnet_from_unet
from sd.control.controlnet_files import save_controlnet
from sd.optimization.registry import frozen_names
from sd.pipeline.stable_diffusion import StableDiffusion
from sd.schedule import TIMES
from sd.training.controlnet.previews import PreviewSheet
from sd.training.controlnet.recipe import ControlRecipe, control_recipe
from sd.training.controlnet.sources import Source
from sd.training.distributed import join_processes
from sd.training.finetune.data.long_captions import caption_encoder
from sd.training.finetune.finetune import RUNS, check_name, describe_base_model, trainable_optimizations
from sd.training.finetune.outputs import check_output, note_delivery, resolve_output
from sd.training.finetune.recipes import TOKEN_LENGTHS, is_small
from sd.training.finetune.runs import check_same_run, check_steps, clear_orphans, content_hash, write_note
from sd.training.finetune.validation import step_files
from sd.training.loop import Loss, TrainConfig, train
from sd.training.loss import prediction_errors, snr_weights
from sd.training.train_state import completed_steps
from sd.utils.device import DTYPES, best_precision, rank_and_world_size
from sd.utils.errors import UserError

SourceBuilder = Callable[[Path], Source]  # takes the run's folder, where encoded images are kept


class TrainedControl(Control):
    """A ControlNet in training: it embeds the condition image itself, so that those layers have gradients too.

    Its weights are in fp32 and its products in the precision of the run, beside a U-Net in a dtype of its own.
    """

    def __init__(self, network: ControlNetModel, images: Tensor, config: TrainConfig):
        """images: (B, 3, H, W) in [0, 1]."""
        super().__init__(network, images)
        self.config = config

    def outputs(self, x: Tensor, t: Tensor, context: Tensor, uncond_rows: int) -> list[Tensor]:
        """Return the ControlNet's outputs in the U-Net's dtype."""
        with self.config.autocast():
            hint = self.network.embed_hint(self.hint)
            outputs = self.network(x.float(), t, context.float(), hint)
        return [output.to(x.dtype) for output in outputs]


def control_loss(pipe: StableDiffusion, source: Source, config: TrainConfig, recipe: ControlRecipe) -> Loss:
    """Return the loss for `loop.train`: the error in the U-Net's prediction under control (Zhang et al. 2023, eq. 5).

    pipe: with frozen networks, in any dtype.
    """
    weights = snr_weights(recipe.least_snr, recipe.min_snr, pipe.prediction)
    encode = caption_encoder(pipe, is_trained=False, tokens=TOKEN_LENGTHS[-1])

    def loss(network: nn.Module, indices: Tensor, generator: torch.Generator) -> Tensor:
        batch = source.batch(indices, generator)
        x0, count = batch.latents, len(batch.latents)
        noise = torch.randn(x0.shape, generator=generator)
        # Stratified timesteps, one from each of B equal parts of 0..999: less variance in the sum.
        t = ((torch.arange(count) + torch.rand(count, generator=generator)) * TIMES / count).long()
        context = encode(batch.captions)
        control = TrainedControl(network, batch.conditions.to(pipe.device), config)
        with torch.autocast(pipe.device.type, enabled=False):  # the frozen U-Net computes in its own dtype
            unet = ControlledUNet(pipe.unet, [control], count)
            return prediction_errors(unet, x0, noise, t, context, weights, pipe.prediction).mean()

    return loss


def new_controlnet(pipe: StableDiffusion, recipe: ControlRecipe) -> ControlNetModel:
    """Return the ControlNet before its first step, a copy of the U-Net's encoder that changes nothing yet.

    The layers that read the image start from the recipe's seed. Raises UserError for a checkpoint that cannot have one.
    """
    if pipe.unet.in_channels != 4:
        raise UserError("this checkpoint is for inpainting: train from the one that it was made of.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        network = controlnet_from_unet(pipe.unet, pipe.sizes["unet"], recipe.hint_channels)
    if network.hint_downsample != pipe.vae.downsample:
        raise UserError(
            f"this checkpoint's latents have 1/{pipe.vae.downsample} of the image's size, and a ControlNet is for "
            f"1/{network.hint_downsample}: train from a Stable Diffusion 1.x checkpoint."
        )
    return network.float().requires_grad_(True)


def freeze(pipe: StableDiffusion, precision: str) -> None:
    """Freeze the networks of a pipeline in a precision, with the optimizations that pass gradients on."""
    for network in (pipe.clip, pipe.vae, pipe.unet):
        network.to(DTYPES[precision]).requires_grad_(False).eval()
    pipe.set_optimizations(frozen_names(pipe.device, pipe.dtype))
    pipe.optimize()


def control_config(pipe: StableDiffusion, recipe: ControlRecipe, precision: str) -> TrainConfig:
    """Return the configuration of the training loop."""
    return TrainConfig(
        steps=recipe.steps,
        batch=recipe.batch,
        accumulate=recipe.accumulate,
        lr=recipe.lr,
        schedule="constant",
        warmup=recipe.warmup,
        ema=recipe.ema,
        precision=precision,
        math_attention=is_small(pipe),
        seed=recipe.seed,
        device=str(pipe.device),
        save_minutes=recipe.save_minutes,
    )


def train_controlnet(
    name: str,
    pipe: StableDiffusion,
    build_source: SourceBuilder,
    recipe: ControlRecipe | None = None,
    run: Path | None = None,
    output: Path | None = None,
    say: Callable[[str], None] = tqdm.write,
) -> Path:
    """Train a ControlNet for a frozen model, or resume a run that was stopped; a resumed run ends in the same bits.

    pipe: the model, in fp32; afterwards its networks are frozen and in the precision of the run.
    run: the folder of everything that belongs to this run; None for runs/controlnet-NAME. It has the state, the newest
        file in `steps` and a sheet of previews for each save.
    output: the path of the result, fp16; None for weights/controlnet/NAME.safetensors.

    Returns the path of the result. Raises UserError, with nothing changed, for invalid input, and KeyboardInterrupt
    after a stop.
    """
    recipe = recipe or control_recipe(pipe)
    rank, world_size = join_processes(str(pipe.device))
    say = say if rank == 0 else lambda sentence: None
    check_name(name)
    output = resolve_output("controlnet", name, CONTROLNETS, output)
    run = Path(run or RUNS / f"controlnet-{output.stem}")
    network = new_controlnet(pipe, recipe)
    if rank == 0:
        clear_orphans(run, output)
    check_output(output, pipe, run, "give another --name or --output")
    say(describe_base_model(pipe))
    identity = run_identity(name, pipe, recipe)
    check_same_run(run, identity)
    precision = recipe.precision or best_precision(pipe.device)
    config = control_config(pipe, recipe, precision)
    with trainable_optimizations(pipe):
        source = build_source(run)
        note = check_same_run(run, identity | source.facts)
        check_steps(run, note, recipe.steps, say)
        if rank == 0:
            write_note(run, note)
        say(describe_run(network, recipe, source, precision, world_size))
        freeze(pipe, precision)
        saver = Saver(pipe, source, recipe, run)
        if rank == 0 and completed_steps(run) < recipe.steps:
            saver.previews.generate_baseline()
        trained = train(network, control_loss(pipe, source, config, recipe), len(source), run, config, saver)
    if rank == 0:
        saver.write(output, trained, recipe.steps)
        note_delivery(run, output, recipe.steps)
        sheets = f"; sheets of previews are in {run}" if recipe.previews else ""
        say(f"{output}  {output.stat().st_size / 1e6:.1f} MB{sheets}")
        say(usage_command(output, pipe, recipe))
    return output


def run_identity(name: str, pipe: StableDiffusion, recipe: ControlRecipe) -> dict:
    """Return what must not change when a run resumes."""
    lasting = ("conditions", "empty_captions", "size", "seed", "hint_channels", "flip", "crops")
    model = Path(pipe.path).name if pipe.path else ""
    identity = {"method": "controlnet", "name": name, "model_hash": content_hash(pipe), "model": model}
    return json.loads(json.dumps(identity | {key: getattr(recipe, key) for key in lasting}))


class Saver:
    """Called by the training loop at each save: writes the newest file and a sheet of previews."""

    def __init__(self, pipe: StableDiffusion, source: Source, recipe: ControlRecipe, run: Path):
        self.run, self.recipe, self.base = run, recipe, Path(pipe.path).name if pipe.path else ""
        self.examples = len(source)
        self.previews = PreviewSheet(pipe, source, recipe)

    def __call__(self, average: nn.Module, step: int) -> None:
        file = self.run / "steps" / f"{step:06}.safetensors"
        file.parent.mkdir(exist_ok=True)
        self.write(file, average, step)
        if len(self.previews):
            self.previews.save(file, self.run / f"sheet-{step:06}.png")
        for older in step_files(self.run):
            if older != file:
                older.unlink()

    def write(self, path: Path, network: nn.Module, step: int) -> None:
        """Write a ControlNet in fp16, with what it was trained on in its metadata."""
        recipe = self.recipe
        facts = {
            "base": self.base,
            "steps": step,
            "examples": self.examples,
            "conditions": list(recipe.conditions),
            "batch": recipe.batch * recipe.accumulate * rank_and_world_size()[1],
            "lr": recipe.lr,
        }
        save_controlnet(path, copy.deepcopy(network).half(), {"sd_controlnet": json.dumps(facts)})


def describe_run(network: nn.Module, recipe: ControlRecipe, source: Source, precision: str, world_size: int) -> str:
    """Return the size of the network and of the run, in two lines."""
    count = sum(parameter.numel() for parameter in network.parameters())
    per_step = recipe.batch * recipe.accumulate * world_size
    return (
        f"{count:,} trainable parameters, {2 * count / 1e6:.1f} MB in fp16; {recipe.steps} steps of {per_step} of "
        f"{len(source)} {source.what} in {precision}, learning rate {recipe.lr:g}\n"
        f"conditions: {', '.join(recipe.conditions)}; {recipe.empty_captions:.0%} of the captions are left empty"
    )


def usage_command(output: Path, pipe: StableDiffusion, recipe: ControlRecipe) -> str:
    """Return a command that generates an image with the result."""
    control = output.stem if output.parent == CONTROLNETS else str(output)
    is_bundled = pipe.path is None or Path(pipe.path).resolve() == BUNDLED.resolve()
    base = "" if is_bundled else f" --ckpt {shlex.quote(str(pipe.path))}"
    first = recipe.conditions[0]
    preprocessor = "" if first == "scribble" else f":preprocessor={first}"
    control = shlex.quote(control + preprocessor)
    return f"use it: python scripts/txt2img.py PROMPT --control {control} --control-image FILE{base}"
