"""Exercise 10: does it copy?"""

from torch import Tensor


def standardize(x: Tensor) -> Tensor:
    """Return each row of x without its mean and of length 1, so that the product of two rows is their correlation.

    x: (..., D); each row of D numbers is a picture. A constant row, of length 0, must not divide by zero: it becomes 0.

    The test counts with it which pictures are copies: those that correlate by at least 0.95 with one of the training
    pictures. The project's own: `standardize` in sd/evaluation/memorization.py.
    """
    raise NotImplementedError("write this function")
