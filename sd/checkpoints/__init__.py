"""Weights in and out of files: .ckpt, .safetensors and diffusers folders, found by name or downloaded."""
