"""Reference-only control: the image takes its look from another image, without any trained network.

The method is that of the preprocessors `reference_only`, `reference_adain` and `reference_adain+attn` of the webui's
ControlNet extension (Zhang 2023). At each step the reference's latent, noised to the same level, runs through the U-Net
first. In "attention" the keys and values of the image's self-attention are then those of both images, so that each
position reads from the reference what looks like itself. In "adain" the mean and the standard deviation of each channel
become the reference's (Huang and Belongie 2017, "Arbitrary Style Transfer in Real-time with Adaptive Instance
Normalization", eq. 8). The rows without a prompt take part of it only, see `Reference.fidelity`.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sd.control.interval import Interval
from sd.optimization.patching import LayerPatch, apply_patch, remove_patch
from sd.optimization.unet_blocks import embed_time, run_input_blocks, run_output_blocks
from sd.schedule import NoiseSchedule
from sd.unet import BasicTransformerBlock, CrossAttention, ResBlock, TimestepEmbedSequential, UNetModel, Upsample

EPS = 1e-6  # the least variance of a channel


@dataclass
class Reference(Interval):
    """A reference image at work.

    hint: (1, 8, h, w), the scaled latent and the noise that is added to it. schedule: the noise schedule of the U-Net.
    weight: how many of the layers are changed, the coarsest first; 1 for all self-attentions and half of the blocks of
    AdaIN. fidelity: 0 … 1, how much of the change the rows without a prompt are spared: at 0 they are changed as the
    others are, and guidance amplifies the prompt alone; at 1 they are not, and guidance amplifies the reference too.
    attention, adain: which layers are changed. start, end: see `Interval`.
    """

    hint: Tensor
    schedule: NoiseSchedule
    weight: float = 1.0
    start: float = 0.0
    end: float = 1.0
    fidelity: float = 0.5
    attention: bool = True
    adain: bool = False

    def noised(self, t: Tensor, like: Tensor) -> Tensor:
        """Return what the U-Net reads at t (R,) with as many channels as `like` has, (R, C, h, w), in its dtype."""
        latent, noise = self.hint.float().chunk(2, dim=1)  # (1, 4, h, w) each
        sigma = self.schedule.sigma_of(float(t[0]))
        x = (latent + sigma * noise) / (1 + sigma**2) ** 0.5
        if like.shape[1] == 9:  # an inpainting U-Net: nothing of the reference is masked
            x = torch.cat([x, torch.zeros_like(latent[:, :1]), latent], dim=1)
        return x.to(like.device, like.dtype).expand(len(t), -1, -1, -1)

    def layers(self, unet: UNetModel) -> list[nn.Module]:
        """Return the layers of the U-Net that are changed."""
        found = attention_layers(unet) if self.attention else []
        found += adain_layers(unet) if self.adain else []
        return [layer for layer, least in found if self.weight > least]


def attention_layers(unet: UNetModel) -> list[tuple[nn.Module, float]]:
    """Return the self-attentions, the widest first, each with the weight above which it is changed."""
    layers = [block.attn1 for block in unet.modules() if isinstance(block, BasicTransformerBlock)]
    layers.sort(key=lambda layer: -layer.to_q.in_features)
    return [(layer, i / len(layers)) for i, layer in enumerate(layers)]


def adain_layers(unet: UNetModel) -> list[tuple[nn.Module, float]]:
    """Return the blocks of AdaIN, each with the weight above which it is changed: the middle first, then outwards.

    They are the middle, the residual blocks below the first resolution, and on the way up all blocks before the last
    one that doubles the size: for v1-5 the extension's own.
    """
    first_half = next((i for i, block in enumerate(unet.input_blocks) if i and not has(block, ResBlock)), None)
    if first_half is None:
        return [(unet.middle_block, 0.0)]
    down = [block for block in unet.input_blocks[first_half:] if has(block, ResBlock)]
    last_double = max(i for i, block in enumerate(unet.output_blocks) if has(block, Upsample))
    up = list(unet.output_blocks[:last_double])
    found: list[tuple[nn.Module, float]] = [(unet.middle_block, 0.0)] if len(unet.middle_block) else []
    found += [(block, 2 * (1 - i / len(down))) for i, block in enumerate(down)]
    return found + [(block, 2 * i / len(up)) for i, block in enumerate(up)]


def has(block: Iterable[nn.Module], kind: type[nn.Module]) -> bool:
    return any(isinstance(layer, kind) for layer in block)


class RecordedAttention(LayerPatch, CrossAttention):
    """A self-attention that appends its input to `record`."""

    STATE = ("record",)
    record: list[Tensor]

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """x: (B, N, dim). Returns (B, N, dim)."""
        self.record.append(x)
        return super().forward(x, context)


class ReferringAttention(LayerPatch, CrossAttention):
    """A self-attention whose keys and values are those of the image and of the references.

    references: (R, M, dim) each, R a divisor of the batch, whose rows are in R groups. fidelity: see `Reference`.
    uncond_rows: how many rows, the first ones, have no prompt.
    """

    STATE = ("references", "fidelity", "uncond_rows")
    references: list[Tensor]
    fidelity: float
    uncond_rows: int

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """x: (B, N, dim). Returns (B, N, dim)."""
        more = [one.repeat_interleave(len(x) // len(one), dim=0) for one in self.references]
        out = super().forward(x, torch.cat([x, *more], dim=1))
        count = self.uncond_rows
        return spare(out, super().forward(x[:count]), self.fidelity) if count and self.fidelity > 0 else out


class UnobservedAttention(LayerPatch, CrossAttention):
    """A cross-attention of the reference's run: what observes the attention of the image must not see it."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Returns the same as `CrossAttention.attend`."""
        return CrossAttention.attend(self, q, k, v)


