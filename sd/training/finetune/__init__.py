"""Fine-tuning on a person's own images: textual inversion, LoRA and DreamBooth."""
