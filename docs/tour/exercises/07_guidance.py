"""Exercise 7: classifier-free guidance."""

from torch import Tensor

from sd.denoiser import Guidance


def guided(guidance: Guidance, x: Tensor, sigma: float) -> Tensor:
    """Return the guided estimate of the clean latent: uncond + scale * (cond - uncond), of the shape of x.

    x: (B, 4, h, w). `guidance.both(xx, sigma)` runs the U-Net on a batch of 2B latents and returns 2B estimates: the
    first B without the prompt, the other B with it. So `xx` is x twice, `torch.cat([x, x])`, and `.chunk(2)` splits the
    result. `guidance.scale` is the scale.

    The project's own: `Guidance.__call__` in sd/denoiser.py, which knows an interval and a rescaling too.
    """
    raise NotImplementedError("write this function")
