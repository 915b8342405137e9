"""Images as latents, encoded once before training: the training loop does not run the VAE encoder."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

from sd.pipeline.latents import with_fp32_fallback
from sd.training.finetune.data.buckets import bucket_sizes, cover_scale, crop_to_size, nearest_bucket
from sd.training.finetune.data.image_folder import ImageFolder
from sd.utils.errors import UserError
from sd.utils.files import remove_orphans, replacing, write_torch
from sd.utils.images import check_size, to_tensor
from sd.vae import LATENT_SCALE, AutoencoderKL

PIXELS_AT_ONCE = 512 * 512  # through the VAE
PART_IMAGES, PART_SECONDS = 64, 10.0  # intermediate results are saved this often


class LatentCache:
    """For each image its views (crops, each also mirrored), and for each view the encoder's Gaussian.

    The cache holds the Gaussian's mean and standard deviation, not a sample, so that each step draws a new sample as
    LDM does. A view of 512 x 512 takes 128 kB in fp32 and 64 kB in fp16: 15 images with 4 crops and their mirror images
    15 MB, 30,000 images with 1 crop and its mirror image 3.9 GB in fp16.

    folder: the images. vae: the encoder, which gives device and precision.
    size: pixels; the side of the square, or of the square with as many pixels as each bucket.
    flip: whether to add mirror images. Turn it off for faces, text and other asymmetric subjects.
    random_crop: crop at `crops` positions, spread over the image and chosen with `seed`; else once, in the middle.
    buckets: use the nearest aspect ratio for each image (`sd.training.finetune.data.buckets`); else squares only.
    dtype: precision of the cached values.
    file: the file of the cache, which later runs read if all of these values are the same.
    say: called with a sentence for the user where images are enlarged or `file` cannot be written.

    shapes: (h, w) of each image's latents. Raises UserError where `size` is not a multiple of the buckets' step.
    """

    def __init__(
        self,
        folder: ImageFolder,
        vae: AutoencoderKL,
        size: int,
        flip: bool = True,
        random_crop: bool = True,
        crops: int = 4,
        buckets: bool = True,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        file: Path | None = None,
        say=print,
    ):
        check_size(size, size, multiple=vae.downsample)
        sizes = bucket_sizes(size) if buckets else [(size, size)]
        fits = [nearest_bucket(*image.size, sizes) for image in folder.images]
        enlarged = sum(cover_scale(image.size, fit) > 1 for image, fit in zip(folder.images, fits))
        if enlarged:
            say(f"{enlarged} of {len(folder)} images are smaller than {size} x {size} and are enlarged")

        generator = torch.Generator().manual_seed(seed)
        self.folder, self.fits = folder, fits
        self.positions = [
            crop_positions(image.size, fit, crops, generator) if random_crop else [0.5]
            for image, fit in zip(folder.images, fits)
        ]

        def encode(i: int) -> Tensor:
            image = folder.images[i].open()
            views = torch.cat(
                [to_tensor(crop_to_size(image, fits[i], position)) for position in self.positions[i]]
            )  # (V, 3, H, W)
            return encode_gaussians(vae, torch.cat([views, views.flip(-1)]) if flip else views).to(dtype)

        origin = json.dumps([flip, random_crop, crops, seed, str(dtype), fits, fingerprint(folder, vae)])
        self.gaussians = None if file is None else read_cache(file, origin)  # (V, 2, 4, h, w) for each image
        if self.gaussians is None:
            parts = None if file is None else EncodedParts(file.with_suffix(".parts"), origin)
            self.gaussians = encode_all(encode, len(folder), parts, say)
            if parts is not None and not write_cache(file, origin, self.gaussians):
                say(f"{file} cannot be written: the images will be encoded again the next time")
            elif parts is not None:
                parts.remove()

    def __len__(self) -> int:
        return len(self.gaussians)

    @property
    def shapes(self) -> list[tuple[int, int]]:
        return [(views.shape[-2], views.shape[-1]) for views in self.gaussians]

    def sample(self, indices: Tensor | list[int], generator: torch.Generator) -> list[Tensor]:
        """Return a latent for each image, (4, h, w), scaled, fp32 on the CPU: a sample from the Gaussian of one of its
        views.
        """
        return [latent for latent, _ in self.sample_views(indices, generator)]

    def sample_views(self, indices: Tensor | list[int], generator: torch.Generator) -> list[tuple[Tensor, int]]:
        """Return what `sample` does, each with the number of the view that it shows."""
        found = []
        for i in map(int, indices):
            views = self.gaussians[i]
            number = int(torch.randint(len(views), (), generator=generator))
            mean, deviation = views[number].float()  # (4, h, w) each
            found.append((mean + deviation * torch.randn(mean.shape, generator=generator), number))
        return found

    def view(self, i: int, number: int) -> Image.Image:
        """Return the pixels of one view of image i, read from its file: the crops, then their mirror images."""
        crops = len(self.positions[i])
        image = crop_to_size(self.folder.images[i].open(), self.fits[i], self.positions[i][number % crops])
        return image if number < crops else ImageOps.mirror(image)


def crop_positions(
    image: tuple[int, int], size: tuple[int, int], crops: int, generator: torch.Generator
) -> list[float]:
    """Return positions of crops along the longer side, 0 to 1: one from each of `crops` equal parts.

    An image with less than half a latent pixel to spare is cropped in the middle only, because its crops would all be
    alike.
    """
    scale = cover_scale(image, size)
    spare = max(side * scale - target for side, target in zip(image, size))  # in pixels of the crop
    if spare < 4:
        return [0.5]
    return ((torch.arange(crops) + torch.rand(crops, generator=generator)) / crops).tolist()


@torch.no_grad()
def encode_gaussians(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Encode (V, 3, H, W) in [-1, 1] to (V, 2, 4, h, w): scaled means and standard deviations, fp32 on the CPU."""
    device = vae.quant_conv.weight.device
    parts = []

    def encode(part: Tensor) -> Tensor:
        return with_fp32_fallback(vae, lambda dtype: torch.stack(vae.encode(part.to(device, dtype)), 1))

    for part in images.split(max(1, PIXELS_AT_ONCE // images[0, 0].numel())):
        mean, logvar = encode(part).unbind(1)  # (v, 4, h, w) each
        parts.append(torch.stack([mean, torch.exp(0.5 * logvar)], 1).cpu() * LATENT_SCALE)
    return torch.cat(parts)


def fingerprint(folder: ImageFolder, vae: AutoencoderKL) -> list:
    """Return values that change when an image or the VAE changes."""
    files = [(image.path.name, image.path.stat().st_mtime_ns, image.path.stat().st_size) for image in folder.images]
    return [files, str(vae.quant_conv.weight.dtype), vae.quant_conv.weight.flatten().tolist()]


class EncodedParts:
    """Intermediate results of encoding, in numbered files of a folder, in the order of the images.

    Each file is complete or absent, so that a kill at any moment costs the images of the last few seconds.
    """

    def __init__(self, folder: Path, origin: str):
        self.folder, self.origin = folder, origin
        self.count, self.saved, self.saved_at = 0, 0, time.monotonic()  # files; images in them; time of the last one
        self.is_writable = True

    def read(self) -> list[Tensor]:
        """Return the results of an earlier run of the same origin, in order."""
        remove_orphans(self.folder)
        done: list[Tensor] = []
        while (found := read_cache(self.file(), self.origin)) is not None:
            done += found
            self.count += 1
        self.saved = len(done)
        return done

    def file(self) -> Path:
        return self.folder / f"{self.count:06}.pt"

    def save_if_due(self, done: list[Tensor]) -> None:
        if len(done) - self.saved >= PART_IMAGES or time.monotonic() - self.saved_at > PART_SECONDS:
            self.save_pending(done)

    def save_pending(self, done: list[Tensor]) -> None:
        """Write the results that are not in a file yet; a full disk only ends the saving of intermediate results."""
        if self.is_writable and len(done) > self.saved:
            self.is_writable = write_cache(self.file(), self.origin, done[self.saved :])
            self.count, self.saved, self.saved_at = self.count + 1, len(done), time.monotonic()

    def remove(self) -> None:
        """Delete the parts, once the whole cache is in one file."""
        shutil.rmtree(self.folder, ignore_errors=True)


def encode_all(encode: Callable[[int], Tensor], count: int, parts: EncodedParts | None, say: Callable) -> list[Tensor]:
    """Return `encode` of 0 … count - 1, resuming after the results of an interrupted run, and save parts."""
    done = [] if parts is None else parts.read()
    if done:
        say(f"{len(done)} of {count} images are encoded already, by an earlier run that was stopped")
    with tqdm(total=count, initial=len(done), desc="encoding", unit="image", leave=False) as bar:
        try:
            for i in range(len(done), count):
                done.append(encode(i))
                bar.update()
                if parts is not None:
                    parts.save_if_due(done)
        finally:
            if parts is not None and len(done) < count:
                parts.save_pending(done)
    return done


def write_cache(file: Path, origin: str, gaussians: list[Tensor]) -> bool:
    """Write the file atomically and return whether that was possible; otherwise the old file remains."""
    try:
        with replacing(file) as part:
            write_torch({"origin": origin, "gaussians": gaussians}, part)
    except (UserError, RuntimeError):  # PyTorch's writer raises its own errors besides those of the disk
        return False
    return True


def read_cache(file: Path, origin: str) -> list[Tensor] | None:
    """Return the contents of a cache file, memory-mapped; None where there is none of this origin."""
    try:
        saved = torch.load(file, mmap=True, weights_only=True)
        return saved["gaussians"] if saved["origin"] == origin else None
    except Exception:  # missing or damaged; PyTorch raises nearly any type on a damaged file
        return None
