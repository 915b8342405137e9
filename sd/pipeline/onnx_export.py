"""A model as ONNX files, for runtimes other than PyTorch: the page /live runs them in a browser.

A folder holds `text_encoder.onnx`, `unet.onnx`, `vae_decoder.onnx` and `model.json`. The inputs have fixed sizes, those
of one image of the size that the model was trained at, with two prompts for classifier-free guidance:

    text_encoder   ids (2, M) int64                                       -> context (2, M, D)
    unet           x (2, 4, h, w), t (2,), context (2, M, D)              -> eps (2, 4, h, w)
    vae_decoder    latent (1, 4, h, w), unscaled                          -> image (1, 3, H, W)

All values are fp32. Weights that fp16 holds exactly, as those of a file in fp16 are, are stored as fp16.
"""

import importlib.util
import json
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sd.checkpoints.predictions import EPS, prediction_of
from sd.pipeline.tracing.linear_decoder import fit_pixels
from sd.schedule import SD1_SCHEDULE
from sd.utils.errors import UserError
from sd.utils.files import replacing
from sd.vae import LATENT_SCALE, AutoencoderKL

FORMAT = 1  # of the folder: raised when its contents change
MODEL = "model.json"
NETWORKS = ("text_encoder", "unet", "vae_decoder")
OPSET = 18
MOST_BYTES = 1 << 30  # of a network in fp32: ONNX files end at 2 GiB, and so do the arrays of most browsers
INSTALL = "exporting to ONNX needs the package onnx: pip install -r requirements-live.txt."
SMALL = 1024  # numbers: smaller weights stay fp32
SAMPLES = 12  # latents that the preview decoder is fitted to


class Decode(nn.Module):
    """The VAE's decoder as a module's forward."""

    def __init__(self, vae: AutoencoderKL):
        super().__init__()
        self.vae = vae

    def forward(self, latent: Tensor) -> Tensor:
        """latent: (B, 4, h, w), unscaled. Returns (B, 3, H, W)."""
        return self.vae.decode(latent)


def check_exportable(config: dict, source: object) -> None:
    """Raise UserError where the package onnx is missing, or where the model is not one that the page can run.

    config: as in `sd.checkpoints.config`. source: the model, for the message.
    """
    if importlib.util.find_spec("onnx") is None:
        raise UserError(INSTALL)
    if config["unet"]["in_channels"] != 4:
        raise UserError(f"{source} is an inpainting model, which is not exported: give a text-to-image model.")
    prediction = prediction_of(config)
    if prediction != EPS:
        raise UserError(f"{source} predicts {prediction.name}; only models that predict the noise (eps) are exported.")


@torch.no_grad()
def export_onnx(
    folder: str | Path, clip: nn.Module, vae: AutoencoderKL, unet: nn.Module, config: dict, source: object
) -> dict[str, Any]:
    """Write a model as ONNX files into a folder and return the contents of its `model.json`.

    The folder is replaced as a whole once all files are complete. The networks become fp32. Raises UserError as
    `check_exportable` does, where a network is too large, and where the folder has anything else in it.
    """
    check_exportable(config, source)
    folder = Path(folder).expanduser()
    check_folder(folder)
    size, length = config["image_size"] // vae.downsample, config["clip"]["max_length"]
    x, t = torch.randn(2, 4, size, size), torch.full((2,), 500.0)
    ids, context = torch.zeros(2, length, dtype=torch.long), torch.randn(2, length, config["unet"]["context_dim"])
    given: dict[str, tuple[nn.Module, dict[str, Tensor], str]] = {
        "text_encoder": (clip, {"ids": ids}, "context"),
        "unet": (unet, {"x": x, "t": t, "context": context}, "eps"),
        "vae_decoder": (Decode(vae), {"latent": x[:1]}, "image"),
    }
    for network, _, _ in given.values():
        network.float()
        check_size(network, source)
    about = {
        "format": FORMAT,
        "name": Path(str(source)).stem,
        "image_size": size * vae.downsample,
        "latent": [4, size, size],
        "length": length,
        "latent_scale": LATENT_SCALE,
        "sigmas": SD1_SCHEDULE.sigmas.tolist(),
        "preview": preview_decoder(vae, size),
    }
    with replacing(folder) as part:
        part.mkdir()
        for name, (network, inputs, output) in given.items():
            write_network(part / f"{name}.onnx", network, inputs, output)
        (part / MODEL).write_text(json.dumps(about), encoding="utf-8")
    return about


