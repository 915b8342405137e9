"""Patches for networks whose feature maps are small, such as the bundled model's."""
