"""What is learnt from in a step: pictures with noise in them, and the loss of all of them together."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor, nn

from sd.schedule import TIMES
from sd.training.finetune.data.captions import Captions
from sd.training.finetune.latent_cache import LatentCache
from sd.training.loss import eps_errors, offset_noise

Contexts = Callable[[list[str]], Tensor]  # B texts to what the U-Net reads, (B, M, D)


@dataclass
class Example:
    """One picture with noise to be found in it. x0, noise: (4, h, w). t: 0 … 999. weight: of its error in the sum."""

    x0: Tensor
    noise: Tensor
    t: int
    text: str
    weight: float = 1.0


@dataclass
class Source:
    """Pictures to draw examples from: places of `latents` and `captions`, and the weight that each example gets."""

    latents: LatentCache
    captions: Captions
    places: list[int]
    weight: float = 1.0
    noise_offset: float = 0.0

    def example(self, index: int, generator: torch.Generator, t: int | None = None) -> Example:
        """Of picture `places[index]`; its view, caption, noise and time (if None) are from the generator."""
        place = [self.places[index]]
        (x0,), (text,) = self.latents.draw(place, generator), self.captions.draw(place, generator)
        drawn = int(torch.randint(TIMES, (), generator=generator))
        noise = offset_noise(x0.shape, self.noise_offset, generator)
        return Example(x0, noise, drawn if t is None else t, text, self.weight)


class Objective:
    """The loss of a step, for `loop.train`.

    source: the pictures to learn from; the step's indices are its own. prior: with it each of them brings one of the
    class along, at random, so that the word does not take the class over: L + weight * L_class (Ruiz et al. 2022,
    "DreamBooth", eq. 2). weights: (1000,), see `snr_weights`.
    """

    def __init__(
        self, unet: nn.Module, contexts: Contexts, weights: Tensor, source: Source, prior: Source | None = None
    ):
        self.unet, self.contexts, self.weights, self.source, self.prior = unet, contexts, weights, source, prior

    def __call__(self, model: nn.Module, indices: Tensor, generators: list[torch.Generator]) -> Tensor:
        examples = [self.source.example(i, generator) for i, generator in zip(indices.tolist(), generators)]
        if self.prior is not None:
            for generator in generators:
                k = int(torch.randint(len(self.prior.places), (), generator=generator))
                examples.append(self.prior.example(k, generator))
        return self.sum(examples, self.weights) / len(indices)

    def sum(self, examples: list[Example], weights: Tensor) -> Tensor:
        """Weighed errors of all examples together; those of one shape go through the U-Net at once."""
        total = torch.zeros(())
        for _, same in groupby(sorted(examples, key=shape_of), key=shape_of):
            group = list(same)
            x0, noise = torch.stack([one.x0 for one in group]), torch.stack([one.noise for one in group])
            t, weight = torch.tensor([one.t for one in group]), torch.tensor([one.weight for one in group])
            context = self.contexts([one.text for one in group])
            errors = eps_errors(self.unet, x0, noise, t, context, weights)
            total = total.to(errors.device) + (weight.to(errors.device) * errors).sum()
        return total

    @torch.no_grad()
    def measure(self, examples: list[Example]) -> float:
        """The plain mean error of examples that stay the same: free of the noise that a step's own loss is full of."""
        return sum(self.sum([one], torch.ones(TIMES)).item() for one in examples) / len(examples)


def shape_of(example: Example) -> tuple[int, ...]:
    return tuple(example.x0.shape)


def fixed_examples(source: Source, times: int = 8) -> list[Example]:
    """Examples of `times` times, evenly spread, that depend on nothing but the pictures of `source`, taken in turn."""
    return [
        source.example(k % len(source.places), torch.Generator().manual_seed(k), t=(2 * k + 1) * TIMES // (2 * times))
        for k in range(times)
    ]
