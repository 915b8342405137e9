"""How good the images are: CLIP scores, memorization, and comparisons of models."""
