"""Learning: how each part of Stable Diffusion comes to know what it knows. Read from the top:

emoji         drawings from npm packages to a folder of named pictures
data          pictures and captions as tensors
log           what a run says of itself
loop          the one training loop: checkpoints, exact resume, averages
contrastive   CLIP from nothing
autoencoder   the VAE from nothing
diffusion     the U-Net from nothing
measure       how good the result is at its small world
scratch       the three in their order, at the sizes of the bundled model
bundle        the files that ship
"""
