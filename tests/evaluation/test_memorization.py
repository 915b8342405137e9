"""Copies are told from other images of the same thing, on photographs and drawings where they are at hand."""

from pathlib import Path

import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from sd.evaluation.memorization import COPY_THRESHOLD, pixel_similarity
from sd.utils.images import from_tensor, open_image, to_rgb, to_tensor

SUBJECTS = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "subjects"


def scene(seed: int) -> Image.Image:
    """Soft blots of colour, 96 x 96."""
    blots = torch.randint(0, 256, (6, 6, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Image.fromarray(blots.numpy()).resize((96, 96), Image.Resampling.BICUBIC)


def changed(image: Image.Image) -> dict[str, Image.Image]:
    """What a model that repeats an image makes of it."""
    width, height = image.size
    pixels = to_tensor(image)
    noise = 0.2 * torch.randn(pixels.shape, generator=torch.Generator().manual_seed(0))
    return {
        "itself": image,
        "blurred": image.resize((width // 8, height // 8)).resize(image.size, Image.Resampling.BICUBIC),
        "noisy": from_tensor(pixels + noise)[0],
        "brighter": ImageEnhance.Brightness(image).enhance(1.3),
        "paler": ImageEnhance.Color(image).enhance(0.75),
        "mirrored": ImageOps.mirror(image),
        "moved": image.crop((int(0.06 * width), 0, width, height)).resize(image.size),
        "larger": image.resize((2 * width, 2 * height)),
    }


def square(path: Path) -> Image.Image:
    return ImageOps.fit(to_rgb(open_image(path)), (256, 256))


def test_a_changed_image_is_nearest_to_its_source_and_a_copy():
    scenes = [scene(seed) for seed in range(5)]
    for i, image in enumerate(scenes):
        closeness = pixel_similarity(list(changed(image).values()), scenes)
        assert (closeness.argmax(dim=1) == i).all()
        assert (closeness[:, i] >= COPY_THRESHOLD).all()
        assert (closeness[:, torch.arange(5) != i] < COPY_THRESHOLD).all()


def test_a_correlation_written_out():
    """The middle is one of the places: the closeness is at least the plain correlation of both middles."""
    one, other = scene(1), scene(2)
    cells = [to_tensor(image.resize((32, 32), Image.Resampling.LANCZOS))[0, :, 4:28, 4:28] for image in (one, other)]
    by_hand = torch.corrcoef(torch.stack([cell.flatten() for cell in cells]))[0, 1]
    found = pixel_similarity([one], [other])
    assert found.shape == (1, 1)
    assert by_hand <= found.item() + 1e-5  # fp32, sums in another order
    assert pixel_similarity([one], [one]).item() == pytest.approx(1, abs=1e-5)


def test_images_of_one_color_are_copies_of_nothing():
    white = Image.new("RGB", (64, 64), "white")
    assert pixel_similarity([white], [white, scene(0)]).abs().max() < 1e-3


@pytest.mark.skipif(not SUBJECTS.is_dir(), reason="the photographs are not here")
@pytest.mark.parametrize(("subject", "most"), [("dog", 0.85), ("backpack", 0.85), ("red_cartoon", COPY_THRESHOLD)])
def test_other_images_of_a_subject_are_no_copies(subject, most):
    photos = [square(path) for path in sorted((SUBJECTS / subject).glob("*.jpg"))]
    closeness = pixel_similarity(photos, photos).fill_diagonal_(0)
    assert closeness.max() < most  # as the file says
    assert (pixel_similarity(list(changed(photos[0]).values()), photos[:1]) >= COPY_THRESHOLD).all()
