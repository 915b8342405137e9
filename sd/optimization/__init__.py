"""Patches for speed and memory, which are enabled and disabled by name."""
