"""What is measured: each task as we do it and as diffusers does it, with the same weights and the same input."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from sd.benchmark.peers import load_single_file, peer_clip, peer_pipeline, peer_unet, peer_vae
from sd.checkpoint import load_models, read
from sd.cli import DTYPES
from sd.diffusers_folder import write_configs
from sd.errors import UserError
from sd.image import to_tensor
from sd.pipeline import StableDiffusion
from sd.seeds import Noise
from sd.sizes import build, complete
from sd.tokenizer import Tokenizer

TINY = {
    "unet": dict(model_channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_levels=(1,), context_dim=64),
    "vae": dict(channels=32, channel_mult=(1, 2), num_res_blocks=1),
    "clip": dict(width=64, layers=2, heads=1),
    "image_size": 64,
}
PROMPT, GUIDANCE, SEED = "a photograph of an astronaut riding a horse", 7.5, 0
SIDES = ("ours", "diffusers")


@dataclass(frozen=True)
class Options:
    """dtype: "fp32" or "bf16". size: pixels each way, a multiple of 8; None is the model's own. steps: of a picture.

    rounds: how often each side takes its turn, not counting one turn to warm up. threads: torch's own number if None.
    tiny: small networks, for tests. ckpt: what to load; one is made, and deleted afterwards, if None.
    Raises UserError for what cannot be measured.
    """

    dtype: str = "fp32"
    size: int | None = None
    steps: int = 4
    rounds: int = 3
    threads: int | None = None
    tiny: bool = False
    ckpt: Path | None = None

    def __post_init__(self):
        for name in ("steps", "rounds", "threads", "size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} must be at least 1, not {value}.")
        if self.size is not None and self.size % 8:
            raise UserError(f"the size must be a multiple of 8, not {self.size}.")
        if self.ckpt is not None and not self.ckpt.exists():
            raise UserError(f"there is no file {self.ckpt}: leave the flag out, and a random checkpoint is made.")


class RandomModel:
    """The networks with random weights, and something for each to work on; each is made when it is first asked for."""

    def __init__(self, options: Options, device: str = "cpu"):
        self.sizes = complete(TINY if options.tiny else {}, "the benchmark")
        self.size = options.size or self.sizes["image_size"]
        self.dtype, self.device = DTYPES[options.dtype], device

    def network(self, part: str) -> nn.Module:
        """In channels-last order, as our pipeline lays them out and as diffusers recommends."""
        network = random_network(build(self.sizes, "the benchmark")[part], self.dtype, self.device)
        return network.to(memory_format=torch.channels_last)

    @cached_property
    def unet(self) -> nn.Module:
        return self.network("unet")

    @cached_property
    def vae(self) -> nn.Module:
        return self.network("vae")

    @cached_property
    def clip(self) -> nn.Module:
        return self.network("clip")

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        side = self.size // 2 ** (len(self.sizes["vae"]["channel_mult"]) - 1)
        return (self.sizes["vae"]["z_channels"], side, side)

    @cached_property
    def latent(self) -> Tensor:
        return torch.randn(1, *self.latent_shape, dtype=self.dtype, device=self.device)

    @cached_property
    def step_inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        """x, t and context of one step with guidance: a batch of two."""
        x = torch.randn(2, *self.latent_shape, dtype=self.dtype, device=self.device)
        length, width = self.sizes["clip"]["max_length"], self.sizes["unet"]["context_dim"]
        context = torch.randn(2, length, width, dtype=self.dtype, device=self.device)
        return x, torch.full((2,), 500, device=self.device), context

    @cached_property
    def tokens(self) -> Tensor:
        """A prompt and a negative prompt, (2, 77)."""
        length, words = self.sizes["clip"]["max_length"], self.sizes["clip"]["vocab_size"]
        return torch.randint(words, (2, length), device=self.device)


def random_network(network: nn.Module, dtype: torch.dtype, device: str = "cpu") -> nn.Module:
    """A network of the meta device with torch's own random weights, made in `dtype`: no second copy at any time."""
    network = network.to(dtype).to_empty(device=device)
    for module in network.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return network.eval()


# Below, two functions a task: each takes a RandomModel and the Options and returns what one turn runs.


def our_step(model: RandomModel, options: Options) -> Callable:
    unet = model.unet
    return lambda: unet(*model.step_inputs)


def their_step(model: RandomModel, options: Options) -> Callable:
    unet = peer_unet(model.unet, model.sizes)
    return lambda: unet(*model.step_inputs, return_dict=False)[0]


def our_decode(model: RandomModel, options: Options) -> Callable:
    vae = model.vae
    return lambda: vae.decode(model.latent)


def their_decode(model: RandomModel, options: Options) -> Callable:
    vae = peer_vae(model.vae, model.sizes)
    return lambda: vae.decode(model.latent, return_dict=False)[0]


def our_encode(model: RandomModel, options: Options) -> Callable:
    clip = model.clip
    return lambda: clip(model.tokens)


def their_encode(model: RandomModel, options: Options) -> Callable:
    clip = peer_clip(model.clip, model.sizes)
    return lambda: clip(model.tokens).last_hidden_state


def our_picture(model: RandomModel, options: Options) -> Callable:
    pipe = StableDiffusion(Tokenizer(), model.clip, model.vae, model.unet)
    asked = dict(steps=options.steps, guidance_scale=GUIDANCE, width=model.size, height=model.size)
    return lambda: pipe(PROMPT, sampler="ddim", seed=SEED, **asked).images[0]


def their_picture(model: RandomModel, options: Options) -> Callable:
    pipe = peer_pipeline(model.clip, model.vae, model.unet, model.sizes)
    noise = Noise([SEED], model.latent_shape)().to(model.dtype)
    asked = dict(guidance_scale=GUIDANCE, width=model.size, height=model.size)
    return lambda: pipe(PROMPT, num_inference_steps=options.steps, latents=noise, **asked).images[0]


def our_load(model: RandomModel, options: Options) -> Callable:
    def load() -> list[nn.Module]:
        networks = load_models(options.ckpt, model.dtype)[:3]
        touch(networks)
        return networks

    return load


def their_load(model: RandomModel, options: Options) -> Callable:
    folder = TemporaryDirectory()
    write_configs(Path(folder.name), read(options.ckpt).sizes)

    def load() -> list[nn.Module]:
        networks = load_single_file(options.ckpt, Path(folder.name), model.dtype)
        touch(networks)
        return networks

    return load


def touch(networks: list[nn.Module]) -> Tensor:
    """Reads every weight. Returns the largest of each tensor, in order: the same for the same weights by any names."""
    return torch.stack([p.max().float() for network in networks for p in network.parameters()]).sort().values


@dataclass(frozen=True)
class Task:
    """sides: who does it, and how. answer: from what a turn gives, a tensor that is to be the same on both sides.

    turns: in a round; what is soon done is done more often. memory: whether its peak is measured.
    """

    title: str
    sides: dict[str, Callable[[RandomModel, Options], Callable]]
    answer: Callable[[Any], Tensor] = lambda result: result
    turns: int = 1
    memory: bool = False


TASKS = {
    "unet": Task("U-Net step", dict(zip(SIDES, (our_step, their_step)))),
    "vae": Task("VAE decode", dict(zip(SIDES, (our_decode, their_decode)))),
    "text": Task("text encode", dict(zip(SIDES, (our_encode, their_encode))), turns=10),
    "txt2img": Task("whole picture", dict(zip(SIDES, (our_picture, their_picture))), to_tensor, memory=True),
    "load": Task("load", dict(zip(SIDES, (our_load, their_load))), touch, memory=True),
}
