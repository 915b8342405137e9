"""Loading and saving of weights: .ckpt, .safetensors and diffusers folders, found by name or downloaded."""
