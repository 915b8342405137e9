"""Prompts before the U-Net: weighting, wildcards, styles and LLM enhancement."""
