"""Exercise 2: from noise to a latent in small steps."""

from collections.abc import Callable, Iterator

from torch import Tensor


def euler(
    denoise: Callable[[Tensor, float], Tensor], x: Tensor, sigmas: list[float], noise: Callable[[], Tensor] | None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (x, x0) after each step of Euler's method (Karras et al. 2022, algorithm 1, without its correction).

    denoise(x, sigma) returns x0, the estimate of the clean latent, of the shape of x. sigmas fall; each pair of
    neighbors, `sigma` and `to`, is one step. The slope is (x - x0) / sigma, and a step follows it from sigma to `to`.
    `noise` is not used. A function with `yield` is a generator: this one must not return a value.

    The project's own: `euler` in sd/samplers.py, which is its `ddim` without new noise.
    """
    raise NotImplementedError("write this function")
