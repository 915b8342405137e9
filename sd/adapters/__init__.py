"""LoRA and its variants, and textual inversion: files, keys, and their places in the networks."""
