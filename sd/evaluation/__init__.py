"""Evaluation of generated images: CLIP scores, memorization, and comparisons of models."""
