"""Pictures as latents, encoded once before training: the autoencoder is not run in the loop."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from sd.pipeline.latents import with_fp32_fallback
from sd.training.finetune.data.buckets import bucket_sizes, cover_scale, cut, nearest
from sd.training.finetune.data.image_folder import Photos
from sd.utils.errors import UserError
from sd.utils.files import remove_orphans, replacing, write_torch
from sd.utils.images import check_size, to_tensor
from sd.vae import LATENT_SCALE, AutoencoderKL

PIXELS_AT_ONCE = 512 * 512  # through the VAE
PART_IMAGES, PART_SECONDS = 64, 10.0  # so often what is encoded is kept


class LatentCache:
    """For each picture its views (crops, each also mirrored), and for each view the encoder's Gaussian.

    What is kept is the Gaussian's mean and deviation, not a draw, so that each step draws from it as LDM does.
    A view of 512 x 512 takes 128 kB in fp32 and 64 kB in fp16: 15 pictures with 4 crops and their mirror images 15 MB,
    30,000 pictures with 1 crop and its mirror image 3.9 GB in fp16.

    photos: `Photos`. vae: gives the device and the precision of the encoding.
    size: pixels; the side of the square, or of the square with as many pixels as each bucket has.
    flip: whether there are mirror images too. Leave it out for faces, text and other things that have a left and right.
    random_crop: cut at `crops` places, spread over the picture and drawn with `seed`; else once, in the middle.
    buckets: the nearest shape for each picture (`sd.training.finetune.data.buckets`); else squares only.
    dtype: of what is kept.
    file: where it is kept for the next time, which then takes it from there if all of this is the same.
    say: called with a sentence for the user where pictures had to be enlarged or `file` cannot be written.

    shapes: (h, w) of each picture's latents. Raises UserError where `size` is not a multiple of its buckets' step.
    """

    def __init__(
        self,
        photos: Photos,
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
        fits = [nearest(*photo.size, sizes) for photo in photos.photos]
        enlarged = sum(cover_scale(photo.size, fit) > 1 for photo, fit in zip(photos.photos, fits))
        if enlarged:
            say(f"{enlarged} of {len(photos)} pictures are too small for {size} x {size} and are enlarged")

        generator = torch.Generator().manual_seed(seed)
        places = [
            crop_places(photo.size, fit, crops, generator) if random_crop else [0.5]
            for photo, fit in zip(photos.photos, fits)
        ]

        def encode(i: int) -> Tensor:
            image = photos.photos[i].open()
            views = torch.cat([to_tensor(cut(image, fits[i], place)) for place in places[i]])  # (V, 3, H, W)
            return gaussians(vae, torch.cat([views, views.flip(-1)]) if flip else views).to(dtype)

        origin = json.dumps([flip, random_crop, crops, seed, str(dtype), fits, fingerprint(photos, vae)])
        self.gaussians = None if file is None else kept(file, origin)  # (V, 2, 4, h, w) for each picture
        if self.gaussians is None:
            parts = None if file is None else EncodedParts(file.with_suffix(".parts"), origin)
            self.gaussians = encode_all(encode, len(photos), parts, say)
            if parts is not None and not keep(file, origin, self.gaussians):
                say(f"{file} cannot be written: the pictures will be encoded anew the next time")
            elif parts is not None:
                parts.remove()

    def __len__(self) -> int:
        return len(self.gaussians)

    @property
    def shapes(self) -> list[tuple[int, int]]:
        return [tuple(views.shape[-2:]) for views in self.gaussians]

    def draw(self, indices: Tensor | list[int], generator: torch.Generator) -> list[Tensor]:
        """A latent for each picture, (4, h, w), scaled, fp32 on the CPU: a draw from one of its views' Gaussians."""
        drawn = []
        for i in map(int, indices):
            views = self.gaussians[i]
            mean, deviation = views[torch.randint(len(views), (), generator=generator)].float()  # (4, h, w) each
            drawn.append(mean + deviation * torch.randn(mean.shape, generator=generator))
        return drawn


def crop_places(image: tuple[int, int], size: tuple[int, int], crops: int, generator: torch.Generator) -> list[float]:
    """Where along its longer side a picture is cut, 0 to 1: one place from each of `crops` equal parts.

    A picture with less than half a latent place to spare is cut in the middle only, for its crops would all be alike.
    """
    scale = cover_scale(image, size)
    spare = max(side * scale - target for side, target in zip(image, size))  # in pixels of the crop
    if spare < 4:
        return [0.5]
    return ((torch.arange(crops) + torch.rand(crops, generator=generator)) / crops).tolist()


