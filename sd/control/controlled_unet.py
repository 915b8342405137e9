"""The U-Net with ControlNets around it, as a callable (x, t, context) -> eps; the U-Net itself stays as it is."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sd.control.controlnet import ControlNetModel
from sd.optimization.unet_blocks import embed_time, run_input_blocks, run_output_blocks
from sd.schedule import TIMES
from sd.unet import UNetModel


@dataclass
class Control:
    """A ControlNet at work on one image.

    hint: the embedded image, (1, C, h, w). weight: factor of its outputs. start, end: shares of the sampling between
    which it works, measured in t as the guidance interval is. mode: "balanced"; "prompt": the outputs are weaker the
    finer they are; "control": likewise, and only the prompt's rows are controlled, so that guidance amplifies the
    control too. global_pool: the outputs are averaged over all positions, as those of "shuffle" are.
    """

    network: ControlNetModel
    hint: Tensor
    weight: float = 1.0
    start: float = 0.0
    end: float = 1.0
    mode: str = "balanced"
    global_pool: bool = False

    def is_active(self, t: Tensor) -> bool:
        """Return whether it works at t (B,), which is the same for the whole batch."""
        if self.start == 0 and self.end == 1:
            return True
        last, now = TIMES - 1, float(t[0])
        return (self.start == 0 or now <= last * (1 - self.start)) and (self.end == 1 or now >= last * (1 - self.end))

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


class ControlledUNet:
    """A U-Net whose skip connections and middle block have the outputs of ControlNets added.

    batch: the number of images. Where the U-Net is called with more rows, the first `batch` are those without a prompt,
    as in `Guidance`. Between the intervals of all controls the U-Net runs as it is.
    """

    def __init__(self, unet: UNetModel, controls: list[Control], batch: int):
        self.unet, self.controls, self.batch = unet, controls, batch

    def __call__(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        """x: (B, C, h, w). t: (B,). context: (B, M, D). Return eps, (B, 4, h, w)."""
        controls = [control for control in self.controls if control.weight != 0 and control.is_active(t)]
        if not controls:
            return self.unet(x, t, context)
        uncond_rows = self.batch if len(x) > self.batch else 0
        latent = x[:, :4]  # without the mask and the masked image of an inpainting U-Net
        *sums, middle_sum = controls[0].outputs(latent, t, context, uncond_rows)
        for control in controls[1:]:
            *more, middle = control.outputs(latent, t, context, uncond_rows)
            sums, middle_sum = [one + other for one, other in zip(sums, more)], middle_sum + middle

        unet, skips = self.unet, []  # type: ignore[var-annotated]
        emb = embed_time(unet, t, x.dtype)
        x = run_input_blocks(unet.input_blocks, x, skips, emb, context)
        x = unet.middle_block(x, emb, context) + middle_sum
        skips = [skip + added for skip, added in zip(skips, sums)]
        return unet.out(run_output_blocks(unet.output_blocks, x, skips, emb, context))
