"""The figures of chapter 11: a word's vector that moves among other words, and a change of rank 4."""

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sd.adapters import injection, textual_inversion
from sd.adapters.variants import LoRA
from sd.denoiser import Denoiser
from sd.samplers import ddim
from sd.schedule import sigma_list
from sd.training.finetune.methods import initial_vectors
from sd.training.loss import snr_weights
from sd.training.pretrain.train_unet import X0_WEIGHTS
from tour.figure import Figure, Models
from tour.images import emoji, encode_pictures
from tour.plots import BLUE, COLORS, GRAY, ORANGE, RED, Axes, beside, image_rows, principal_plane
from tour.short_training import config_for, fit

WORD, INITIAL = "<mango>", "peach"  # the new word, and the word whose vector it starts from
STYLES = ("fluent 3d emoji", "fluent flat emoji")
STEPS, RANK, STRENGTHS = 60, 4, (0.0, 0.5, 1.0, 1.5)
NEIGHBORS = ("peach", "apple", "orange", "lemon", "tomato", "cat", "dog", "car", "tree", "house")


def mangos(models: Models) -> Tensor:
    """Return the latents of the two pictures that both adapters learn from, (2, 4, 16, 16)."""
    return encode_pictures(models.vae, [emoji("a mango"), emoji("a mango", second=True)])


def captions(noun: str) -> list[str]:
    return [f"a {noun}, {style}" for style in STYLES]


def generate(models: Models, prompts: list[str]) -> Tensor:
    """Return latents of the prompts, from one noise each, with the adapters that the pipeline's networks have now."""
    pipe, sigmas = models.pipe, sigma_list(8)
    x = models.noise(5, len(prompts)) * (1 + sigmas[0] ** 2) ** 0.5
    with torch.no_grad():
        contexts = pipe.clip(pipe.tokenizer(prompts))
        *_, (generated, _) = ddim(Denoiser(pipe.unet, contexts), x, sigmas, None)
    return generated


def frozen(models: Models) -> None:
    for network in (models.pipe.clip, models.pipe.vae, models.pipe.unet):
        network.requires_grad_(False)


@lru_cache(maxsize=1)
def word_training(models: Models) -> tuple[list[Tensor], list[Tensor]]:
    """Train one vector; return it before the first step and after each, (1, 192), and latents before and after."""
    frozen(models)
    pipe = models.pipe
    start = initial_vectors(pipe.tokenizer, pipe.clip, INITIAL, 1)
    rows = textual_inversion.inject(pipe.tokenizer, pipe.clip, WORD, start)
    try:
        generated, path = [generate(models, captions(WORD))], [start]

        def contexts(indices: Tensor) -> Tensor:
            return pipe.clip(pipe.tokenizer([captions(WORD)[i] for i in indices.tolist()]))

        def keep(average: nn.Module, step: int) -> None:
            path.append(rows.detach().clone())

        module = nn.ParameterList([rows])
        fit(
            module,
            pipe.unet,
            mangos(models),
            contexts,
            config_for(STEPS, 2, 5e-3, ema=0),
            snr_weights(*X0_WEIGHTS),
            keep,
        )
        generated.append(generate(models, captions(WORD)))
    finally:
        textual_inversion.eject(pipe.tokenizer, pipe.clip, WORD)
    return path, generated


def word_path(models: Models) -> Figure:
    """The path of the new word's vector among ten words, and its distance from the start, by step."""
    path = torch.cat(word_training(models)[0])
    table, tokenizer = models.clip.embeddings.token_embedding.weight, models.tokenizer
    words = torch.cat([table[tokenizer.encode(word)] for word in NEIGHBORS])
    mean, directions = principal_plane(torch.cat([words, path[-1:]]))
    plane, places = (path - mean) @ directions, (words - mean) @ directions
    points = torch.cat([plane, places])
    (left, bottom), (right, top) = (points.amin(dim=0) - 0.1).tolist(), (points.amax(dim=0) + 0.1).tolist()
    left_plot = Axes((left, right + 0.1), (bottom, top), "the vectors of words", size=(430, 320))
    left_plot.points(places[:, 0], places[:, 1], GRAY, texts=NEIGHBORS)
    left_plot.line(plane[:, 0], plane[:, 1], ORANGE, "the new word's path")
    left_plot.points(plane[-1:, 0], plane[-1:, 1], RED, texts=[WORD])
    moved = (path - path[0]).norm(dim=1)
    right_plot = Axes((0, STEPS), (0, moved.max().item() * 1.1), "distance from its start", "step", size=(330, 320))
    right_plot.line(range(len(moved)), moved, ORANGE)
    cosines = F.cosine_similarity(path[-1:], words, dim=1)
    between = (words[0] - words[1:]).norm(dim=1)
    numbers: dict[str, Any] = {
        "moved": moved[-1].item(),
        "length": path[0].norm().item(),
        "new_length": path[-1].norm().item(),
        "cosine": F.cosine_similarity(path[-1:], path[:1]).item(),
        "nearest": NEIGHBORS[int(cosines.argmax())],
        "between_words": between.mean().item(),
        "trained": path.shape[1],
    }
    alt = "Ten words as points in a plane, and a short path that leaves peach."
    return Figure(beside([left_plot.render("bottom right"), right_plot.render()]), numbers, alt)


