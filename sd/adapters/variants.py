"""The variants of LoRA: parameterizations of a change ΔW of one layer's weight W with few numbers.

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", and its relatives, each named at its class. Which
layers have such a change, and how it is injected and ejected, is in `injection`.
"""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class WeightDelta(nn.Module):
    """A change of one layer. Parameters have kohya's and LyCORIS' own names (`FIELDS`); one that is absent is None.

    fields: its tensors; beside a kind's own there may be `diff_b`, a change of the bias.
    scale: of ΔW; files have it as alpha / rank.
    name: the adapter it is a part of. strength: how much of it is used, 0 for nothing.
    """

    FIELDS: tuple[str, ...] = ()

    def __init__(self, fields: Mapping[str, Tensor], scale: float = 1.0):
        super().__init__()
        for field in (*self.FIELDS, "diff_b"):
            self.register_parameter(field, nn.Parameter(fields[field]) if field in fields else None)
        self.scale, self.name, self.strength = scale, "", 1.0

    @property
    def rank(self) -> int | None:
        return None

    @property
    def alpha(self) -> float | None:
        return None if self.rank is None else self.scale * self.rank

    def scale_for(self, alpha: float | None) -> float:
        """Returns the scale that a file's alpha means, if it has one."""
        return alpha / self.rank if alpha is not None and self.rank else 1.0

    def fields(self) -> dict[str, Tensor]:
        return {name: parameter.detach() for name, parameter in self.named_parameters()}

    def delta(self, weight: Tensor) -> Tensor:
        """Returns ΔW at strength 1, in fp32, of the shape of `weight`, the layer's own."""
        raise NotImplementedError

    def delta_bias(self) -> Tensor | None:
        return self.diff_b

    def norm(self, weight: Tensor) -> float:
        """Returns |ΔW| at strength 1, in the Frobenius norm."""
        return self.delta(weight).norm().item()

    def forward(self, layer: nn.Module, x: Tensor) -> Tensor:
        """Returns the addition to the layer's output for x, computed in x's dtype."""
        return layer.through(x, (self.strength * self.delta(layer.weight)).to(x.dtype), self.bias_for(x))

    def bias_for(self, x: Tensor) -> Tensor | None:
        bias = self.delta_bias()
        return None if bias is None else (self.strength * bias).to(x.dtype)


class LoRA(WeightDelta):
    """ΔW = alpha/r · up @ down, with up (out, r) and down (r, in); for convolutions down is (r, in, k, k).

    With `lora_mid` (r, r, k, k) it is a Tucker decomposition, and down is (r, in, 1, 1): LyCORIS' LoCon.
    """

    FIELDS = ("lora_down", "lora_up", "lora_mid")

    @classmethod
    def initialize(cls, layer: nn.Linear | nn.Conv2d, rank: int, alpha: float, generator: torch.Generator) -> "LoRA":
        """Returns a new delta that is zero. down ~ U(±1/sqrt(fan in)), as in kohya's and Hu et al.'s code."""
        shape = layer.weight.shape
        bound = 1 / math.sqrt(shape[1:].numel())
        down = (torch.rand(rank, *shape[1:], generator=generator) * 2 - 1) * bound
        up = torch.zeros(shape[0], rank, *[1] * (len(shape) - 2))
        return cls({"lora_down": down, "lora_up": up}, alpha / rank)

    @property
    def rank(self) -> int:
        return self.lora_down.shape[0]

    def delta(self, weight: Tensor) -> Tensor:
        up, down = self.lora_up.flatten(1), self.lora_down.flatten(1)  # (out, r), (r, in * k * k)
        if self.lora_mid is not None:
            return self.scale * torch.einsum("pq..., op, qi -> oi...", self.lora_mid, up, down)
        return self.scale * (up @ down).unflatten(1, weight.shape[1:])

    def norm(self, weight: Tensor) -> float:
        if self.lora_mid is not None:
            return super().norm(weight)
        up, down = self.lora_up.detach().flatten(1).double(), self.lora_down.detach().flatten(1).double()
        # |up @ down|² = trace(up' up down down'), and those two are only (r, r).
        return abs(self.scale) * ((up.T @ up) * (down @ down.T)).sum().clamp(min=0).sqrt().item()

    def forward(self, layer: nn.Module, x: Tensor) -> Tensor:
        if self.lora_mid is not None:
            return super().forward(layer, x)
        down = self.lora_down.to(x.dtype).reshape(-1, *layer.weight.shape[1:])
        up = self.lora_up.to(x.dtype).flatten(1)
        h = layer.through(x, down) * (self.strength * self.scale)  # r wide: never as big as ΔW
        bias = self.bias_for(x)
        return F.linear(h, up, bias) if down.dim() == 2 else F.conv2d(h, up[:, :, None, None], bias)


