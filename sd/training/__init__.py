"""Learning: how each part of Stable Diffusion comes to know what it knows.

emoji     drawings from npm packages to a folder of named pictures
data      pictures and captions as tensors
loop      the one training loop: checkpoints, exact resume, logs
scratch   CLIP, VAE and U-Net from nothing
"""
