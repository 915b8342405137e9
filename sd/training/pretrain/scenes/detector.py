"""A small detector of names, positions and colors, which scores generated scenes.

It trains on rendered scenes only, held-out combinations included, and never on generated images. Objects are points:
Zhou, Wang and Krähenbühl 2019, "Objects as Points", with one heat map for all names and a classifier at its peaks.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sd.training.loop import TrainConfig, exists, load_model, save_model, train
from sd.training.pretrain.scenes.colors import COLORS
from sd.training.pretrain.scenes.cutouts import Cutouts
from sd.training.pretrain.scenes.grammar import Grammar, Scene
from sd.training.pretrain.scenes.render import render_batch
from sd.training.pretrain.scenes.stream import EXAMPLES
from sd.training.pretrain.scenes.vocabulary import COMMON_NOUNS, scene_names
from sd.utils.errors import UserError

STRIDE = 8  # pixels of a cell of the heat map
PEAK = 0.35  # the minimum probability of a center
MAX_DETECTIONS = 8  # in one image
SPREAD = 0.8  # cells, of the heat map's Gaussian around a center


@dataclass(frozen=True)
class Detection:
    """One detected object. x, y: its center in pixels."""

    name: str
    color: str | None
    x: float
    y: float
    score: float

    @property
    def center(self) -> tuple[float, float]:
        return self.x, self.y


class Residual(nn.Module):
    """Two 3 x 3 convolutions with a residual connection, the second one dilated."""

    def __init__(self, width: int, dilation: int = 1):
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(8, width), nn.GroupNorm(8, width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))


class Detector(nn.Module):
    """Convolutions down to an eighth of the size; each cell predicts whether it is a center, its name and its color."""

    def __init__(self, width: int = 128, names: tuple[str, ...] | None = None):
        super().__init__()
        self.names, self.colors = names or tuple(scene_names()), (None, *COLORS)
        self.trunk = nn.Sequential(
            nn.Conv2d(3, width // 4, 4, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(width // 4, width // 2, 4, stride=2, padding=1),
            Residual(width // 2),
            nn.Conv2d(width // 2, width, 4, stride=2, padding=1),
            Residual(width),
            Residual(width, dilation=2),
            nn.GroupNorm(8, width),
            nn.SiLU(),
        )
        self.heat = nn.Conv2d(width, 1, 1)
        self.name = nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, len(self.names)))
        self.color = nn.Linear(width, len(self.colors))
        nn.init.constant_(self.heat.bias, -4.0)  # few cells are centers

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """images: (B, 3, H, W) in [-1, 1]. Returns the logits of centers (B, h, w) and features (B, h, w, width)."""
        features = self.trunk(images)
        return self.heat(features)[:, 0], features.movedim(1, -1)

    @torch.no_grad()
    def detect(self, images: Tensor, batch: int = 16) -> list[list[Detection]]:
        """Return the objects in each image, those with the highest score first."""
        found = []
        for part in images.split(batch):
            heat, features = self(part.to(self.heat.weight.device))
            probability = heat.float().sigmoid()
            peaks = (F.max_pool2d(probability[:, None], 3, 1, 1)[:, 0] == probability) & (probability > PEAK)
            found += [self.at_peaks(*each) for each in zip(probability, peaks, features)]
        return found

    def at_peaks(self, probability: Tensor, peaks: Tensor, features: Tensor) -> list[Detection]:
        """Return the objects at the peaks of one image. probability, peaks: (h, w). features: (h, w, width)."""
        cells = peaks.nonzero()
        names = self.name(features[peaks]).argmax(dim=1).tolist() if len(cells) else []
        colors = self.color(features[peaks]).argmax(dim=1).tolist() if len(cells) else []
        scores = probability[peaks].tolist()
        detections = [
            Detection(self.names[name], self.colors[color], STRIDE * (x + 0.5), STRIDE * (y + 0.5), score)
            for (y, x), name, color, score in zip(cells.tolist(), names, colors, scores)
        ]
        return sorted(detections, key=lambda detection: -detection.score)[:MAX_DETECTIONS]


def targets(scenes: list[Scene], detector: Detector, cutouts: Cutouts, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the heat map (B, side, side), cells (N, 3) as (image, y, x), and labels (N, 2) as (name, color), both
    long.
    """
    heat, cells, labels = torch.zeros(len(scenes), side, side), [], []
    row = torch.arange(side).float()
    for k, scene in enumerate(scenes):
        for placed in scene.objects:
            x, y = (min(side - 1, int(position // STRIDE)) for position in placed.center)
            bump = torch.exp(-((row - x).square()[None] + (row - y).square()[:, None]) / (2 * SPREAD**2))
            heat[k] = torch.maximum(heat[k], bump)
            color = placed.color or cutouts[placed.name, placed.style].natural
            cells.append((k, y, x))
            labels.append((detector.names.index(placed.name), detector.colors.index(color)))
    return heat, torch.tensor(cells), torch.tensor(labels)


def detection_loss(detector: Detector, images: Tensor, heat: Tensor, cells: Tensor, labels: Tensor) -> Tensor:
    """Return the focal loss of centers (Zhou et al. 2019, equation 1) plus cross-entropy of names and colors there."""
    logits, features = detector(images)
    p, log_p, log_q = logits.float().sigmoid(), F.logsigmoid(logits.float()), F.logsigmoid(-logits.float())
    at_center, elsewhere = (1 - p) ** 2 * log_p, (1 - heat) ** 4 * p**2 * log_q
    focal = -torch.where(heat == 1, at_center, elsewhere).sum() / max(1, len(cells))
    at = features[cells[:, 0], cells[:, 1], cells[:, 2]].float()
    names = F.cross_entropy(detector.name(at), labels[:, 0])
    return focal + names + 0.5 * F.cross_entropy(detector.color(at), labels[:, 1])


def degraded(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return the images, half of them a little blurred and noisy, like the output of a decoder."""
    small = F.interpolate(images, scale_factor=0.6, mode="bilinear", antialias=True)
    blurred = F.interpolate(small, size=images.shape[-2:], mode="bilinear")
    share, chosen = torch.rand(2, len(images), 1, 1, 1, generator=generator)
    share = share * (chosen < 0.5)
    noise = 0.06 * torch.randn(images.shape, generator=generator)
    return torch.lerp(images, blurred, share) + share * noise


def detector_cutouts(data: Path) -> Cutouts:
    """Return the cut-outs for the detector: held-out (name, style) pairs too."""
    return Cutouts(data, ("train", "pair"))


def train_detector(detector: Detector, run: Path, cutouts: Cutouts, settings: TrainConfig) -> Detector:
    """Train on scenes of any combination, rendered on demand; half of them have common nouns only."""
    grammars = Grammar(cutouts, held_out=None), Grammar(cutouts, held_out=None, nouns=COMMON_NOUNS)

    def loss(detector: Detector, indices: Tensor, generator: torch.Generator) -> Tensor:
        scenes = [grammars[index % 2].scene(index) for index in indices.tolist()]
        images = degraded(render_batch(scenes, cutouts), generator)
        heat, cells, labels = targets(scenes, detector, cutouts, images.shape[-1] // STRIDE)
        device = detector.heat.weight.device
        return detection_loss(detector, *(each.to(device) for each in (images, heat, cells, labels)))

    return train(detector, loss, EXAMPLES, run, settings, on_save=lambda average, step: save_model(average, run))


def load_detector(run: Path) -> Detector:
    """Return the trained detector. Raises UserError where there is none."""
    if not exists(run):
        raise UserError(f"no detector in {run}; run `python scripts/train_scenes.py detector` first.")
    return load_model(Detector(), run)