class LoHa(WeightDelta):
    """ΔW = alpha/r · (w1_a @ w1_b) * (w2_a @ w2_b), elementwise: Nam et al. 2021, "FedPara", proposition 1.

    With t1 and t2 (r, r, k, k) each half is a Tucker decomposition (proposition 3), and its `a` is (r, out).
    """

    FIELDS = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")

    @property
    def rank(self) -> int:
        return self.hada_w1_b.shape[0]

    def delta(self, weight: Tensor) -> Tensor:
        first = multiply_factors(self.hada_w1_a, self.hada_w1_b, self.hada_t1)
        second = multiply_factors(self.hada_w2_a, self.hada_w2_b, self.hada_t2)
        return (self.scale * first * second).flatten(1).unflatten(1, weight.shape[1:])


class LoKr(WeightDelta):
    """ΔW = alpha/r · kron(w1, w2), each whole or a product a @ b: Yeh et al. 2023, "LyCORIS", section 3.2.

    Where both are whole there is no rank, and the scale is 1.
    """

    FIELDS = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")

    @property
    def rank(self) -> int | None:
        for factor in (self.lokr_w2_b, self.lokr_w1_b):
            if factor is not None:
                return factor.shape[0]
        return None

    def delta(self, weight: Tensor) -> Tensor:
        w1 = self.lokr_w1 if self.lokr_w1 is not None else self.lokr_w1_a @ self.lokr_w1_b
        w2 = self.lokr_w2
        if w2 is None:
            w2 = multiply_factors(self.lokr_w2_a, self.lokr_w2_b, self.lokr_t2)
        w1 = w1.reshape([*w1.shape, *[1] * (w2.dim() - 2)])
        return (self.scale * torch.kron(w1, w2)).flatten(1).unflatten(1, weight.shape[1:])


def multiply_factors(a: Tensor, b: Tensor, core: Tensor | None) -> Tensor:
    """Returns a @ b, (out, r) by (r, ...); or the Tucker product of a (r, out), core (r, r, k, k) and b (r, in)."""
    if core is None:
        return a @ b.flatten(1)
    return torch.einsum("pq..., po, qi -> oi...", core, a, b).contiguous()  # `kron` takes nothing else


class Difference(WeightDelta):
    """ΔW itself, or a change of the bias alone; of a norm as well."""

    FIELDS = ("diff",)

    def delta(self, weight: Tensor) -> Tensor:
        if self.diff is None:
            return torch.zeros_like(weight, dtype=torch.float32)
        return self.diff if weight.dim() < 2 else self.diff.flatten(1).unflatten(1, weight.shape[1:])


class GLoRA(WeightDelta):
    """ΔW = alpha/r · (W A + B), with A = a1 @ a2 and B = b1 @ b2: Chavan et al. 2023, "One-for-All", equation 7.

    Older files call the factors by the other number: a1 is (r, in) there.
    """

    FIELDS = ("a1", "a2", "b1", "b2")

    @property
    def rank(self) -> int:
        return min(self.a1.shape[:2])

    def delta(self, weight: Tensor) -> Tensor:
        a1, a2, b1, b2 = (factor.flatten(1) for factor in (self.a1, self.a2, self.b1, self.b2))
        if a1.shape[0] < a1.shape[1]:
            a1, a2, b1, b2 = a2, a1, b2, b1
        through = torch.einsum("oi..., ip -> op...", weight.float(), a1 @ a2)
        return self.scale * (through + (b1 @ b2).unflatten(1, weight.shape[1:]))


class IA3(WeightDelta):
    """ΔW = m · W for a factor m of each output, or of each input: Liu et al. 2022, "Few-Shot ...", section 3.3."""

    FIELDS = ("ia3_out", "ia3_in")

    def delta(self, weight: Tensor) -> Tensor:
        factor, axis = (self.ia3_out, 0) if self.ia3_out is not None else (self.ia3_in, 1)
        return weight.float() * factor.reshape([size if a == axis else 1 for a, size in enumerate(weight.shape)])


