"""The backends of the benchmark. A backend has a method for each task that it supports; it returns one turn's work."""

import importlib.util
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import lora_step, onnxruntime_backend, openvino_backend
from benchmarks.diffusers_backend import (
    diffusers_clip,
    diffusers_pipeline,
    diffusers_unet,
    diffusers_vae,
    have_compiler,
    have_diffusers,
    load_single_file,
    network_with_methods,
)
from benchmarks.tasks import GUIDANCE, PROMPT, SEED, TASKS, Options, RandomModel, guided_step, read_weights, shared_copy
from sd.checkpoints.checkpoint import load_models, read_checkpoint
from sd.checkpoints.diffusers_format import write_configs
from sd.optimization.registry import EXACT, OPTIMIZATIONS, current_name, default_names
from sd.pipeline.noise import SeededNoise
from sd.pipeline.stable_diffusion import StableDiffusion
from sd.tokenizer import Tokenizer
from sd.utils.device import DTYPES
from sd.utils.errors import UserError

Turn = Callable[[], object]


class OurNetworks:
    """Our networks in our pipeline. optimizations: names of `registry.OPTIMIZATIONS`; None means the default ones."""

    title = ""
    optimizations: tuple[str, ...] | None = None

    def missing(self, task: str, options: Options) -> str | None:
        """Return why this backend is unavailable for the task, in a few words, or None where it is available."""
        return None

    def prepare(self, task: str, options: Options) -> None:
        """Do the work that is done once, before the measurements."""

    def pipe(self, model: RandomModel) -> StableDiffusion:
        pipe = StableDiffusion(
            Tokenizer(), shared_copy(model.clip), shared_copy(model.vae), shared_copy(model.unet), model.sizes
        )
        pipe.set_optimizations(self.optimizations)
        pipe.optimize()
        return pipe

    def unet(self, model: RandomModel) -> Turn:
        return guided_step(self.pipe(model).unet, model)

    def vae(self, model: RandomModel) -> Turn:
        vae = self.pipe(model).vae
        return lambda: vae.decode(model.latent)

    def text(self, model: RandomModel) -> Turn:
        clip = self.pipe(model).clip
        return lambda: clip(model.tokens)

    def txt2img(self, model: RandomModel, **changes: Any) -> Turn:
        pipe, steps = self.pipe(model), model.options.steps
        settings = dict(steps=steps, guidance_scale=GUIDANCE, width=model.size, height=model.size, **changes)
        return lambda: pipe(PROMPT, sampler="ddim", seed=SEED, **settings).images[0]


class DefaultNetworks(OurNetworks):
    """Our networks with the default optimizations."""

    title = "ours"

    def load(self, model: RandomModel) -> Turn:
        ckpt = model.options.ckpt

        def load() -> Sequence[nn.Module]:
            networks = load_models(ckpt, model.dtype, model.device)[:3]
            read_weights(networks)
            return networks

        return load

    def train(self, model: RandomModel) -> Turn:
        return lora_step.our_step(model, self.pipe(model))


class UnpatchedNetworks(OurNetworks):
    """Our networks without patches, except for the channels-last order, which diffusers' networks have here too."""

    title, optimizations = "ours, no patches", ("channels-last",)


class DirectConvolutions(OurNetworks):
    """Our networks with the default optimizations but for Winograd's convolutions."""

    title = "ours, direct convolutions"

    def missing(self, task: str, options: Options) -> str | None:
        device, dtype = torch.device(options.device), DTYPES[options.dtype]
        return None if OPTIMIZATIONS["winograd"].is_supported(device, dtype) else "the same as ours here"

    def pipe(self, model: RandomModel) -> StableDiffusion:
        pipe = super().pipe(model)
        names = default_names(torch.device(model.device), model.dtype)
        pipe.set_optimizations([name for name in names if name != "winograd"])
        pipe.optimize()
        return pipe

    def train(self, model: RandomModel) -> Turn:
        return lora_step.our_step(model, super().pipe(model), direct=True)


