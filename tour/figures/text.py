"""The figures of chapter 4: tokens and their merges, names in a plane, and what the causal mask lets a word reach."""

from itertools import pairwise

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from sd.attention import split_heads
from sd.tokenizer import Tokenizer
from tour.figure import Figure, Models
from tour.plots import (
    BLACK,
    BLUE,
    COLORS,
    GRAY,
    GREEN,
    ORANGE,
    PURPLE,
    SUPERSAMPLING,
    WHITE,
    Axes,
    beside,
    font,
    heat_map,
    principal_plane,
)

GROUPS = {
    "animals": ("cat", "dog", "rabbit", "horse", "cow", "pig", "mouse", "tiger"),
    "fruit": ("apple", "banana", "lemon", "pear", "cherries", "grapes", "strawberry", "watermelon"),
    "vehicles": ("car", "bus", "taxi", "truck", "bicycle", "airplane", "rocket", "train"),
    "buildings": ("house", "school", "hotel", "bank", "castle", "church", "factory", "hospital"),
}
PROMPTS = ["a red apple, fluent 3d emoji", "a red banana, fluent 3d emoji"]
SHOWN = 11  # places: start, eight tokens, end, and the first of the padding


def boxes(rows: list[tuple[str, list[str], list[str]]], width: int = 430) -> Image.Image:
    """Draw rows of boxes: a text at the left, then one box for each piece, with a note (if any) below each."""
    heights = [46 if any(notes) else 30 for _, _, notes in rows]
    image = Image.new("RGB", (width * SUPERSAMPLING, (sum(heights) + 4) * SUPERSAMPLING), WHITE)
    draw, large, small = ImageDraw.Draw(image), font(14 * SUPERSAMPLING), font(11 * SUPERSAMPLING)
    for i, (title, pieces, notes) in enumerate(rows):
        x, y = 130.0 * SUPERSAMPLING, (sum(heights[:i]) + 4) * SUPERSAMPLING
        draw.text((x - 10 * SUPERSAMPLING, y + 12 * SUPERSAMPLING), title, BLACK, large, anchor="rm")
        for k, (piece, note) in enumerate(zip(pieces, notes)):
            longest = max(large.getlength(piece), small.getlength(note))
            right = x + longest + 14 * SUPERSAMPLING
            color = COLORS[k % len(COLORS)]
            draw.rounded_rectangle((x, y, right, y + 24 * SUPERSAMPLING), 8, WHITE, color, 2 * SUPERSAMPLING)
            draw.text(((x + right) / 2, y + 12 * SUPERSAMPLING), piece, BLACK, large, anchor="mm")
            draw.text(((x + right) / 2, y + 32 * SUPERSAMPLING), note, GRAY, small, anchor="mm")
            x = right + 6 * SUPERSAMPLING
    return image.resize((width, sum(heights) + 4), Image.Resampling.LANCZOS)


def merge_steps(tokenizer: Tokenizer, word: str) -> list[tuple[list[str], str]]:
    """Return the pieces of a word after each merge, with the pair that was merged ("" before the first)."""
    pieces, merged = [*word[:-1], word[-1] + "</w>"], ""
    steps = [(pieces, merged)]
    while len(pieces) > 1:
        pair = min(pairwise(pieces), key=lambda pair: tokenizer.ranks.get(pair, len(tokenizer.ranks)))
        if pair not in tokenizer.ranks:
            break
        place = next(i for i in range(len(pieces)) if tuple(pieces[i : i + 2]) == pair)
        pieces = [*pieces[:place], "".join(pair), *pieces[place + 2 :]]
        steps.append((pieces, f"{pair[0]} + {pair[1]}"))
    return steps


def text_pieces(models: Models) -> Figure:
    """Three texts as tokens with their ids, and the merges that make the pieces of one word."""
    tokenizer, rows = models.tokenizer, []
    for text in ("a red apple", "A SNOWGLOBE!", "a xylophonist"):
        ids = tokenizer.encode(text)
        rows.append((text, [tokenizer.vocabulary[i] for i in ids], [str(i) for i in ids]))
    for pieces, merged in merge_steps(tokenizer, "snowglobe"):
        rows.append((merged or "snowglobe", pieces, [""] * len(pieces)))
    numbers = {
        "vocabulary": len(tokenizer.vocabulary),
        "merges": len(tokenizer.ranks),
        "pieces": [row[1] for row in rows[:3]],
        "pair": [merged for _, merged in merge_steps(tokenizer, "snowglobe")],
    }
    alt = "Three texts in boxes of tokens with ids; then snowglobe in letters, joined pair by pair to snow and globe."
    return Figure(boxes(rows), numbers, alt)