@lru_cache(maxsize=1)
def lora_training(models: Models) -> tuple[dict[str, LoRA], dict[float, Tensor]]:
    """Train a LoRA on the attention layers; return its deltas by layer, and latents by strength."""
    frozen(models)
    unet = models.pipe.unet
    layers = {path: layer for path, layer in injection.patchable_layers(unet).items() if ".attn" in path}
    generator = torch.Generator().manual_seed(0)
    deltas = {path: LoRA.initialize(layer, RANK, RANK, generator) for path, layer in layers.items()}
    injection.inject(unet, "mango", deltas)
    try:
        contexts = models.context(captions("mango"))
        module = nn.ModuleList(deltas.values())
        latents, weights = mangos(models), snr_weights(*X0_WEIGHTS)
        fit(module, unet, latents, lambda i: contexts[i], config_for(STEPS, 2, 3e-3, ema=0), weights)
        generated = {}
        for strength in STRENGTHS:
            injection.set_strength(unet, "mango", strength)
            generated[strength] = generate(
                models, [*captions("mango"), "a peach, fluent 3d emoji", "a car, fluent 3d emoji"]
            )
    finally:
        injection.eject(unet, "mango")
    return deltas, generated


def two_adapters(models: Models) -> Figure:
    """What both adapters learn from, and the images with the new word and with the LoRA at four strengths."""
    _, words = word_training(models)
    _, generated = lora_training(models)
    pictures = [emoji("a mango"), emoji("a mango", second=True)]
    columns = {
        "learned from": pictures,
        f"{WORD} at the start": models.decode(words[0]),
        f"{WORD} after {STEPS} steps": models.decode(words[1]),
        **{f"mango, LoRA at {strength:g}": models.decode(latents[:2]) for strength, latents in generated.items()},
    }
    rows = dict(zip(("3d", "flat"), map(list, zip(*columns.values()))))
    image = image_rows(rows, list(columns), 112)
    target = mangos(models)

    def error(latents: Tensor) -> float:
        return (latents[:2] - target).square().mean().sqrt().item()

    numbers: dict[str, Any] = {
        "steps": STEPS,
        "word_error": [error(one) for one in words],
        "lora_error": [error(d) for d in generated.values()],
    }
    numbers["strengths"] = list(STRENGTHS)
    return Figure(image, numbers, ALT)


ALT = "Two mangos, the images of a new word before and after its training, and those of a LoRA at strengths 0 to 1.5."


def lora_weights(models: Models) -> Figure:
    """The size of the change in each layer, and the singular values of the largest."""
    deltas, generated = lora_training(models)
    unet = models.pipe.unet
    weights = {path: unet.get_submodule(path).weight for path in deltas}
    changes = {path: delta.delta(weights[path]).detach() for path, delta in deltas.items()}
    sizes = {path: (changes[path].norm() / weights[path].norm()).item() for path in deltas}
    kinds = {"attn1": "self-attention", "attn2": "cross-attention"}
    left = Axes((0, len(sizes)), (0, max(sizes.values()) * 1.1), "|dW| / |W| by layer", "layer", size=(430, 300))
    for (kind, label), color in zip(kinds.items(), COLORS):
        places = [i for i, path in enumerate(sizes) if kind in path]
        left.points([i + 0.5 for i in places], [list(sizes.values())[i] for i in places], color, label)
    largest = max(sizes, key=sizes.__getitem__)
    values = torch.linalg.svdvals(changes[largest])[:12]
    own = torch.linalg.svdvals(weights[largest])[:12]
    right = Axes((0, 12), (0, max(own[0].item(), values[0].item()) * 1.1), "singular values", "number", size=(330, 300))
    right.line(range(12), own, GRAY, "W").points(range(12), own, GRAY)
    right.line(range(12), values, BLUE, "dW").points(range(12), values, BLUE)
    trained = sum(parameter.numel() for delta in deltas.values() for parameter in delta.parameters())
    numbers: dict[str, Any] = {
        "layers": len(sizes),
        "trained": trained,
        "of": sum(parameter.numel() for parameter in unet.parameters()) / 1e6,
        "largest": max(sizes.values()),
        "smallest": min(sizes.values()),
        "values": values[:RANK].tolist(),
        "own": own[0].item(),
        "car_moved": (generated[1.0][3] - generated[0.0][3]).square().mean().sqrt().item(),
        "mango_moved": (generated[1.0][0] - generated[0.0][0]).square().mean().sqrt().item(),
    }
    alt = "Dots for the relative size of the change in every attention layer; four singular values, then zeros."
    return Figure(beside([left.render("top left"), right.render()]), numbers, alt)


FIGURES = {"word_path": word_path, "two_adapters": two_adapters, "lora_weights": lora_weights}
