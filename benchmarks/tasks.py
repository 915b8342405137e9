"""The tasks that are measured, and the model with random weights that all backends share."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sd.checkpoints.checkpoint import read_checkpoint
from sd.checkpoints.config import build_networks, fill_defaults
from sd.checkpoints.discovery import BUNDLED
from sd.denoiser import Guidance
from sd.schedule import SD1_SCHEDULE
from sd.utils.device import DTYPES
from sd.utils.errors import UserError
from sd.utils.images import to_tensor

TINY = {
    "unet": dict(model_channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_levels=(1,), context_dim=64),
    "vae": dict(channels=32, channel_mult=(1, 2), num_res_blocks=1),
    "clip": dict(width=64, layers=2, heads=1),
    "image_size": 64,
}
PROMPT, GUIDANCE, SEED, TIME = "a photograph of an astronaut riding a horse", 7.5, 0, 500
RANK = 4  # of the LoRA that is trained


@dataclass(frozen=True)
class Options:
    """The settings of a benchmark. Raises UserError for values that cannot be measured.

    dtype: "fp32" or "bf16". size: width and height in pixels, a multiple of 8; None is the model's own. steps: sampling
    steps of an image. rounds: runs of each backend, without the one to warm up. threads: torch's own number if None.
    batch: images of a U-Net step. tiny: small networks, for tests. bundled: networks of the bundled model's size. ckpt:
    the checkpoint to load; a random one is made, and deleted afterwards, if None. device: "cpu" or "cuda". backends:
    names, or None for all. work: a folder for files that backends prepare; `runner.run` sets it.
    """

    dtype: str = "fp32"
    size: int | None = None
    steps: int = 20
    rounds: int = 3
    threads: int | None = None
    batch: int = 1
    tiny: bool = False
    bundled: bool = False
    ckpt: Path | None = None
    device: str = "cpu"
    backends: tuple[str, ...] | None = None
    work: Path | None = None

    def __post_init__(self):
        for name in ("steps", "rounds", "threads", "size", "batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} must be at least 1, not {value}.")
        if self.size is not None and self.size % 8:
            raise UserError(f"the size must be a multiple of 8, not {self.size}.")
        if self.ckpt is not None and not self.ckpt.exists():
            raise UserError(f"file not found: {self.ckpt}; leave the flag out to load a random checkpoint.")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise UserError("PyTorch finds no GPU; leave out --device.")


class RandomModel:
    """The networks with random weights and their inputs, each created at its first use.

    The weights are the same in every process.
    """

    def __init__(self, options: Options, device: str | None = None):
        self.options = options
        given = read_checkpoint(BUNDLED).config if options.bundled else TINY if options.tiny else {}
        self.sizes = fill_defaults(given, "the benchmark")
        self.size = options.size or self.sizes["image_size"]
        self.dtype, self.device = DTYPES[options.dtype], options.device if device is None else device

    def network(self, part: str) -> nn.Module:
        """Return a network in channels-last order, as our pipeline has it and diffusers recommends."""
        network = random_network(build_networks(self.sizes, "the benchmark")[part], self.dtype, self.device)
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
        """Return x, t and context of one step with guidance: two rows for each image."""
        rows = 2 * self.options.batch
        x = torch.randn(rows, *self.latent_shape, dtype=self.dtype, device=self.device)
        length, width = self.sizes["clip"]["max_length"], self.sizes["unet"]["context_dim"]
        context = torch.randn(rows, length, width, dtype=self.dtype, device=self.device)
        return x, torch.full((rows,), TIME, device=self.device), context

    @cached_property
    def tokens(self) -> Tensor:
        """Return the token ids of a prompt and a negative prompt, (2, 77)."""
        length, words = self.sizes["clip"]["max_length"], self.sizes["clip"]["vocab_size"]
        return torch.randint(words, (2, length), device=self.device)


def random_network(network: nn.Module, dtype: torch.dtype, device: str = "cpu") -> nn.Module:
    """Fill a network on the meta device with torch's initial weights, in `dtype` from the start, without a copy."""
    network = network.to(dtype).to_empty(device=device)
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        for module in network.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
    return network.eval()


def shared_copy(network: nn.Module) -> nn.Module:
    """Return a copy of the network that shares its tensors; patches of one do not affect the other."""
    return copy.deepcopy(network, {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())})


def guided_step(unet: Callable, model: RandomModel, dtype: torch.dtype | None = None) -> Callable[[], Tensor]:
    """Return a function that does one step with classifier-free guidance and returns sigma * eps in fp32.

    unet: (x, t, context) -> eps. dtype: of its latents and text states, if not the model's own.
    """
    x, _, context = model.step_inputs
    x, sigma = x[: model.options.batch].float(), SD1_SCHEDULE.sigma_of(TIME)
    uncond, cond = context.to(dtype or model.dtype).chunk(2)
    denoise = Guidance(unet, cond, uncond, GUIDANCE)
    return lambda: x - denoise(x, sigma)


def read_weights(networks: Sequence[nn.Module]) -> Tensor:
    """Read every weight, and return the sorted maxima of all tensors, which do not depend on the names of weights."""
    return torch.stack([p.max().float() for network in networks for p in network.parameters()]).sort().values


@dataclass(frozen=True)
class Task:
    """A task of the benchmark.

    parts: the networks that it runs. work: the same by the unpatched networks, to count its operations; None where one
    pass does not give them. answer: turns a run's result into the tensor that is compared between backends. turns: runs
    per round, more for fast tasks. memory: whether the peak of memory is measured.
    """

    title: str
    parts: tuple[str, ...]
    work: Callable[[RandomModel], Any] | None = None
    answer: Callable[[Any], Tensor] = lambda result: result
    turns: int = 1
    memory: bool = False


PARTS = ("clip", "vae", "unet")
TASKS = {
    "unet": Task("U-Net step", ("unet",), lambda model: guided_step(model.unet, model)()),
    "vae": Task("VAE decode", ("vae",), lambda model: model.vae.decode(model.latent)),
    "text": Task("text encode", ("clip",), lambda model: model.clip(model.tokens), turns=10),
    "txt2img": Task("whole image", PARTS, answer=to_tensor, memory=True),
    "load": Task("load", PARTS, answer=read_weights, memory=True),
    "train": Task("LoRA training step", PARTS, memory=True),
    "many": Task("many prompts, per image", PARTS),
}
DEFAULT_TASKS = ("unet", "vae", "text", "txt2img", "load")  # measured unless --only names others
