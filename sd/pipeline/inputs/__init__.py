"""Inputs of a generation beside its prompt: control images, and masks with their options."""
