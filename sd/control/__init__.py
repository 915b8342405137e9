"""ControlNet: the network, its files, preprocessors of control images, references, and the U-Net with them."""