def names_in_plane(models: Models) -> Figure:
    """32 names in the plane of their largest variance: the first table's vectors, and the encoder's output."""
    names = [name for group in GROUPS.values() for name in group]
    tokens = models.tokenizer([f"a {name}" for name in names])
    ends = (tokens == models.tokenizer.end).float().argmax(dim=1)  # the first end token has read the whole prompt
    table = models.clip.embeddings.token_embedding(tokens[range(len(names)), ends - 1])
    states = models.clip(tokens)[range(len(names)), ends]
    labels = [group for group, members in GROUPS.items() for _ in members]
    plots, shares, in_plane = [], [], []
    for title, vectors in {"rows of the table": table, "the encoder's output": states}.items():
        plots.append(plane(vectors, names, labels, title))
        shares.append(share_of_neighbors(vectors, labels))
        mean, directions = principal_plane(vectors)
        in_plane.append((((vectors - mean) @ directions).square().sum() / (vectors - mean).square().sum()).item())
    numbers = {"names": len(names), "share_table": shares[0], "share_states": shares[1], "in_plane": in_plane}
    alt = (
        "Two planes with 32 names in four colors. Animals, fruit and vehicles mostly stand together in both; in the "
        "right one buildings and vehicles come close to each other, and the church stands beside the bus."
    )
    return Figure(beside(plots), numbers, alt)


def plane(vectors: Tensor, names: list[str], labels: list[str], title: str) -> Image.Image:
    mean, directions = principal_plane(vectors)
    points = (vectors - mean) @ directions
    reach = 1.45 * points.abs().max().item()
    axes = Axes((-reach, reach), (-reach, reach), title, size=(460, 400), x_ticks={}, y_ticks={})
    for group, color in zip(GROUPS, (ORANGE, GREEN, BLUE, PURPLE)):
        rows = [i for i, label in enumerate(labels) if label == group]
        axes.points(points[rows, 0], points[rows, 1], color, group, [names[i] for i in rows])
    return axes.render("bottom left")


def share_of_neighbors(vectors: Tensor, labels: list[str]) -> float:
    """Return the share of names whose nearest other name, by cosine, is of the same group."""
    unit = (vectors - vectors.mean(dim=0)) / (vectors - vectors.mean(dim=0)).norm(dim=1, keepdim=True)
    nearest = (unit @ unit.T - 2 * torch.eye(len(unit))).argmax(dim=1)
    return sum(labels[i] == labels[j] for i, j in enumerate(nearest.tolist())) / len(labels)


def causal_mask(models: Models) -> Figure:
    """Left: the attention of the first layer, mean of its heads. Right: which vectors change when a word does."""
    weights = first_attention(models, PROMPTS[0])[:SHOWN, :SHOWN]
    pieces = [models.tokenizer.vocabulary[i].removesuffix("</w>") for i in models.tokenizer.encode(PROMPTS[0])]
    matrix = labeled_matrix(heat_map(weights, 0, 0.6, 264), ["start", *pieces, "end", "padding"])
    states = models.context(PROMPTS)
    change = (states[0] - states[1]).norm(dim=1) / states[0].norm(dim=1)
    bars = Axes((-0.5, 20.5), (0, 1.6), "apple replaced by banana", "place", "relative change", size=(430, 300))
    bars.bars([i - 0.5 for i in range(22)], change[:21], ORANGE)
    numbers = {
        "pieces": pieces,
        "change": change[:SHOWN].tolist(),
        "change_padding": change[SHOWN:].mean().item(),
        "padding_to_apple": weights[10, 3].item(),
    }
    alt = (
        "Left: a lower triangle of attention weights. Right: the vectors before the changed word do not change, "
        "its own does by half its length, and those of the comma, the next word, the end and the padding change most."
    )
    return Figure(beside([matrix, bars.render()], 20), numbers, alt)


def first_attention(models: Models, prompt: str) -> Tensor:
    """Return the attention weights (77, 77) of the text encoder's first layer, the mean of its heads."""
    layer = models.clip.encoder.layers[0]
    attention, x = layer.self_attn, layer.layer_norm1(models.clip.embeddings(models.tokenizer(prompt)))
    q, k = (split_heads(project(x), attention.heads) for project in (attention.q_proj, attention.k_proj))
    scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
    return scores.masked_fill(torch.ones_like(scores[0, 0]).triu(1) > 0, -torch.inf).softmax(dim=-1)[0].mean(dim=0)


def labeled_matrix(matrix: Image.Image, words: list[str]) -> Image.Image:
    """Return a heat map with a word at each row and each column."""
    cell, left = matrix.height / len(words), 60
    image = Image.new("RGB", (left + matrix.width + 6, matrix.height + 60), WHITE)
    image.paste(matrix, (left, 0))
    draw = ImageDraw.Draw(image)
    for i, word in enumerate(words):
        draw.text((left - 5, (i + 0.5) * cell), word, BLACK, font(12), anchor="rm")
        label = Image.new("RGB", (54, 16), WHITE)
        ImageDraw.Draw(label).text((53, 8), word, BLACK, font(12), anchor="rm")
        image.paste(label.rotate(90, expand=True), (round(left + (i + 0.5) * cell - 8), matrix.height + 4))
    return image


FIGURES = {"text_pieces": text_pieces, "names_in_plane": names_in_plane, "causal_mask": causal_mask}
