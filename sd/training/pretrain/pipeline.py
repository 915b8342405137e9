"""The stages of the scene training in their order, with their settings.

CLIP comes first, whose text tower limits what the U-Net can follow; then latents in bulk, and the U-Net on them; then
the VAE's decoder. Each stage starts from the shipped weights. Nothing trains the VAE's encoder.
"""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from sd.training.loop import TrainConfig, exists, load_model
from sd.training.pretrain import run as pretrain_run
from sd.training.pretrain.export import EARLIER, newest_folder, unpack
from sd.training.pretrain.scene_latents import SceneLatents, make_latents
from sd.training.pretrain.scene_text import train_scene_text
from sd.training.pretrain.scene_unet import train_scene_unet
from sd.training.pretrain.scene_vae import train_scene_decoder
from sd.training.pretrain.scenes.cutouts import Cutouts
from sd.training.pretrain.scenes.detector import Detector, detector_cutouts, train_detector
from sd.training.pretrain.scenes.stream import SceneStream
from sd.training.pretrain.scenes.turbo import train_turbo
from sd.utils.device import best_precision

CPU: dict[str, Any] = dict(precision="fp32", save_minutes=6.0)
FAST = ("detector", "unet", "turbo")  # stages in bf16 where the processor has it; elsewhere bf16 is many times slower
STAGES = {
    "clip": TrainConfig(steps=4000, batch=16, lr=4e-4, warmup=30, ema=0.99, schedule="constant", **CPU),
    "detector": TrainConfig(steps=20_000, batch=16, lr=1e-3, warmup=50, ema=0.995, schedule="constant", **CPU),
    "unet": TrainConfig(steps=9000, batch=32, lr=5e-4, warmup=100, ema=0.998, math_attention=False, **CPU),
    "turbo": TrainConfig(steps=1000, batch=32, lr=5e-4, warmup=50, ema=0, math_attention=False, **CPU),
    "decoder": TrainConfig(steps=2000, batch=8, lr=3e-4, warmup=50, betas=(0.5, 0.99), ema=0.99, **CPU),
}
LATENTS = 6000  # scenes made by the stage "latents"; more can be added at any time


def start_from_shipped(weights: Path, runs: Path) -> None:
    """Write the shipped weights to `runs/shipped/{clip,vae,unet}`, unless they exist there already."""
    if not exists(runs / "shipped" / "unet"):
        unpack(weights, runs / "shipped")


def keep_history(part: str, runs: Path) -> None:
    """Write how the shipped weights of a part were trained beside its run, so that the next export has it too."""
    earlier = runs / "shipped" / part / EARLIER
    if earlier.exists() and not (runs / part / EARLIER).exists():
        (runs / part).mkdir(parents=True, exist_ok=True)
        shutil.copy(earlier, runs / part / EARLIER)


def run_stage(stage: str, runs: Path, data: Path, settings: TrainConfig | None, latents: int = LATENTS) -> None:
    """Train one of STAGES in `runs/<stage>`, or resume it; or encode that many "latents".

    A stage starts from the shipped weights; decoder, U-Net and detector from those of their own folder where it has
    some. The U-Net uses the results of earlier stages; "turbo" trains a LoRA of the newest U-Net.
    """
    stream = SceneStream(Cutouts(data))
    for part in ("vae", "decoder") if stage == "decoder" else (stage,):
        keep_history(part, runs)
    if stage == "decoder":
        vae = load_model(pretrain_run.new_network("vae"), newest_folder("decoder", runs)).requires_grad_(True)
        train_scene_decoder(vae, runs / "decoder", stream, settings)
    elif stage == "clip":
        clip = load_model(pretrain_run.new_network("clip"), runs / "shipped" / "clip").requires_grad_(True)
        teacher = load_model(pretrain_run.new_network("clip"), runs / "shipped" / "clip").to(settings.device)
        train_scene_text(clip, runs / "clip", stream, settings, teacher)
    elif stage == "detector":
        detector = Detector()
        if exists(runs / stage):
            load_model(detector, runs / stage).requires_grad_(True)
        train_detector(detector, runs / stage, detector_cutouts(data), settings)
    elif stage == "latents":
        vae = load_model(pretrain_run.new_network("vae"), runs / "shipped" / "vae")
        make_latents(vae, stream, runs / "latents", latents)
    else:
        vae = load_model(pretrain_run.new_network("vae"), newest_folder("decoder", runs)).to(settings.device)
        text = load_model(pretrain_run.new_network("clip"), newest_folder("clip", runs)).text_model.to(settings.device)
        newest = newest_folder("unet", runs)
        unet = load_model(pretrain_run.new_network("unet"), newest).to(settings.device)
        teacher_folder = newest if stage == "turbo" else runs / "shipped" / "unet"
        teacher = load_model(pretrain_run.new_network("unet"), teacher_folder).to(settings.device)
        scenes = SceneLatents(runs / "latents")
        if stage == "turbo":
            train_turbo(unet, teacher, text, vae, runs / stage, scenes, settings)
        else:
            train_scene_unet(unet.requires_grad_(True), text, vae, runs / stage, scenes, settings, teacher)


def stage_settings(stage: str, **given) -> TrainConfig:
    """Return the stage's settings, with the given ones in their place."""
    settings = replace(STAGES[stage], **given)
    if stage not in FAST:
        return settings
    precision = best_precision(settings.device)
    # In bf16 on a CPU, the backward pass of flash attention takes 30 % of the U-Net's step; plain attention takes 8 %.
    return replace(settings, precision=precision, math_attention=settings.math_attention or precision == "bf16")
