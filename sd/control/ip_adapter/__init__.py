"""IP-Adapter: the network, its files, and the U-Net's cross-attention with an image as a prompt."""
