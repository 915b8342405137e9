"""Parts of `sd.pipeline.trace`: words and their attention, previews without the VAE, and the trace as JSON."""
