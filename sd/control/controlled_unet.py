"""The U-Net under the control of images, by ControlNets, T2I-Adapters, IP-Adapters and references.

It is called as (x, t, context) -> eps. The U-Net itself stays as it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from sd.control.controlnet import ControlNetModel
from sd.control.interval import Interval
from sd.control.ip_adapter.image_prompt import ImagePrompt, prompted_by_images
from sd.control.reference import Reference, referring
from sd.control.t2i_adapter import T2IAdapter
from sd.optimization.unet_blocks import embed_time, run_input_blocks, run_output_blocks
from sd.unet import Downsample, UNetModel

SOFT_SCALES = (0.25, 0.62, 0.825, 1.0)  # of an adapter's features, fine to coarse, as in the webui's extension


@dataclass
class Control(Interval):
    """A ControlNet at work on one image.

    hint: the embedded image, (1, C, h, w). weight: factor of its outputs. start, end: see `Interval`. mode: "balanced";
    "prompt": the outputs are weaker the finer they are; "control": likewise, and only the prompt's rows are controlled,
    so that guidance amplifies the control too. global_pool: the outputs are averaged over all positions, as those of
    "shuffle" are.
    """

    network: ControlNetModel
    hint: Tensor
    weight: float = 1.0
    start: float = 0.0
    end: float = 1.0
    mode: str = "balanced"
    global_pool: bool = False

    def outputs(self, x: Tensor, t: Tensor, context: Tensor, uncond_rows: int) -> list[Tensor]:
        """Return the weighted outputs for all rows; uncond_rows: how many rows, the first ones, have no prompt."""
        first = uncond_rows if self.mode == "control" else 0
        outputs = self.network(x[first:], t[first:], context[first:], self.hint)
        if self.mode != "balanced":  # the same for 13 outputs as the original's 0.825 ** (12 - i), but for rounding
            scales = torch.logspace(-1, 0, len(outputs)).tolist()
            outputs = [output * scale for output, scale in zip(outputs, scales)]
        if self.weight != 1:
            outputs = [output * self.weight for output in outputs]
        if self.global_pool:
            outputs = [output.mean(dim=(2, 3), keepdim=True) for output in outputs]
        return (
            [torch.cat([output.new_zeros(first, *output.shape[1:]), output]) for output in outputs]
            if first
            else outputs
        )


@dataclass
class AdapterControl(Control):
    """A T2I-Adapter at work on one image; the fields are those of `Control`.

    In the mode "prompt" its features are weaker the finer they are.
    """

    network: T2IAdapter
    features: list[Tensor] | None = field(default=None, init=False, repr=False)  # weighted; computed once

    def additions(self, rows: int, uncond_rows: int) -> list[Tensor]:
        """Return what is added at each resolution for so many rows, of which the first `uncond_rows` have no prompt."""
        if self.features is None:
            found = self.network(self.hint)
            scales = [self.weight] * len(found)
            if self.mode != "balanced":
                scales = [self.weight * soft for soft in SOFT_SCALES[-len(found) :]]
            self.features = [one * scale for one, scale in zip(found, scales)]
        if self.mode != "control" or not uncond_rows:
            return self.features
        prompted = torch.arange(rows, device=self.hint.device).ge(uncond_rows).to(self.hint.dtype)[:, None, None, None]
        return [one * prompted for one in self.features]


class ControlledUNet:
    """A U-Net to whose skip connections and middle block the outputs of ControlNets are added.

    The features of T2I-Adapters are added in its encoder, to the last block of each resolution; its self-attentions
    refer to the references, and its cross-attentions read the prompts that are images. batch: the number of
    images. Where the U-Net is called with more rows, the first `batch` are those without a prompt, as in `Guidance`.
    Between the intervals of all controls the U-Net runs as it is.
    """

    def __init__(self, unet: UNetModel, controls: Sequence[Interval], batch: int):
        self.unet, self.controls, self.batch = unet, controls, batch

    @property
    def out(self) -> nn.Sequential:
        """Return the U-Net's last layers, which show its device and dtype to those who call it."""
        return self.unet.out

    def __call__(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        """x: (B, C, h, w). t: (B,). context: (B, M, D). Return eps, (B, 4, h, w)."""
        controls = [control for control in self.controls if control.is_active(t)]
        if not controls:
            return self.unet(x, t, context)
        uncond_rows = self.batch if len(x) > self.batch else 0
        adapters = [one for one in controls if isinstance(one, AdapterControl)]
        references = [one for one in controls if isinstance(one, Reference)]
        prompts = [one for one in controls if isinstance(one, ImagePrompt)]
        networks = [one for one in controls if isinstance(one, Control) and not isinstance(one, AdapterControl)]
        latent = x[:, :4]  # without the mask and the masked image of an inpainting U-Net
        outputs = sum_lists([one.outputs(latent, t, context, uncond_rows) for one in networks])
        features = sum_lists([one.additions(len(x), uncond_rows) for one in adapters])

        unet = self.unet
        with (
            referring(unet, references, x, t, context, self.batch, uncond_rows),
            prompted_by_images(unet, prompts, len(x), uncond_rows),
        ):
            emb = embed_time(unet, t, x.dtype)
            x, skips = run_encoder(unet, x, emb, context, features)
            x = unet.middle_block(x, emb, context)
            if outputs:
                *sums, middle_sum = outputs
                x = x + middle_sum
                skips = [skip + added for skip, added in zip(skips, sums)]
            return unet.out(run_output_blocks(unet.output_blocks, x, skips, emb, context))


def sum_lists(lists: list[list[Tensor]]) -> list[Tensor]:
    """Return the sums of the first tensors, of the second, and so on; [] for no list."""
    first, *others = lists or [[]]
    for other in others:
        first = [one + more for one, more in zip(first, other)]
    return first


def run_encoder(
    unet: UNetModel, x: Tensor, emb: Tensor, context: Tensor, features: list[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """Run the input blocks; return the last one's output and all of them.

    features: what is added to the last output of each resolution, or [].
    """
    skips: list[Tensor] = []
    if not features:
        return run_input_blocks(unet.input_blocks, x, skips, emb, context), skips
    ends = [i for i, block in enumerate(unet.input_blocks[1:]) if isinstance(block[0], Downsample)]
    for i, block in enumerate(unet.input_blocks):
        x = block(x, emb, context)
        if i in ends or i == len(unet.input_blocks) - 1:
            x = x + features[ends.index(i) if i in ends else -1]
        skips.append(x)
    return x, skips
