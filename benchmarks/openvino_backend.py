"""diffusers' networks with our weights, converted to OpenVINO: `pip install --no-deps openvino` brings it.

As its makers advise where one picture is waited for: fixed sizes, the LATENCY hint, computing in the run's precision.
Converting is done once by whoever uses OpenVINO, so here it has a process of its own and counts for nothing.
"""

import importlib.util
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.diffusers_backend import peer_clip, peer_unet, peer_vae
from benchmarks.tasks import Options, RandomModel

PRECISIONS = {"fp32": "f32", "bf16": "bf16"}


def have_openvino() -> bool:
    return importlib.util.find_spec("openvino") is not None


class Step(nn.Module):
    """(x, t, context) -> eps, all tensors."""

    def __init__(self, unet: nn.Module):
        super().__init__()
        self.unet = unet

    def forward(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        return self.unet(x, t, context, return_dict=False)[0]


class Decode(nn.Module):
    def __init__(self, vae: nn.Module):
        super().__init__()
        self.vae = vae

    def forward(self, latent: Tensor) -> Tensor:
        return self.vae.decode(latent, return_dict=False)[0]


class Encode(nn.Module):
    def __init__(self, clip: nn.Module):
        super().__init__()
        self.clip = clip

    def forward(self, tokens: Tensor) -> Tensor:
        return self.clip(tokens, return_dict=False)[0]


def file_of(part: str, options: Options) -> Path:
    return options.work / f"{options.dtype}-{part}.xml"


def convert(part: str, options: Options) -> None:
    """Writes one part, unless it is there, in a process that leaves no memory behind."""
    if not file_of(part, options).exists():
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            pool.submit(convert_here, part, options).result()


@torch.no_grad()
def convert_here(part: str, options: Options) -> None:
    """Weights are kept in 16 bits unless all is computed in 32, as OpenVINO keeps them by default."""
    import openvino

    model = RandomModel(options)
    inputs = [tensor.float() for tensor in model.step_inputs]
    if part == "unet":
        network, shapes = Step(peer_unet(model.unet, model.sizes).float()), [tuple(each.shape) for each in inputs]
    elif part == "vae":
        network, inputs = Decode(peer_vae(model.vae, model.sizes).float()), [model.latent.float()]
        shapes = [tuple(inputs[0].shape)]
    else:
        network, inputs = Encode(peer_clip(model.clip, model.sizes).float()), [model.tokens]
        shapes = [(-1, inputs[0].shape[1])]  # pipelines encode one text at a time
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the tracer, on branches that depend on a size
        converted = openvino.convert_model(network, example_input=tuple(inputs))
    converted.reshape(dict(zip(converted.inputs, map(openvino.PartialShape, shapes))))
    openvino.save_model(converted, file_of(part, options), compress_to_fp16=options.dtype != "fp32")


def compiled(part: str, options: Options) -> Callable[..., Tensor]:
    """A converted part, ready to run: fp32 tensors (tokens: int64) in, an fp32 tensor out."""
    import openvino

    threads = options.threads or torch.get_num_threads()
    asked = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
    asked |= {"INFERENCE_PRECISION_HINT": PRECISIONS[options.dtype]}
    run = openvino.Core().compile_model(file_of(part, options), "CPU", asked)
    return lambda *inputs: torch.from_numpy(run([tensor.numpy() for tensor in inputs])[0])
