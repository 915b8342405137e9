"""Exercise 8: a sampler of the second order."""

from collections.abc import Callable, Iterator

from torch import Tensor


def heun(
    denoise: Callable[[Tensor, float], Tensor], x: Tensor, sigmas: list[float], noise: Callable[[], Tensor] | None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (x, x0) after each step of Heun's method (Karras et al. 2022, algorithm 1).

    A step of Euler's method from `sigma` to `to` arrives at a point `ahead`. Take the slope there too,
    (ahead - denoise(ahead, to)) / to, and make the step from x again with the mean of both slopes. Where `to` is 0,
    there is no slope at the end, and x becomes x0. The x0 that is yielded is the one at the beginning of the step.

    The project's own: `heun` in sd/samplers.py.
    """
    raise NotImplementedError("write this function")
