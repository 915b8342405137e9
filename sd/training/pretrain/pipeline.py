"""The parts of the bundled model in the order in which they are trained on scenes, with their settings."""

from dataclasses import replace
from pathlib import Path

from sd.training import scratch
from sd.training.bundle import unpack
from sd.training.loop import Settings, is_kept, kept
from sd.training.pretrain.cutouts import Cutouts
from sd.training.pretrain.scene_vae import train_scene_vae
from sd.training.pretrain.stream import SceneStream

# fp32: on a processor without bf16 instructions autocast to bf16 is many times slower.
CPU = dict(precision="fp32", save_minutes=6.0)
STAGES = {
    "vae": Settings(steps=900, batch=8, lr=3e-4, warmup=20, ema=0.99, **CPU),
}


def start_from_shipped(weights: Path, runs: Path) -> None:
    """The shipped weights in `runs/shipped/{clip,vae,unet}`, unless they are there already."""
    if not is_kept(runs / "shipped" / "unet"):
        unpack(weights, runs / "shipped")


def run_stage(stage: str, runs: Path, data: Path, settings: Settings) -> None:
    """Train one of STAGES in `runs/<stage>`, or go on with it."""
    stream = SceneStream(Cutouts(data))
    if stage == "vae":
        vae = kept(scratch.new("vae"), runs / "shipped" / "vae").requires_grad_(True)
        train_scene_vae(vae, runs / "vae", stream, settings)


def stage_settings(stage: str, **given) -> Settings:
    """The stage's settings with those that are given in their place."""
    return replace(STAGES[stage], **given)
