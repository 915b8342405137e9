"""Upscaling by name: a model against its network on the whole image, sizes, passes, and names."""

import os

import numpy as np
import pytest
import torch
from PIL import Image
from reference_models import randomize

from sd.checkpoints.discovery import Models
from sd.upscalers import upscale as module
from sd.upscalers.rrdbnet import RRDBNet
from sd.upscalers.upscale import count_tiles, find_upscaler, upscale
from sd.utils.errors import UserError


def put(folder, name="sharp", **more):
    path = folder / "upscalers" / f"{name}.pth"
    path.parent.mkdir(exist_ok=True)
    network = randomize(RRDBNet(8, 1, 4, **more), seed=5)
    torch.save(network.state_dict(), path)
    return path, network


@pytest.fixture
def models(tmp_path):
    return Models(tmp_path, tmp_path / "loras", tmp_path / "embeddings")


@pytest.fixture
def photo():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 28, 3), np.uint8))


@torch.no_grad()
def by_network(network, image):
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
    made = (network(pixels)[0].clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(made.permute(1, 2, 0).numpy())


def same(a, b):
    return a.size == b.size and a.tobytes() == b.tobytes()


def test_a_model_is_its_network_and_then_lanczos(tmp_path, photo):
    path, network = put(tmp_path)
    whole = by_network(network, photo)
    assert whole.size == (112, 80)
    assert same(upscale(photo, path, 112, 80), whole)
    smaller = upscale(photo, path, 56, 40)
    assert same(smaller, whole.resize((56, 40), Image.Resampling.LANCZOS))
    assert same(upscale(photo, path, 28, 20), whole.resize((28, 20), Image.Resampling.LANCZOS))  # as the webui at 1


def test_a_replaced_model_is_read_again(tmp_path, photo):
    """Even one with the old file's time, as an archive's copy keeps it."""
    path, network = put(tmp_path)
    before = path.stat().st_mtime_ns
    assert same(upscale(photo, path, 112, 80), by_network(network, photo))
    other = randomize(RRDBNet(8, 1, 4), seed=6)
    torch.save(other.state_dict(), tmp_path / "other.pth")
    os.utime(tmp_path / "other.pth", ns=(before, before))
    os.replace(tmp_path / "other.pth", path)
    assert same(upscale(photo, path, 112, 80), by_network(other, photo))


def test_a_model_runs_again_where_it_has_not_reached_the_size(tmp_path, photo):
    path, network = put(tmp_path, doublings=1)
    twice = by_network(network, by_network(network, photo))
    assert same(upscale(photo, path, 112, 80), twice)
    assert same(upscale(photo, path, 57, 40), twice.resize((57, 40), Image.Resampling.LANCZOS))
    assert same(upscale(photo, path, 14, 10), photo.resize((14, 10), Image.Resampling.LANCZOS))  # no model to shrink


def test_tiles_are_counted_as_they_are_computed(tmp_path, photo, monkeypatch):
    monkeypatch.setattr(module, "TILE", 16)
    path, _ = put(tmp_path, doublings=1)
    seen = []
    upscale(photo, path, 100, 80, on_tile=lambda: seen.append(1))
    assert len(seen) == count_tiles(path, photo.size, (100, 80)) == 2 * 2 + 4 * 3
    assert count_tiles(Image.Resampling.LANCZOS, photo.size, (100, 80)) == 0


def test_an_exception_of_a_tile_ends_the_call(tmp_path, photo):
    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        upscale(photo, put(tmp_path)[0], 112, 80, on_tile=stop)


def test_what_a_model_makes_is_bounded(tmp_path, photo, monkeypatch):
    monkeypatch.setattr(module, "MAX_PIXELS", 112 * 80 - 1)
    with pytest.raises(UserError, match="would make 112x80 pixels of 28x20: give a smaller image"):
        upscale(photo, put(tmp_path)[0], 56, 40)


def test_names(tmp_path, models):
    path, _ = put(tmp_path, "RealESRGAN_x4plus")
    assert find_upscaler("lanczos", models) is find_upscaler("Lanczos", models) is Image.Resampling.LANCZOS
    assert find_upscaler("realesrgan_x4plus", models) == find_upscaler("R-ESRGAN 4x+", models) == path
    assert find_upscaler(str(path), models, by_path=True) == path
    expected = "unknown upscaler '%s'; choose from None, Lanczos, Nearest, RealESRGAN_x4plus[.]"
    for name in ("blurry", "R-ESRGAN 2x+", "../secret"):
        with pytest.raises(UserError, match=expected % name.replace("+", "[+]")):
            find_upscaler(name, models, ["None"])
    with pytest.raises(UserError, match="unknown upscaler"):
        find_upscaler(str(path), models)  # a name over a network is no path
    with pytest.raises(UserError, match="file not found: "):
        find_upscaler("nowhere/x.pth", models, by_path=True)
