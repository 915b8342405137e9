"""Cached latents: the encoder's Gaussian of each view against diffusers, and samples from it."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from reference_models import peer_vae, randomize, relative_error

from sd.checkpoints.diffusers_keys import vae_to_diffusers
from sd.training.finetune import latent_cache
from sd.training.finetune.data.buckets import crop_to_size
from sd.training.finetune.data.image_folder import ImageFolder
from sd.training.finetune.latent_cache import LatentCache, crop_positions
from sd.utils.errors import UserError
from sd.utils.images import to_tensor
from sd.vae import LATENT_SCALE, AutoencoderKL

SIZES = dict(channels=32, channel_mult=(1, 1, 1, 1), num_res_blocks=1)
SUBJECTS = Path(__file__).resolve().parents[3] / ".." / "shared" / "data" / "subjects"


@pytest.fixture(scope="module")
def vae():
    return randomize(AutoencoderKL(**SIZES), seed=2)


@pytest.fixture
def photos(tmp_path):
    """Noise: a square of the size itself, a wide one and a tall one."""
    for name, (width, height) in {"a": (64, 64), "b": (240, 100), "c": (100, 240)}.items():
        pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    return ImageFolder(tmp_path, say=lambda *_: None)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@torch.no_grad()
def test_the_gaussians_are_those_of_diffusers(photos, vae):
    cache = LatentCache(photos, vae, 64, random_crop=False)
    peer = peer_vae(vae, vae_to_diffusers, **SIZES)
    image = to_tensor(crop_to_size(photos.images[1].open(), (88, 48)))
    assert cache.shapes == [(8, 8), (6, 11), (11, 6)]
    for view, flipped in zip(cache.gaussians[1], (image, image.flip(-1))):
        theirs = peer.encode(flipped).latent_dist
        # fp32 holds 7 digits; some twenty layers of sums in another order cost one of them.
        assert relative_error(view[0], theirs.mean[0] * LATENT_SCALE) < 1e-5
        assert relative_error(view[1], theirs.std[0] * LATENT_SCALE) < 1e-5


def test_samples_have_the_mean_and_deviation_of_the_gaussian(photos, vae):
    cache = LatentCache(photos, vae, 64, flip=False, random_crop=False)
    drawn = torch.stack(cache.sample([1] * 4000, generator()))  # (4000, 4, 6, 11)
    mean, deviation = cache.gaussians[1][0]
    # The mean of 4,000 draws is known to 1/63 of a deviation, the deviation to 1/89; five of each, for 264 places.
    assert ((drawn.mean(0) - mean).abs() / deviation).max() < 5 / 63
    assert (drawn.std(0) / deviation - 1).abs().max() < 5 / 89


def test_samples_cover_all_views_and_are_the_same_for_a_seed(photos, vae):
    cache = LatentCache(photos, vae, 64, crops=2)
    views = cache.gaussians[1]
    assert views.shape == (4, 2, 4, 6, 11)
    cache.gaussians[1] = torch.stack(
        [views[:, 0], torch.zeros_like(views[:, 1])], 1
    )  # no noise: the view is to be seen
    drawn = cache.sample(torch.ones(800).long(), generator(3))
    counts = [sum(torch.equal(one, view[0]) for one in drawn) for view in cache.gaussians[1]]
    assert sum(counts) == 800
    assert all(count == pytest.approx(200, abs=62) for count in counts)  # a deviation of 12.2; five of them
    again = cache.sample([1, 0, 2], generator(4))
    assert all(torch.equal(a, b) for a, b in zip(again, cache.sample(torch.tensor([1, 0, 2]), generator(4))))
    assert [one.shape for one in again] == [(4, 6, 11), (4, 8, 8), (4, 11, 6)]
    assert all(one.dtype == torch.float32 for one in again)


def test_the_second_half_of_the_views_are_mirror_images(photos, vae):
    plain = LatentCache(photos, vae, 64, flip=False, crops=2)
    both = LatentCache(photos, vae, 64, flip=True, crops=2)
    mirrored_folder = photos.images[1].path.parent / "mirrored"
    mirrored_folder.mkdir()
    photos.images[1].open().transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(mirrored_folder / "b.png")
    mirrored = LatentCache(ImageFolder(mirrored_folder, say=lambda *_: None), vae, 64, flip=False, random_crop=False)
    centre = LatentCache(photos, vae, 64, flip=True, random_crop=False)
    assert relative_error(both.gaussians[1][:2], plain.gaussians[1]) < 1e-5  # fp32, batches of another size
    # An image resized and then mirrored differs by one of 255 levels here and there; another crop differs by 0.7.
    assert relative_error(centre.gaussians[1][1], mirrored.gaussians[0][0]) < 1e-2


def test_crops_are_spread_over_the_image():
    drawn = torch.tensor([crop_positions((600, 100), (64, 64), 4, generator(seed)) for seed in range(200)])
    assert ((drawn * 4).floor() == torch.arange(4)).all()
    assert drawn.std(0).min() > 0.05  # uniform over a quarter: 0.072
    assert crop_positions((512, 512), (64, 64), 4, generator()) == [0.5]
    assert crop_positions((67, 64), (64, 64), 4, generator()) == [0.5]
    assert len(crop_positions((68, 64), (64, 64), 4, generator())) == 4


def test_a_seed_gives_its_crops(photos, vae):
    one, same, other = (LatentCache(photos, vae, 64, crops=1, seed=seed, flip=False) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(one.gaussians, same.gaussians))
    assert torch.equal(one.gaussians[0], other.gaussians[0])  # the square has nothing to spare
    assert not torch.equal(one.gaussians[1], other.gaussians[1])


def test_squares_only_and_half_the_memory(photos, vae):
    cache = LatentCache(photos, vae, 64, buckets=False, random_crop=False, dtype=torch.float16)
    whole = LatentCache(photos, vae, 64, buckets=False, random_crop=False)
    assert cache.shapes == [(8, 8)] * 3
    assert cache.gaussians[0].dtype == torch.float16
    assert relative_error(cache.gaussians[0], whole.gaussians[0]) < 2**-11  # half a place of fp16
    assert cache.sample([0], generator())[0].dtype == torch.float32


def test_small_images_are_enlarged_and_reported_once(photos, vae):
    said = []
    LatentCache(photos, vae, 64, random_crop=False, say=said.append)
    assert said == []
    cache = LatentCache(photos, vae, 128, random_crop=False, flip=False, say=said.append)
    assert said == ["1 of 3 images are smaller than 128 x 128 and are enlarged"]
    assert cache.shapes == [(16, 16), (12, 22), (22, 12)]


@pytest.mark.parametrize(("size", "buckets", "words"), [(68, False, "multiple of 8"), (520, True, "multiple of 64")])
def test_a_size_that_cannot_be(photos, vae, size, buckets, words):
    with pytest.raises(UserError, match=words):
        LatentCache(photos, vae, size, buckets=buckets)


def test_a_file_keeps_it_for_the_next_time(photos, vae, tmp_path, monkeypatch):
    file = tmp_path / "run" / "latents.pt"
    first = LatentCache(photos, vae, 64, file=file)
    assert [path.name for path in file.parent.iterdir()] == ["latents.pt"]
    runs = []
    encode = latent_cache.encode_gaussians
    monkeypatch.setattr(latent_cache, "encode_gaussians", lambda *args: runs.append(1) or encode(*args))
    second = LatentCache(photos, vae, 64, file=file)
    assert runs == []
    assert all(torch.equal(a, b) for a, b in zip(first.gaussians, second.gaussians))
    drawn = second.sample([0, 1, 2], generator())
    assert all(torch.equal(a, b) for a, b in zip(first.sample([0, 1, 2], generator()), drawn))
    LatentCache(photos, vae, 64, file=file, seed=1)
    assert len(runs) == 3
    photos.images[0].open().rotate(90).save(photos.images[0].path)
    os.utime(photos.images[0].path, (1, 1))
    LatentCache(photos, vae, 64, file=file, seed=1)
    assert len(runs) == 6
    LatentCache(photos, randomize(AutoencoderKL(**SIZES), seed=3), 64, file=file, seed=1)
    assert len(runs) == 9


@pytest.mark.parametrize("cause", [OSError(28, "No space left on device"), None])
def test_a_full_disk_costs_the_file_only(photos, vae, tmp_path, monkeypatch, cause):
    def write_half(contents, file):
        file.write(b"half")
        error = RuntimeError("PytorchStreamWriter failed writing file")
        error.__context__ = cause
        raise error

    monkeypatch.setattr(torch, "save", write_half)
    said = []
    file = tmp_path / "run" / "latents.pt"
    cache = LatentCache(photos, vae, 64, flip=False, random_crop=False, file=file, say=said.append)
    assert len(cache) == 3
    assert len(said) == 1
    assert f"{file} cannot be written" in said[0]
    assert list(file.parent.iterdir()) == []


@pytest.mark.skipif(not SUBJECTS.is_dir(), reason="needs real photographs")
def test_real_photographs(vae):
    folders = [ImageFolder(SUBJECTS / subject, say=lambda *_: None) for subject in ("backpack", "dog", "red_cartoon")]
    assert [len(photos) for photos in folders] == [6, 5, 4]
    assert not any(photos.skipped for photos in folders)
    dog = folders[1]
    for photo, latent in zip(dog.images, LatentCache(dog, vae, 64, crops=2).sample(range(5), generator())):
        assert latent.isfinite().all()
        assert (photo.size[0] > photo.size[1]) == (latent.shape[2] > latent.shape[1])
