"""A trace as one JSON value, from which the viewer in a browser draws everything.

Arrays are base64 of little-endian numbers, in the order of their shape. `sd/web/ui/browser/inside.js` reads it.
"""

import base64
import io
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from sd.pipeline.trace import Trace, TracedStep, reduce
from sd.pipeline.tracing.linear_decoder import fit_decoder

ROWS = ("x", "guided", "cond", "uncond")
MAX_IMAGE = 512  # pixels, of the image inside the document


def trace_document(trace: Trace, latent: Tensor, image: Image.Image, title: str, about: str) -> dict[str, Any]:
    """Return the document of a trace with at least one step.

    latent: the finished one, (1, 4, h, w), scaled, and the image that it was decoded to. title: the prompt. about: the
    image's settings, as text.
    """
    latent = reduce(latent.float().cpu())
    rows = {row: torch.stack([step_row(one, row) for one in trace.steps]) for row in ROWS}  # (K, 4, h, w) each
    paths = plane([torch.cat([rows["x"], latent]), rows["guided"]])
    estimates = plane([rows["guided"], rows["cond"], rows["uncond"]])
    return {
        "version": 1,
        "title": title,
        "about": about,
        "image": image_url(image),
        "scale": trace.scale,
        "total": trace.total,
        "steps": [steps_entry(one) for one in trace.steps],
        "latents": encode_array(torch.stack(list(rows.values()), dim=1)),  # (K, 4 rows, 4, h, w)
        "decoder": decoder_entry(latent, image),
        "words": words_entry(trace),
        "paths": [{"name": "x", "points": paths[0]}, {"name": "x0", "points": paths[1]}],
        "estimates": dict(zip(("guided", "cond", "uncond"), estimates)),
        "notes": list(trace.notes),
    }


def step_row(step: TracedStep, row: str) -> Tensor:
    """Return one of a step's latents; without guidance the conditional estimate stands for the unconditional one."""
    latent = getattr(step, row)
    return (step.cond if latent is None else latent).float()


def steps_entry(step: TracedStep) -> dict[str, Any]:
    distance = (step_row(step, "cond") - step_row(step, "uncond")).pow(2).mean().sqrt().item()
    return {
        "step": step.step,
        "sigma": round(step.sigma, 4),
        "t": round(step.t, 1),
        "guided": step.uncond is not None,
        "distance": round(distance, 4),  # root mean square of cond - uncond
    }


def decoder_entry(latent: Tensor, image: Image.Image) -> dict[str, Any]:
    decoder = fit_decoder(latent, image)
    return {
        "weights": encode_array(decoder.weights),
        "block": decoder.block,
        "spread": decoder.spread,
        "error": decoder.error,
    }


def words_entry(trace: Trace) -> dict[str, Any] | None:
    """Return the entries with their maps, as they are; None where a step has no attention."""
    if not trace.entries or any(one.attention is None for one in trace.steps):
        return None
    maps = torch.stack([one.attention for one in trace.steps if one.attention is not None]).float()  # (K, E, h, w)
    changes = {i: one.changes.float() for i, one in enumerate(trace.steps) if one.changes is not None}
    return {
        "entries": trace.entries,
        "attention": encode_array(maps),
        "shares": [[round(share, 4) for share in row] for row in maps.mean((2, 3)).tolist()],
        "changed": trace.changed,
        "changed_steps": list(changes),
        "changes": encode_array(torch.stack(list(changes.values()))) if changes else None,  # (C, W, h, w)
    }


def plane(groups: list[Tensor]) -> list[list[list[float]]]:
    """Project groups of latents (K, ...) onto the plane in which all of them lie furthest apart (their PCA).

    Returns for each group a list of K points [x, y], in units of the largest distance from the mean.
    """
    points = torch.cat([group.flatten(1) for group in groups]).double()
    points = points - points.mean(0)
    values, vectors = torch.linalg.eigh(points @ points.T)  # of the Gram matrix, which is small
    flat = vectors[:, -2:].flip(1) * values[-2:].flip(0).clamp(min=0).sqrt()
    signs = flat.gather(0, flat.abs().argmax(0, keepdim=True)).sign()  # an eigenvector's sign is arbitrary
    flat = flat * signs / flat.norm(dim=1).max().clamp(min=1e-12)
    return [[[round(x, 4), round(y, 4)] for x, y in group.tolist()] for group in flat.split([len(g) for g in groups])]


def encode_array(tensor: Tensor) -> dict[str, Any]:
    """Return a tensor as 16-bit integers times a scale: {"shape", "scale", "data"}."""
    largest = tensor.abs().max().clamp(min=1e-12).item() / 32767
    numbers = (tensor.double() / largest).round().numpy().astype("<i2")
    return {"shape": list(tensor.shape), "scale": largest, "data": base64.b64encode(numbers.tobytes()).decode()}


def image_url(image: Image.Image) -> str:
    """Return an image of at most MAX_IMAGE pixels a side as a data: URL."""
    image = image.copy()
    image.thumbnail((MAX_IMAGE, MAX_IMAGE), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