class OptimizedNetworks(OurNetworks):
    """Our networks with the default optimizations and one that is off by default."""

    def __init__(self, name: str):
        self.name, self.title, self.optimizations = name, f"ours, {name}", (EXACT, name)

    def missing(self, task: str, options: Options) -> str | None:
        supported = OPTIMIZATIONS[self.name].is_supported(torch.device(options.device), DTYPES[options.dtype])
        return None if supported else "not on this machine"


class ApproximateNetworks:
    """A whole image, with the approximations that change it least; see docs/benchmarks/approximations.md."""

    def __init__(self, step_cache: int):
        self.step_cache, self.title = step_cache, f"ours, int8, step cache {step_cache}"
        self.ours = OptimizedNetworks("int8")
        self.missing, self.prepare = self.ours.missing, self.ours.prepare

    def txt2img(self, model: RandomModel) -> Turn:
        return self.ours.txt2img(model, step_cache=self.step_cache)


class DiffusersNetworks:
    """diffusers' and transformers' networks and their pipeline."""

    title = ""

    def missing(self, task: str, options: Options) -> str | None:
        return None if have_diffusers() else "not installed"

    def prepare(self, task: str, options: Options) -> None:
        pass

    def faster(self, network: nn.Module, model: RandomModel) -> nn.Module:
        return network

    def unet_of(self, model: RandomModel) -> nn.Module:
        return self.faster(diffusers_unet(model.unet, model.sizes), model)

    def vae_of(self, model: RandomModel) -> nn.Module:
        vae = diffusers_vae(model.vae, model.sizes)
        self.faster(vae.decoder, model)
        return vae

    def clip_of(self, model: RandomModel) -> nn.Module:
        return self.faster(diffusers_clip(model.clip, model.sizes), model)

    def unet(self, model: RandomModel) -> Turn:
        unet = self.unet_of(model)
        return guided_step(lambda x, t, context: unet(x, t, context, return_dict=False)[0], model)

    def vae(self, model: RandomModel) -> Turn:
        vae = self.vae_of(model)
        return lambda: vae.decode(model.latent, return_dict=False)[0]

    def text(self, model: RandomModel) -> Turn:
        clip = self.clip_of(model)
        return lambda: clip(model.tokens).last_hidden_state

    def txt2img(self, model: RandomModel) -> Turn:
        pipe = diffusers_pipeline(self.clip_of(model), self.vae_of(model), self.unet_of(model))
        noise = SeededNoise([SEED], model.latent_shape, model.device)().to(pipe.unet.dtype)
        settings = dict(guidance_scale=GUIDANCE, width=model.size, height=model.size)
        return lambda: pipe(PROMPT, num_inference_steps=model.options.steps, latents=noise, **settings).images[0]


class PlainDiffusers(DiffusersNetworks):
    """diffusers with its default settings."""

    title = "diffusers"

    def missing(self, task: str, options: Options) -> str | None:
        if task == "train" and importlib.util.find_spec("peft") is None:
            return "peft is not installed"
        return super().missing(task, options)

    def load(self, model: RandomModel) -> Turn:
        folder, ckpt = TemporaryDirectory(), model.options.ckpt
        write_configs(Path(folder.name), read_checkpoint(ckpt).config)

        def load() -> list[nn.Module]:
            networks = [each.to(model.device) for each in load_single_file(ckpt, Path(folder.name), model.dtype)]
            read_weights(networks)
            return networks

        return load

    def train(self, model: RandomModel) -> Turn:
        return lora_step.their_step(model)


class CompiledDiffusers(DiffusersNetworks):
    """diffusers under torch.compile: with frozen weights on a CPU, and with max-autotune on a GPU."""

    title = "diffusers, compiled"

    def missing(self, task: str, options: Options) -> str | None:
        return super().missing(task, options) or (None if have_compiler() else "no C++ compiler")

    def faster(self, network: nn.Module, model: RandomModel) -> nn.Module:
        warnings.filterwarnings("ignore", "Dynamo detected a call to a `functools.lru_cache`")  # in diffusers' own code
        network.compile(**({"options": {"freezing": True}} if model.device == "cpu" else {"mode": "max-autotune"}))
        return network


