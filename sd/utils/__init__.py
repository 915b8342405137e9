"""Errors, files, images, image grids and devices: what everything else may use."""
