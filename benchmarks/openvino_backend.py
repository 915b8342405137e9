"""diffusers' networks with our weights, converted to OpenVINO (`pip install --no-deps openvino`).

The settings follow OpenVINO's advice for low latency: fixed sizes, the LATENCY hint, the run's precision.
A user converts a model once, so here a separate process does it, and its time is not measured.
"""

import importlib.util
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.diffusers_backend import diffusers_clip, diffusers_unet, diffusers_vae
from benchmarks.tasks import Options, RandomModel

PRECISIONS = {"fp32": "f32", "bf16": "bf16"}


def have_openvino() -> bool:
    return importlib.util.find_spec("openvino") is not None


class Step(nn.Module):
    """The U-Net as a function of tensors: (x, t, context) -> eps."""

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


def converted_path(part: str, options: Options) -> Path:
    return options.work / f"{options.dtype}-{part}.xml"


def convert(part: str, options: Options) -> None:
    """Convert one network unless its file exists, in a separate process, whose memory is freed with it."""
    if not converted_path(part, options).exists():
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            pool.submit(convert_in_this_process, part, options).result()


@torch.no_grad()
def convert_in_this_process(part: str, options: Options) -> None:
    """Convert one network. Weights are stored in 16 bits, OpenVINO's default, unless the run is in fp32."""
    import openvino

    model = RandomModel(options)
    inputs = [tensor.float() for tensor in model.step_inputs]
    if part == "unet":
        network, shapes = Step(diffusers_unet(model.unet, model.sizes).float()), [tuple(each.shape) for each in inputs]
    elif part == "vae":
        network, inputs = Decode(diffusers_vae(model.vae, model.sizes).float()), [model.latent.float()]
        shapes = [tuple(inputs[0].shape)]
    else:
        network, inputs = Encode(diffusers_clip(model.clip, model.sizes).float()), [model.tokens]
        shapes = [(-1, inputs[0].shape[1])]  # pipelines encode one text at a time
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the tracer, on branches that depend on a size
        converted = openvino.convert_model(network, example_input=tuple(inputs))
    converted.reshape(dict(zip(converted.inputs, map(openvino.PartialShape, shapes))))
    openvino.save_model(converted, converted_path(part, options), compress_to_fp16=options.dtype != "fp32")


def compiled(part: str, options: Options) -> Callable[..., Tensor]:
    """Load a converted network; the result takes fp32 tensors (tokens: int64) and returns an fp32 tensor."""
    import openvino

    threads = options.threads or torch.get_num_threads()
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
    settings |= {"INFERENCE_PRECISION_HINT": PRECISIONS[options.dtype]}
    run = openvino.Core().compile_model(converted_path(part, options), "CPU", settings)
    return lambda *inputs: torch.from_numpy(run([tensor.numpy() for tensor in inputs])[0])
