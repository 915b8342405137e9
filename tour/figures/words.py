"""The figures of chapter 6: attention per word as it is, and what each word changes in the estimate of x0."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from sd.attention import split_heads
from sd.unet import BasicTransformerBlock, CrossAttention, UNetModel
from tour.figure import Figure, Models, Step
from tour.plots import image_rows, overlay

PROMPT, SEED, STEPS = "a face with heart eyes", 0, 12
WORDS = PROMPT.split()  # each is one token, at places 1, 2 … after the start token


@contextmanager
def recording_attention(unet: UNetModel) -> Iterator[list[Tensor]]:
    """Collect the weights of every cross-attention while the block runs, each (B, N, 77), the mean of the heads."""
    maps: list[Tensor] = []
    layers = [block.attn2 for block in unet.modules() if isinstance(block, BasicTransformerBlock)]

    def recorder(layer: CrossAttention):
        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            queries, keys = split_heads(q, layer.heads), split_heads(k, layer.heads)
            scores = queries @ keys.transpose(-2, -1) / queries.shape[-1] ** 0.5
            maps.append(scores.softmax(dim=-1).mean(dim=1))
            return CrossAttention.attend(layer, q, k, v)

        return attend

    for layer in layers:
        layer.attend = recorder(layer)  # type: ignore[method-assign]
    try:
        yield maps
    finally:
        for layer in layers:
            del layer.attend


def trajectory(models: Models) -> tuple[Tensor, list[Step]]:
    """Return the finished latent of PROMPT and its steps."""
    return models.steps(models.denoiser(PROMPT), SEED, STEPS)


def attention_maps(models: Models) -> Figure:
    """The attention of each word at the 8 x 8 places, mean over heads, layers and steps, over the finished image."""
    latent, steps = trajectory(models)
    denoise = models.denoiser(PROMPT, scale=1)
    with recording_attention(models.unet) as maps:
        for step in steps:
            denoise(step.x, step.sigma)
    by_token = torch.stack([one[0] for one in maps if one.shape[1] == 64]).mean(dim=0)  # (64, 77)
    ends = len(WORDS) + 1
    parts = {"start": by_token[:, 0], **{word: by_token[:, i + 1] for i, word in enumerate(WORDS)}}
    parts["end"], parts["padding"] = by_token[:, ends], by_token[:, ends + 1 :].sum(dim=1)
    (image,) = models.decode(latent)
    shown = [overlay(image, part.reshape(8, 8), part.min().item(), part.max().item()) for part in parts.values()]
    masses = {name: part.mean().item() for name, part in parts.items()}
    notes = ["share:", *(f"{mass:.2f}" for mass in masses.values())]
    numbers = {
        "names": list(masses),
        "masses": list(masses.values()),
        "words_mass": sum(masses[word] for word in WORDS),
        "largest": max(WORDS, key=lambda word: masses[word]),
        "contrast": [(part.max() / part.min()).item() for part in parts.values()],
    }
    alt = (
        "A face with heart eyes, and eight heat maps over it. The maps of start and heart are brightest in the "
        "background, that of face in the mouth, and those of the end and the padding on the eyes and beside the mouth."
    )
    return Figure(image_rows({"": [image, *shown]}, ["image", *parts], 88, notes), numbers, alt)


def without_word(i: int) -> str:
    """Return the prompt without its word i."""
    return " ".join(WORDS[:i] + WORDS[i + 1 :])


def word_changes(models: Models) -> Figure:
    """|x0 - x0 without the word| by step and place, and the image that the prompt without the word gives."""
    latent, steps = trajectory(models)
    full = models.denoiser(PROMPT, scale=1)
    early, late, images, sizes = [], [], [], []
    for i in range(len(WORDS)):
        prompt = without_word(i)
        reduced = models.denoiser(prompt, scale=1)
        changes = [(full(s.x, s.sigma) - reduced(s.x, s.sigma)).norm(dim=1)[0] for s in steps]  # (16, 16) each
        early.append(torch.stack(changes[: STEPS // 2]).mean(dim=0))
        late.append(torch.stack(changes[STEPS // 2 :]).mean(dim=0))
        sizes.append([one.mean().item() for one in changes])
        images += models.decode(models.steps(models.denoiser(prompt), SEED, STEPS)[0])
    (image,) = models.decode(latent)
    rows = {}
    for name, maps in {"early steps": early, "late steps": late}.items():
        high = max(one.max().item() for one in maps)
        rows[name] = [image, *(overlay(image, one, 0, high) for one in maps)]
    rows["image without it"] = [image, *images]
    numbers = {
        "words": WORDS,
        "strength": [sum(one) / len(one) for one in sizes],
        "first": [one[0] for one in sizes],
        "last": [one[-1] for one in sizes],
    }
    alt = (
        "Heat maps by word: face changes the outline, heart the eyes and the mouth, the other words less. Below, the "
        "images without each word: without face a jagged shape, without heart another face, with black eyes."
    )
    return Figure(image_rows(rows, ["", *WORDS], 104), numbers, alt)


FIGURES = {"attention_maps": attention_maps, "word_changes": word_changes}
