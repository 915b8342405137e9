"""ControlNet: the network, its files, preprocessors of control images, and the U-Net under its control."""
