"""Who does the tasks. Every side has a method for each task that it takes part in, which makes what one turn runs."""

import importlib.util
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import lora_step as teaching
from benchmarks import openvino_backend as openvino_peer
from benchmarks.diffusers_backend import (
    have_compiler,
    have_peers,
    load_single_file,
    peer_clip,
    peer_pipeline,
    peer_unet,
    peer_vae,
    shell,
)
from benchmarks.tasks import GUIDANCE, PROMPT, SEED, TASKS, Options, RandomModel, guided, touch, twin
from sd.checkpoints.checkpoint import load_models, read_checkpoint
from sd.checkpoints.diffusers_format import write_configs
from sd.optimization.registry import EXACT, OPTIMIZATIONS, current_name
from sd.pipeline.noise import SeededNoise
from sd.pipeline.stable_diffusion import StableDiffusion
from sd.tokenizer import Tokenizer
from sd.utils.device import DTYPES
from sd.utils.errors import UserError

Turn = Callable[[], object]


class OurNetworks:
    """Our networks in our pipeline, with these of `optimize.OPTIMIZATIONS` on; None: those that are on by default."""

    title = ""
    optimizations: tuple[str, ...] | None = None

    def missing(self, task: str, options: Options) -> str | None:
        """Why this side is not here, in a word or two."""
        return None

    def make_ready(self, task: str, options: Options) -> None:
        """What is done once, before anything is measured."""

    def pipe(self, model: RandomModel) -> StableDiffusion:
        pipe = StableDiffusion(Tokenizer(), twin(model.clip), twin(model.vae), twin(model.unet), model.sizes)
        pipe.set_optimizations(self.optimizations)
        pipe.optimize()
        return pipe

    def unet(self, model: RandomModel) -> Turn:
        return guided(self.pipe(model).unet, model)

    def vae(self, model: RandomModel) -> Turn:
        vae = self.pipe(model).vae
        return lambda: vae.decode(model.latent)

    def text(self, model: RandomModel) -> Turn:
        clip = self.pipe(model).clip
        return lambda: clip(model.tokens)

    def txt2img(self, model: RandomModel, **changes: Any) -> Turn:
        pipe, steps = self.pipe(model), model.options.steps
        asked = dict(steps=steps, guidance_scale=GUIDANCE, width=model.size, height=model.size, **changes)
        return lambda: pipe(PROMPT, sampler="ddim", seed=SEED, **asked).images[0]


class Ours(OurNetworks):
    """As a person gets them."""

    title = "ours"

    def load(self, model: RandomModel) -> Turn:
        ckpt = model.options.ckpt

        def load() -> Sequence[nn.Module]:
            networks = load_models(ckpt, model.dtype, model.device)[:3]
            touch(networks)
            return networks

        return load

    def train(self, model: RandomModel) -> Turn:
        return teaching.our_step(model, self.pipe(model))


class Plain(OurNetworks):
    """The textbook's networks, with no patch but the order of channels, which diffusers' have here too."""

    title, optimizations = "ours, no patches", ("channels-last",)


class OurNetworksWith(OurNetworks):
    """With one more, which is off until it is asked for."""

    def __init__(self, name: str):
        self.name, self.title, self.optimizations = name, f"ours, {name}", (EXACT, name)

    def missing(self, task: str, options: Options) -> str | None:
        fits = OPTIMIZATIONS[self.name].fits(torch.device(options.device), DTYPES[options.dtype])
        return None if fits else "not on this machine"


class Quick:
    """A whole image with the approximations that change it least; see docs/benchmarks/approximations.md."""

    def __init__(self, step_cache: int):
        self.step_cache, self.title = step_cache, f"ours, int8, step cache {step_cache}"
        self.ours = OurNetworksWith("int8")
        self.missing, self.make_ready = self.ours.missing, self.ours.make_ready

    def txt2img(self, model: RandomModel) -> Turn:
        return self.ours.txt2img(model, step_cache=self.step_cache)


