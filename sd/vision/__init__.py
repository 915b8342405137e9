"""CLIP's vision tower, and image encoders as files of their own."""
