"""Images and captions of a fine-tuning run: folders, caption files, templates, aspect-ratio buckets."""
