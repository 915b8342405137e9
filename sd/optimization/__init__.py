"""Patches for speed and memory, each by name, on and off."""
