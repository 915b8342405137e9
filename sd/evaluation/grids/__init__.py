"""X/Y/Z grids: the same prompt with the values of up to three axes, on one labeled sheet."""