class TheirNetworks:
    """diffusers' and transformers' networks and their pipeline."""

    title = ""

    def missing(self, task: str, options: Options) -> str | None:
        return None if have_peers() else "not installed"

    def make_ready(self, task: str, options: Options) -> None:
        pass

    def faster(self, network: nn.Module, model: RandomModel) -> nn.Module:
        return network

    def unet_of(self, model: RandomModel) -> nn.Module:
        return self.faster(peer_unet(model.unet, model.sizes), model)

    def vae_of(self, model: RandomModel) -> nn.Module:
        vae = peer_vae(model.vae, model.sizes)
        self.faster(vae.decoder, model)
        return vae

    def clip_of(self, model: RandomModel) -> nn.Module:
        return self.faster(peer_clip(model.clip, model.sizes), model)

    def unet(self, model: RandomModel) -> Turn:
        unet = self.unet_of(model)
        return guided(lambda x, t, context: unet(x, t, context, return_dict=False)[0], model)

    def vae(self, model: RandomModel) -> Turn:
        vae = self.vae_of(model)
        return lambda: vae.decode(model.latent, return_dict=False)[0]

    def text(self, model: RandomModel) -> Turn:
        clip = self.clip_of(model)
        return lambda: clip(model.tokens).last_hidden_state

    def txt2img(self, model: RandomModel) -> Turn:
        pipe = peer_pipeline(self.clip_of(model), self.vae_of(model), self.unet_of(model))
        noise = SeededNoise([SEED], model.latent_shape, model.device)().to(pipe.unet.dtype)
        asked = dict(guidance_scale=GUIDANCE, width=model.size, height=model.size)
        return lambda: pipe(PROMPT, num_inference_steps=model.options.steps, latents=noise, **asked).images[0]


class Diffusers(TheirNetworks):
    """As they come."""

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
            touch(networks)
            return networks

        return load

    def train(self, model: RandomModel) -> Turn:
        return teaching.their_step(model)


class Compiled(TheirNetworks):
    """Under torch.compile: with the weights frozen into the code on a CPU, the fastest kernels searched on a GPU."""

    title = "diffusers, compiled"

    def missing(self, task: str, options: Options) -> str | None:
        return super().missing(task, options) or (None if have_compiler() else "no C++ compiler")

    def faster(self, network: nn.Module, model: RandomModel) -> nn.Module:
        warnings.filterwarnings("ignore", "Dynamo detected a call to a `functools.lru_cache`")  # in diffusers' own code
        network.compile(**({"options": {"freezing": True}} if model.device == "cpu" else {"mode": "max-autotune"}))
        return network


class OpenVINO(TheirNetworks):
    """The same networks converted, in diffusers' own pipeline where a whole picture is drawn."""

    title = "OpenVINO"

    def missing(self, task: str, options: Options) -> str | None:
        if options.device != "cpu":
            return "not on a GPU"
        return super().missing(task, options) or (None if openvino_peer.have_openvino() else "not installed")

    def make_ready(self, task: str, options: Options) -> None:
        for part in TASKS[task].parts:
            openvino_peer.convert(part, options)

    def unet(self, model: RandomModel) -> Turn:
        return guided(openvino_peer.compiled("unet", model.options), model, torch.float32)

    def vae(self, model: RandomModel) -> Turn:
        decode, latent = openvino_peer.compiled("vae", model.options), model.latent.float()
        return lambda: decode(latent)

    def text(self, model: RandomModel) -> Turn:
        encode = openvino_peer.compiled("clip", model.options)
        return lambda: encode(model.tokens)

    def unet_of(self, model: RandomModel) -> nn.Module:
        run = openvino_peer.compiled("unet", model.options)

        def forward(x: Tensor, t: Tensor, encoder_hidden_states: Tensor, **_: object) -> tuple[Tensor]:
            return (run(x, t.float().expand(len(x)), encoder_hidden_states),)

        return shell("unet", model.sizes, torch.float32, forward=forward)

    def vae_of(self, model: RandomModel) -> nn.Module:
        run = openvino_peer.compiled("vae", model.options)
        return shell("vae", model.sizes, torch.float32, decode=lambda latent, **_: (run(latent),))

    def clip_of(self, model: RandomModel) -> nn.Module:
        run = openvino_peer.compiled("clip", model.options)
        return shell("clip", model.sizes, torch.float32, forward=lambda tokens, **_: (run(tokens),))


BACKENDS: dict[str, OurNetworks | Quick | TheirNetworks] = {
    "ours": Ours(),
    **{name: OurNetworksWith(name) for name, one in OPTIMIZATIONS.items() if not one.default},
    "quick": Quick(3),
    "quicker": Quick(4),
    "plain": Plain(),
    "diffusers": Diffusers(),
    "compiled": Compiled(),
    "openvino": OpenVINO(),
}


def backends_of(task: str, options: Options) -> tuple[list[str], dict[str, str]]:
    """The backends of a task, and why others are unavailable. Raises UserError for an unknown backend."""
    asked = BACKENDS if options.sides is None else [current_name(side) for side in options.sides]
    if unknown := [side for side in asked if side not in BACKENDS]:
        raise UserError(f"unknown backend {unknown[0]!r}; choose from {', '.join(BACKENDS)}.")
    able = [side for side in asked if hasattr(BACKENDS[side], task)]
    missing = {side: BACKENDS[side].missing(task, options) for side in able}
    return [side for side in able if not missing[side]], {side: word for side, word in missing.items() if word}
