import copy
import os
import runpy
import sys
from collections import Counter, defaultdict
from pathlib import Path

import pytest
import torch
from hypothesis import settings as hypothesis_settings
from PIL import Image
from reference_models import TINY, randomize
from small_models import save_control, save_image_encoder, save_ip_adapter, save_t2i_adapter

from sd.checkpoints.discovery import Models
from sd.clip import CLIPTextModel
from sd.pipeline.stable_diffusion import StableDiffusion
from sd.tokenizer import Tokenizer
from sd.unet import UNetModel
from sd.vae import AutoencoderKL

# The same examples in every run, so that a commit passes or fails for its own sake; FUZZ_EXAMPLES asks for others.
hypothesis_settings.register_profile("project", derandomize="FUZZ_EXAMPLES" not in os.environ, deadline=None)
hypothesis_settings.load_profile("project")

ROOT = Path(__file__).resolve().parents[1]
UNET = TINY["unet"]
VAE = dict(channels=32, channel_mult=(1, 1, 1, 1), num_res_blocks=1)
CLIP = dict(width=64, layers=2, heads=4)


def pytest_terminal_summary(terminalreporter):
    """At the very end: how many tests were skipped, why, and which."""
    skipped = defaultdict(Counter)
    for report in terminalreporter.stats.get("skipped", []):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        skipped[reason.removeprefix("Skipped: ")][report.nodeid.partition("[")[0]] += 1
    if not skipped:
        return
    terminalreporter.section(f"{sum(tests.total() for tests in skipped.values())} skipped")
    for reason, tests in sorted(skipped.items(), key=lambda item: -item[1].total()):
        terminalreporter.line(f"{tests.total():4} {reason}")
        for name, count in tests.items():
            terminalreporter.line(f"       {name}{f', {count} times' if count > 1 else ''}")


def make_pipe(in_channels: int = 4) -> StableDiffusion:
    """Random weights, an eighth of the size each way as in v1-5, made for 64x64."""
    sizes = {"unet": UNET | {"in_channels": in_channels}, "vae": VAE, "clip": CLIP, "image_size": 64}
    clip = randomize(CLIPTextModel(**CLIP), seed=1)
    vae = randomize(AutoencoderKL(**VAE), seed=2)
    unet = randomize(UNetModel(**sizes["unet"]), seed=3)
    return StableDiffusion(Tokenizer(), clip, vae, unet, sizes)


@pytest.fixture
def one_thread():
    """For tests that fork: see `processes`."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def made_once():
    return {4: make_pipe(), 9: make_pipe(in_channels=9)}


def fresh_copy(pipe: StableDiffusion) -> StableDiffusion:
    """A test may spoil its networks, but not the tokenizer, which is slow to make."""
    networks = (copy.deepcopy(network) for network in (pipe.clip, pipe.vae, pipe.unet))
    return StableDiffusion(pipe.tokenizer, *networks, pipe.sizes)


@pytest.fixture
def pipe(made_once):
    return fresh_copy(made_once[4])


@pytest.fixture
def controlled(pipe, tmp_path):
    """The same with models in weights/controlnet: the ControlNets one and two, adapter (a T2I-Adapter), and face (an
    IP-Adapter) with its image encoder.
    """
    pipe.adapters.models = Models(tmp_path, tmp_path / "loras", tmp_path / "embeddings")
    folder = tmp_path / "controlnet"
    save_control(folder / "one.safetensors", 11)
    save_control(folder / "two.safetensors", 12)
    save_t2i_adapter(folder / "adapter.safetensors")
    save_ip_adapter(folder / "face.safetensors")
    save_image_encoder(folder / "image_encoder")
    return pipe


@pytest.fixture
def inpainting_pipe(made_once):
    return fresh_copy(made_once[9])


@pytest.fixture
def photo():
    """A PIL image, 64x64, smooth and not grey."""
    generator = torch.Generator().manual_seed(5)
    small = torch.randint(0, 256, (4, 4, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(small.numpy()).resize((64, 64), Image.Resampling.BICUBIC)


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """run(script, *flags) -> (exit code, stdout, stderr), in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(script: str, *flags: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [script, *map(str, flags)])
        code = 0
        try:
            runpy.run_path(str(ROOT / "scripts" / script), run_name="__main__")
        except SystemExit as stop:
            code = stop.code or 0
        return code, *capsys.readouterr()

    return run
