"""Training examples, images with noise at random timesteps, and the loss of a step."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor, nn

from sd.checkpoints.predictions import EPS, Prediction
from sd.schedule import TIMES
from sd.training.finetune.data.captions import Captions
from sd.training.finetune.latent_cache import LatentCache
from sd.training.loss import noise_error_weights, offset_noise, prediction_errors

Contexts = Callable[[list[str]], Tensor]  # B texts to what the U-Net reads, (B, M, D)


@dataclass
class Example:
    """One image with noise. x0, noise: (4, h, w). t: 0 … 999. weight: of its error in the sum."""

    x0: Tensor
    noise: Tensor
    t: int
    text: str
    weight: float = 1.0


@dataclass
class TrainingSource:
    """Images to make examples from: indices into `latents` and `captions`, and the weight of each example."""

    latents: LatentCache
    captions: Captions
    indices: list[int]
    weight: float = 1.0
    noise_offset: float = 0.0

    def make_example(self, index: int, generator: torch.Generator, t: int | None = None) -> Example:
        """Return an example of image `indices[index]`; its view, caption, noise and timestep (if None) come from the
        generator.
        """
        place = [self.indices[index]]
        (x0,), (text,) = self.latents.sample(place, generator), self.captions.sample(place, generator)
        random_t = int(torch.randint(TIMES, (), generator=generator))
        noise = offset_noise(x0.shape, self.noise_offset, generator)
        return Example(x0, noise, random_t if t is None else t, text, self.weight)


class DiffusionLoss:
    """The loss of a step, for `loop.train`.

    source: the training images, which the step's indices refer to. prior: class images. Each training example is paired
        with a random one of these, so that the word does not take over the class: L + weight * L_class (Ruiz et al.
        2022, "DreamBooth", eq. 2). weights: (1000,), see `snr_weights`. prediction: what the U-Net predicts.
    """

    def __init__(
        self,
        unet: nn.Module,
        contexts: Contexts,
        weights: Tensor,
        source: TrainingSource,
        prior: TrainingSource | None = None,
        prediction: Prediction = EPS,
    ):
        self.prediction = prediction
        self.unet, self.contexts, self.weights, self.source, self.prior = unet, contexts, weights, source, prior

    def __call__(self, model: nn.Module, indices: Tensor, generators: list[torch.Generator]) -> Tensor:
        examples = [self.source.make_example(i, generator) for i, generator in zip(indices.tolist(), generators)]
        if self.prior is not None:
            for generator in generators:
                k = int(torch.randint(len(self.prior.indices), (), generator=generator))
                examples.append(self.prior.make_example(k, generator))
        return self.total_loss(examples, self.weights) / len(indices)

    def total_loss(self, examples: list[Example], weights: Tensor) -> Tensor:
        """Return the sum of the weighted errors; examples of one shape pass through the U-Net together."""
        total = torch.zeros(())
        for _, same in groupby(sorted(examples, key=shape_of), key=shape_of):
            group = list(same)
            x0, noise = torch.stack([one.x0 for one in group]), torch.stack([one.noise for one in group])
            t, weight = torch.tensor([one.t for one in group]), torch.tensor([one.weight for one in group])
            context = self.contexts([one.text for one in group])
            errors = prediction_errors(self.unet, x0, noise, t, context, weights, self.prediction)
            total = total.to(errors.device) + (weight.to(errors.device) * errors).sum()
        return total

    @torch.no_grad()
    def fixed_loss(self, examples: list[Example]) -> float:
        """Return the mean error in the noise of fixed examples, which has none of the noise of a step's own loss.

        A model that predicts v is measured by the noise that its v implies, so that the losses of all models compare.
        """
        weights = noise_error_weights(self.prediction)
        return sum(self.total_loss([one], weights).item() for one in examples) / len(examples)


def shape_of(make_example: Example) -> tuple[int, ...]:
    return tuple(make_example.x0.shape)


def fixed_examples(source: TrainingSource, times: int = 8) -> list[Example]:
    """Return examples at `times` evenly spaced timesteps, which depend only on the images of `source`, in turn."""
    return [
        source.make_example(
            k % len(source.indices), torch.Generator().manual_seed(k), t=(2 * k + 1) * TIMES // (2 * times)
        )
        for k in range(times)
    ]