class OFT(WeightDelta):
    """W' = R W, with R orthogonal in blocks of outputs: Qiu et al. 2023, "Controlling ... Orthogonal Finetuning".

    R = (I + Q)(I - Q)^-1 for Q = oft_blocks - its transpose, (blocks, n, n), section 3.3; older files have R itself as
    `oft_diag`. `rescale` (out, 1, ...) follows. A file's alpha, if not 0, limits |Q| to alpha times the outputs; it is
    `scale` here.
    """

    FIELDS = ("oft_blocks", "oft_diag", "rescale")

    @property
    def alpha(self) -> float:
        return self.scale

    def scale_for(self, alpha: float | None) -> float:
        return alpha or 0.0

    def rotation(self, outputs: int) -> Tensor:
        if self.oft_diag is not None:
            return self.oft_diag
        q = self.oft_blocks - self.oft_blocks.transpose(1, 2)
        if self.scale > 0:
            q = q * (self.scale * outputs / q.norm().clamp(min=1e-8)).clamp(max=1)
        one = torch.eye(q.shape[-1], device=q.device)
        return (one + q) @ torch.linalg.inv(one - q)

    def delta(self, weight: Tensor) -> Tensor:
        blocks = weight.float().unflatten(0, (-1, self.rotation(1).shape[-1]))
        turned = torch.einsum("knm, kn... -> km...", self.rotation(len(weight)), blocks).flatten(0, 1)
        rescale = 1 if self.rescale is None else self.rescale.reshape(len(weight), *[1] * (weight.dim() - 1))
        return rescale * turned - weight


class DoRA(WeightDelta):
    """W' = m · (W + ΔW) / |W + ΔW|, norms over each output, with ΔW of another kind: Liu et al. 2024, equation 5.

    m is `dora_scale`, (out,) or (out, 1, ...); older files have (1, in, ...), and norms over each input.
    Its strength leads straight from W to W'.
    """

    FIELDS = ("dora_scale",)

    def __init__(self, direction: WeightDelta, dora_scale: Tensor):
        super().__init__({"dora_scale": dora_scale}, direction.scale)
        self.direction = direction

    @property
    def rank(self) -> int | None:
        return self.direction.rank

    def delta_bias(self) -> Tensor | None:
        return self.direction.delta_bias()

    def fields(self) -> dict[str, Tensor]:
        return {"dora_scale": self.dora_scale.detach(), **self.direction.fields()}

    def delta(self, weight: Tensor) -> Tensor:
        weight = weight.float()
        changed = weight + self.direction.delta(weight)
        kept = 0 if self.dora_scale.shape[0] == weight.shape[0] else 1
        size = changed.movedim(kept, 0).flatten(1).norm(dim=1).clamp(min=torch.finfo(torch.float32).tiny)
        shape = [-1 if axis == kept else 1 for axis in range(weight.dim())]
        return (self.dora_scale.reshape(size.shape) / size).reshape(shape) * changed - weight


def build_delta(fields: Mapping[str, Tensor], scale: float = 1.0) -> WeightDelta:
    """Builds the delta of these fields. Raises ValueError where they are incomplete, or more than one delta."""
    rest = fields.keys() - {"dora_scale", "diff_b"}
    whole = {
        LoRA: {"lora_down", "lora_up"} <= rest,
        LoHa: {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"} <= rest,
        LoKr: all(n in rest or {f"{n}_a", f"{n}_b"} <= rest for n in ("lokr_w1", "lokr_w2")),
        Difference: "diff" in rest or (not rest and "diff_b" in fields),
        GLoRA: rest == {"a1", "a2", "b1", "b2"},
        IA3: rest in ({"ia3_out"}, {"ia3_in"}),
        OFT: rest - {"rescale"} in ({"oft_blocks"}, {"oft_diag"}),
    }
    for kind, is_whole in whole.items():
        if is_whole and rest <= set(kind.FIELDS):
            delta = kind(fields, scale)
            return DoRA(delta, fields["dora_scale"]) if "dora_scale" in fields else delta
    raise ValueError(f"{', '.join(sorted(fields))} alone")
