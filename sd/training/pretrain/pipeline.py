"""The stages of the scene training in their order, with their settings.

The VAE comes first, because it makes the latents; then CLIP, whose text tower limits what the U-Net can follow; then
latents in bulk, and the U-Net on them. Each stage starts from the shipped weights.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from sd.checkpoints.checkpoint import save_checkpoint
from sd.training.logger import read_log
from sd.training.loop import TrainConfig, exists, load_model
from sd.training.pretrain import run as pretrain_run
from sd.training.pretrain.export import machine, revision, unpack
from sd.training.pretrain.scene_latents import SceneLatents, make_latents
from sd.training.pretrain.scene_text import train_scene_text
from sd.training.pretrain.scene_unet import train_scene_unet
from sd.training.pretrain.scene_vae import train_scene_vae
from sd.training.pretrain.scenes.cutouts import Cutouts
from sd.training.pretrain.scenes.detector import Detector, detector_cutouts, train_detector
from sd.training.pretrain.scenes.stream import SceneStream
from sd.utils.device import best_precision

CPU: dict[str, Any] = dict(precision="fp32", save_minutes=6.0)
FAST = ("detector", "unet")  # stages in bf16 where the processor has it, and in fp32 where bf16 is many times slower
STAGES = {
    "vae": TrainConfig(steps=900, batch=8, lr=3e-4, warmup=20, ema=0.99, **CPU),
    "clip": TrainConfig(steps=4000, batch=16, lr=4e-4, warmup=30, ema=0.99, schedule="constant", **CPU),
    "detector": TrainConfig(steps=20_000, batch=16, lr=1e-3, warmup=50, ema=0.995, schedule="constant", **CPU),
    "unet": TrainConfig(steps=9000, batch=32, lr=8e-4, warmup=100, ema=0.998, math_attention=False, **CPU),
}
LATENTS = 6000  # scenes made by the stage "latents"; more can be added at any time


def start_from_shipped(weights: Path, runs: Path) -> None:
    """Write the shipped weights to `runs/shipped/{clip,vae,unet}`, unless they exist there already."""
    if not exists(runs / "shipped" / "unet"):
        unpack(weights, runs / "shipped")


def newest_folder(part: str, runs: Path) -> Path:
    """Return the folder of a part's newest weights: those of its own stage or, before that, the shipped ones."""
    return runs / part if exists(runs / part) else runs / "shipped" / part


def run_stage(
    stage: str, runs: Path, data: Path, settings: TrainConfig | None, latents: int = LATENTS, compiled: bool = False
) -> None:
    """Train one of STAGES in `runs/<stage>`, or resume it; or encode that many "latents".

    A stage starts from the shipped weights; the U-Net and the latents use the results of earlier stages.
    compiled: train the U-Net with `torch.compile`.
    """
    stream = SceneStream(Cutouts(data))
    if stage == "vae":
        vae = load_model(pretrain_run.new_network("vae"), runs / "shipped" / "vae").requires_grad_(True)
        train_scene_vae(vae, runs / "vae", stream, settings)
    elif stage == "clip":
        clip = load_model(pretrain_run.new_network("clip"), runs / "shipped" / "clip").requires_grad_(True)
        teacher = load_model(pretrain_run.new_network("clip"), runs / "shipped" / "clip").to(settings.device)
        train_scene_text(clip, runs / "clip", stream, settings, teacher)
    elif stage == "detector":
        train_detector(Detector(), runs / "detector", detector_cutouts(data), settings)
    elif stage == "latents":
        make_latents(
            load_model(pretrain_run.new_network("vae"), newest_folder("vae", runs)), stream, runs / "latents", latents
        )
    else:
        vae = load_model(pretrain_run.new_network("vae"), newest_folder("vae", runs)).to(settings.device)
        text = load_model(pretrain_run.new_network("clip"), newest_folder("clip", runs)).text_model.to(settings.device)
        unet = load_model(pretrain_run.new_network("unet"), newest_folder("unet", runs)).requires_grad_(True)
        train_scene_unet(unet, text, vae, runs / "unet", SceneLatents(runs / "latents"), settings, compiled)


def stage_settings(stage: str, **given) -> TrainConfig:
    """Return the stage's settings, with the given ones in their place."""
    settings = replace(STAGES[stage], **given)
    return replace(settings, precision=best_precision(settings.device)) if stage in FAST else settings


def export_scenes(runs: Path, target: Path) -> list[Path]:
    """Write the newest averaged weights to the checkpoint `target` (fp16), and the rest of CLIP beside it, for scoring.

    Raises UserError where the U-Net has not been trained on scenes.
    """
    clip = load_model(pretrain_run.new_network("clip"), newest_folder("clip", runs)).half()
    vae = load_model(pretrain_run.new_network("vae"), newest_folder("vae", runs)).half()
    unet = load_model(pretrain_run.new_network("unet"), runs / "unet").half()
    about = {"training": json.dumps(history(runs))}
    save_checkpoint(target, clip.text_model, vae, unet, pretrain_run.SIZES, about)
    scorer = target.with_name(f"{target.stem}-clip.safetensors")
    rest = {key: tensor for key, tensor in clip.state_dict().items() if not key.startswith("text_model.")}
    sizes = {"vision": pretrain_run.VISION, "projection_dim": pretrain_run.PROJECTION_DIM}
    save_file(rest, scorer, about | {"sd_sizes": json.dumps(sizes)})
    return [target, scorer]


def history(runs: Path) -> dict:
    """Return for each stage its command, settings and last logged values, with the machine and the code revision."""
    made = {}
    for stage in STAGES:
        logged = read_log(runs / stage / "log.jsonl")
        if logged:  # a run of a few steps has no line yet
            command = f"python scripts/train_scenes.py {stage}"
            made[stage] = {"command": command, "batch": STAGES[stage].batch} | logged[-1]
    return made | {"machine": machine(), "revision": revision()}