class RecordedBlock(LayerPatch, TimestepEmbedSequential):
    """A block that appends its output's moments to `record`."""

    STATE = ("record",)
    record: list[Tensor]

    def forward(  # type: ignore[override]
        self, x: Tensor, emb: Tensor, context: Tensor, size: torch.Size | None = None
    ) -> Tensor:
        """The same as `TimestepEmbedSequential.forward`."""
        x = super().forward(x, emb, context, size)
        self.record.append(moments(x))
        return x


class AdaINBlock(LayerPatch, TimestepEmbedSequential):
    """A block whose output's channels have the mean and the standard deviation of the references.

    references: (R, 2, C, 1, 1) each, from `moments`. fidelity, uncond_rows: see `ReferringAttention`.
    """

    STATE = ("references", "fidelity", "uncond_rows")
    references: list[Tensor]
    fidelity: float
    uncond_rows: int

    def forward(  # type: ignore[override]
        self, x: Tensor, emb: Tensor, context: Tensor, size: torch.Size | None = None
    ) -> Tensor:
        """The same as `TimestepEmbedSequential.forward`."""
        x = super().forward(x, emb, context, size)
        mean, variance = moments(x).unbind(1)
        wanted = torch.stack(self.references).mean(dim=0)
        wanted_mean, wanted_variance = wanted.repeat_interleave(len(x) // len(wanted), dim=0).unbind(1)
        std, wanted_std = variance.clamp(min=EPS).sqrt(), wanted_variance.clamp(min=EPS).sqrt()
        out = ((x.float() - mean) / std * wanted_std + wanted_mean).to(x.dtype)
        return spare(out, x[: self.uncond_rows], self.fidelity)


def moments(x: Tensor) -> Tensor:
    """Return the mean and the variance of each channel of x (B, C, H, W), (B, 2, C, 1, 1), in float32."""
    variance, mean = torch.var_mean(x.float(), dim=(2, 3), keepdim=True, correction=0)
    return torch.stack([mean, variance], dim=1)


def spare(changed: Tensor, plain: Tensor, fidelity: float) -> Tensor:
    """Return `changed` (B, ...) with its first rows moved by `fidelity` towards those of `plain`, (at most B, ...)."""
    count = len(plain)
    return torch.cat([torch.lerp(changed[:count], plain, fidelity), changed[count:]])


RECORDERS: dict[type, type[LayerPatch]] = {CrossAttention: RecordedAttention, TimestepEmbedSequential: RecordedBlock}
REFERRERS: dict[type, type[LayerPatch]] = {CrossAttention: ReferringAttention, TimestepEmbedSequential: AdaINBlock}


def patch_for(layer: nn.Module, patches: dict[type, type[LayerPatch]]) -> type[LayerPatch]:
    return next(patch for kind, patch in patches.items() if isinstance(layer, kind))


@contextmanager
def patched(layers: Iterable[nn.Module], patches: dict[type, type[LayerPatch]], states: Iterable[dict]) -> Iterator:
    """Patches layers by their class within the context. states: the patch's state for each layer."""
    pairs = [(layer, patch_for(layer, patches)) for layer in layers]
    try:
        for (layer, patch), state in zip(pairs, states):
            apply_patch(layer, patch, **state)
        yield
    finally:
        for layer, patch in pairs:
            remove_patch(layer, patch)


@contextmanager
def referring(
    unet: UNetModel,
    references: Sequence[Reference],
    x: Tensor,
    t: Tensor,
    context: Tensor,
    batch: int,
    uncond_rows: int,
) -> Iterator[None]:
    """Lets the U-Net's layers refer to the references within the context; without any, nothing is patched.

    x, t, context: the inputs of the U-Net's call, whose rows are in groups of `batch` images with one prompt. Each
    reference runs once for each prompt. uncond_rows: see `ReferringAttention`.
    """
    found: dict[nn.Module, list[tuple[Tensor, float]]] = {}
    for one in references:
        contexts = context if batch == 1 else context[::batch]  # the same object, by which a patch knows it again
        for layer, tensor in run_reference(unet, one, x, t[: len(contexts)], contexts).items():
            found.setdefault(layer, []).append((tensor, one.fidelity))
    states = [
        {
            "references": [tensor for tensor, _ in pairs],
            "fidelity": sum(fidelity for _, fidelity in pairs) / len(pairs),
            "uncond_rows": uncond_rows,
        }
        for pairs in found.values()
    ]
    with patched(found, REFERRERS, states):
        yield


def run_reference(
    unet: UNetModel, reference: Reference, like: Tensor, t: Tensor, context: Tensor
) -> dict[nn.Module, Tensor]:
    """Runs the U-Net on a reference; returns what each of its layers has recorded.

    like: an input of the U-Net. t: (R,). context: (R, M, D).
    """
    records: dict[nn.Module, list[Tensor]] = {layer: [] for layer in reference.layers(unet)}
    text_layers = [block.attn2 for block in unet.modules() if isinstance(block, BasicTransformerBlock)]
    x, emb = reference.noised(t, like), embed_time(unet, t, like.dtype)
    states: list[dict[str, Any]] = [{"record": record} for record in records.values()]
    unobserved: dict[type, type[LayerPatch]] = {CrossAttention: UnobservedAttention}
    with patched(records, RECORDERS, states), patched(text_layers, unobserved, [{}] * len(text_layers)):
        skips: list[Tensor] = []
        x = unet.middle_block(run_input_blocks(unet.input_blocks, x, skips, emb, context), emb, context)
        run_output_blocks(unet.output_blocks, x, skips, emb, context)
    return {layer: record[0] for layer, record in records.items()}
