"""LoRA and its variants, and textual inversion: files, keys, and injection into the networks."""