def check_folder(folder: Path) -> None:
    """Raise UserError where `folder` is a file, or holds anything but an earlier export, which is never removed."""
    if folder.is_file():
        raise UserError(f"{folder} is a file: an export to ONNX is a folder, so name a new one.")
    ours = {MODEL, *(f"{name}.onnx" for name in NETWORKS)}
    if folder.is_dir() and (strangers := {entry.name for entry in folder.iterdir()} - ours):
        raise UserError(f"{folder} is a folder with other things in it ({min(strangers)}): name a new or an empty one.")


def check_size(network: nn.Module, source: object) -> None:
    size = sum(4 * tensor.numel() for tensor in network.parameters())
    if size > MOST_BYTES:
        raise UserError(
            f"{source} is too large for a browser: one of its networks has {size / 1e9:.1f} GB in fp32, and "
            f"{MOST_BYTES / 1e9:.1f} GB is the most."
        )


def write_network(path: Path, network: nn.Module, inputs: dict[str, Tensor], output: str) -> None:
    """Write one network; `inputs` give the names and the fixed sizes of what it takes."""
    import onnx

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's, on branches that depend on a size
        torch.onnx.export(
            *(network, tuple(inputs.values()), str(path)),
            input_names=list(inputs),
            output_names=[output],
            opset_version=OPSET,
            dynamo=False,
        )
    model = onnx.load(str(path))
    store_exact_halves(model)
    onnx.save(model, str(path))


def store_exact_halves(model: Any) -> None:
    """Store each large weight that fp16 holds without rounding as fp16 with a Cast to fp32, which halves the file."""
    import onnx
    from onnx import numpy_helper

    casts, kept = [], []
    for weight in model.graph.initializer:
        values = numpy_helper.to_array(weight)
        halves = values.astype("float16") if values.dtype == "float32" and values.size >= SMALL else None
        if halves is None or (halves.astype("float32") != values).any():
            kept.append(weight)
            continue
        name = f"{weight.name}.fp16"
        kept.append(numpy_helper.from_array(halves, name))
        casts.append(onnx.helper.make_node("Cast", [name], [weight.name], to=onnx.TensorProto.FLOAT))
    nodes = list(model.graph.node)
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.initializer.extend(kept)
    model.graph.node.extend([*casts, *nodes])


def preview_decoder(vae: AutoencoderKL, size: int) -> dict[str, Any]:
    """Return an affine decoder for previews: {"block": p, "weights": 37 rows of 3 * p * p numbers}.

    It is fitted to what the VAE makes of random latents, coarse and fine, of half to twice the usual spread, so that it
    depends on no prompt; see `sd.pipeline.tracing.linear_decoder`.
    """
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(SAMPLES, 4, max(1, size // 4), max(1, size // 4), generator=generator)
    coarse = F.interpolate(coarse, size=(size, size), mode="bicubic")
    latents = 0.9 * coarse + 0.45 * torch.randn(SAMPLES, 4, size, size, generator=generator)
    latents *= torch.linspace(0.5, 2, SAMPLES).view(-1, 1, 1, 1)
    images = torch.cat([vae.decode(one[None] / LATENT_SCALE) for one in latents]).clamp(-1, 1)
    fitted = fit_pixels(latents, images)
    return {"block": fitted.block, "weights": [[round(x, 5) for x in row] for row in fitted.weights.tolist()]}