@torch.no_grad()
def gaussians(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """images: (V, 3, H, W) in [-1, 1]. Returns (V, 2, 4, h, w), scaled means and deviations, in fp32 on the CPU."""
    device = vae.quant_conv.weight.device
    parts = []
    for part in images.split(max(1, PIXELS_AT_ONCE // images[0, 0].numel())):
        moments = with_fp32_fallback(vae, lambda dtype, part=part: torch.stack(vae.encode(part.to(device, dtype)), 1))
        mean, logvar = moments.unbind(1)  # (v, 4, h, w) each
        parts.append(torch.stack([mean, torch.exp(0.5 * logvar)], 1).cpu() * LATENT_SCALE)
    return torch.cat(parts)


def fingerprint(photos: Photos, vae: AutoencoderKL) -> list:
    """What changes when a picture or the autoencoder is another one."""
    files = [(photo.path.name, photo.path.stat().st_mtime_ns, photo.path.stat().st_size) for photo in photos.photos]
    return [files, str(vae.quant_conv.weight.dtype), vae.quant_conv.weight.flatten().tolist()]


class EncodedParts:
    """What is encoded so far, in numbered files of a folder: the first holds the first images, the next the following.

    Each is whole or not there, so that a kill at any moment costs the images of the last few seconds.
    """

    def __init__(self, folder: Path, origin: str):
        self.folder, self.origin = folder, origin
        self.count, self.kept, self.when = 0, 0, time.monotonic()  # files; images in them; of the last one
        self.works = True

    def read(self) -> list[Tensor]:
        """Those of an earlier run of the same origin, in order."""
        remove_orphans(self.folder)
        done: list[Tensor] = []
        while (found := kept(self.file(), self.origin)) is not None:
            done += found
            self.count += 1
        self.kept = len(done)
        return done

    def file(self) -> Path:
        return self.folder / f"{self.count:06}.pt"

    def keep_now_and_then(self, done: list[Tensor]) -> None:
        if len(done) - self.kept >= PART_IMAGES or time.monotonic() - self.when > PART_SECONDS:
            self.keep(done)

    def keep(self, done: list[Tensor]) -> None:
        """Writes those that are not in a file yet; a disk that is full ends that, and nothing else."""
        if self.works and len(done) > self.kept:
            self.works = keep(self.file(), self.origin, done[self.kept :])
            self.count, self.kept, self.when = self.count + 1, len(done), time.monotonic()

    def remove(self) -> None:
        """Once all is in one file."""
        shutil.rmtree(self.folder, ignore_errors=True)


def encode_all(encode: Callable[[int], Tensor], count: int, parts: EncodedParts | None, say: Callable) -> list[Tensor]:
    """`encode` of 0 … count - 1, going on behind what an interrupted run had encoded, and kept on the way."""
    done = [] if parts is None else parts.read()
    if done:
        say(f"{len(done)} of {count} images are encoded already, in an earlier run that was stopped")
    with tqdm(total=count, initial=len(done), desc="encoding", unit="picture", leave=False) as bar:
        try:
            for i in range(len(done), count):
                done.append(encode(i))
                bar.update()
                if parts is not None:
                    parts.keep_now_and_then(done)
        finally:
            if parts is not None and len(done) < count:
                parts.keep(done)
    return done


def keep(file: Path, origin: str, gaussians: list[Tensor]) -> bool:
    """Whether it could be written: the file is there whole or, as on a full disk, as it was before."""
    try:
        with replacing(file) as part:
            write_torch({"origin": origin, "gaussians": gaussians}, part)
    except (UserError, RuntimeError):  # torch's writer has errors of its own beside the disk's
        return False
    return True


def kept(file: Path, origin: str) -> list[Tensor] | None:
    """What `keep` wrote, left in the file until it is drawn from; None where there is none of this origin."""
    try:
        saved = torch.load(file, mmap=True, weights_only=True)
        return saved["gaussians"] if saved["origin"] == origin else None
    except Exception:  # there is none, or a damaged one, on which torch raises nearly anything
        return None
