"""Our networks without patches, exported to ONNX and run by onnxruntime (`pip install onnx onnxruntime`).

The export has fixed sizes and fp32, as a user would convert a model once; its time is not measured. onnxruntime's
default settings enable all of its graph optimizations.
"""

import importlib.util
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.tasks import Options, RandomModel, shared_copy

OPSET = 18


def have_onnxruntime() -> bool:
    """Return whether onnxruntime and the package that writes its files are installed."""
    return all(importlib.util.find_spec(name) is not None for name in ("onnx", "onnxruntime"))


class Decode(nn.Module):
    """The VAE's decoder as a module's forward."""

    def __init__(self, vae: nn.Module):
        super().__init__()
        self.vae = vae

    def forward(self, latent: Tensor) -> Tensor:
        return self.vae.decode(latent)


def exported_path(part: str, options: Options) -> Path:
    """Return the file of a network."""
    return options.work / f"{part}.onnx"


@torch.no_grad()
def export(part: str, options: Options) -> None:
    """Export "unet" or "vae" unless its file exists."""
    path, model = exported_path(part, options), RandomModel(options)
    if path.exists():
        return
    network, inputs = (model.unet, model.step_inputs) if part == "unet" else (Decode(model.vae), (model.latent,))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the tracer, on branches that depend on a size
        names = [f"input{i}" for i in range(len(inputs))]
        copied = shared_copy(network)
        torch.onnx.export(copied, inputs, str(path), input_names=names, opset_version=OPSET, dynamo=False)


def session(part: str, options: Options) -> Callable[..., Tensor]:
    """Return a function of an exported network: it takes the network's tensors and returns its output."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = options.threads or torch.get_num_threads()
    run = onnxruntime.InferenceSession(exported_path(part, options), settings, providers=["CPUExecutionProvider"])
    names = [one.name for one in run.get_inputs()]

    def call(*inputs: Tensor) -> Tensor:
        return torch.from_numpy(run.run(None, dict(zip(names, (tensor.numpy() for tensor in inputs))))[0])

    return call
