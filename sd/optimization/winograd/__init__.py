"""Winograd's minimal filtering for 3x3 convolutions: the algorithm, its weights, and the patch of a layer."""