class OpenVINO(DiffusersNetworks):
    """The same networks, converted to OpenVINO; a whole image is generated by diffusers' pipeline around them."""

    title = "OpenVINO"

    def missing(self, task: str, options: Options) -> str | None:
        if options.device != "cpu":
            return "not on a GPU"
        return super().missing(task, options) or (None if openvino_backend.have_openvino() else "not installed")

    def prepare(self, task: str, options: Options) -> None:
        for part in TASKS[task].parts:
            openvino_backend.convert(part, options)

    def unet(self, model: RandomModel) -> Turn:
        return guided_step(openvino_backend.compiled("unet", model.options), model, torch.float32)

    def vae(self, model: RandomModel) -> Turn:
        decode, latent = openvino_backend.compiled("vae", model.options), model.latent.float()
        return lambda: decode(latent)

    def text(self, model: RandomModel) -> Turn:
        encode = openvino_backend.compiled("clip", model.options)
        return lambda: encode(model.tokens)

    def unet_of(self, model: RandomModel) -> nn.Module:
        run = openvino_backend.compiled("unet", model.options)

        def forward(x: Tensor, t: Tensor, encoder_hidden_states: Tensor, **_: object) -> tuple[Tensor]:
            return (run(x, t.float().expand(len(x)), encoder_hidden_states),)

        return network_with_methods("unet", model.sizes, torch.float32, forward=forward)

    def vae_of(self, model: RandomModel) -> nn.Module:
        run = openvino_backend.compiled("vae", model.options)
        return network_with_methods("vae", model.sizes, torch.float32, decode=lambda latent, **_: (run(latent),))

    def clip_of(self, model: RandomModel) -> nn.Module:
        run = openvino_backend.compiled("clip", model.options)
        return network_with_methods("clip", model.sizes, torch.float32, forward=lambda tokens, **_: (run(tokens),))


class ONNXRuntime:
    """The same networks in fp32, run by onnxruntime."""

    title = "onnxruntime"

    def missing(self, task: str, options: Options) -> str | None:
        if options.device != "cpu" or options.dtype != "fp32":
            return "measured in fp32 on a CPU only"
        return None if onnxruntime_backend.have_onnxruntime() else "not installed"

    def prepare(self, task: str, options: Options) -> None:
        for part in TASKS[task].parts:
            onnxruntime_backend.export(part, options)

    def unet(self, model: RandomModel) -> Turn:
        run = onnxruntime_backend.session("unet", model.options)
        return guided_step(lambda x, t, context: run(x, t.to(model.step_inputs[1].dtype), context), model)

    def vae(self, model: RandomModel) -> Turn:
        decode = onnxruntime_backend.session("vae", model.options)
        return lambda: decode(model.latent)


BACKENDS: dict[str, OurNetworks | ApproximateNetworks | DiffusersNetworks | ONNXRuntime] = {
    "ours": DefaultNetworks(),
    **{name: OptimizedNetworks(name) for name, one in OPTIMIZATIONS.items() if not one.default},
    "quick": ApproximateNetworks(3),
    "quicker": ApproximateNetworks(4),
    "direct": DirectConvolutions(),
    "plain": UnpatchedNetworks(),
    "diffusers": PlainDiffusers(),
    "compiled": CompiledDiffusers(),
    "openvino": OpenVINO(),
    "onnxruntime": ONNXRuntime(),
}


def backends_of(task: str, options: Options) -> tuple[list[str], dict[str, str]]:
    """The backends of a task, and why others are unavailable. Raises UserError for an unknown backend."""
    names = BACKENDS if options.backends is None else [current_name(backend) for backend in options.backends]
    if unknown := [backend for backend in names if backend not in BACKENDS]:
        raise UserError(f"unknown backend {unknown[0]!r}; choose from {', '.join(BACKENDS)}.")
    able = [backend for backend in names if hasattr(BACKENDS[backend], task)]
    missing = {backend: BACKENDS[backend].missing(task, options) for backend in able}
    return [backend for backend in able if not missing[backend]], {
        backend: word for backend, word in missing.items() if word
    }
