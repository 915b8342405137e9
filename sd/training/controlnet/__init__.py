"""Training of a ControlNet for a frozen model, from images with captions or from scenes of the bundled model's world.

Reading order:

conditions   edges and scribbles, computed at random from an image
sources      training examples: a latent, a condition image of its pixels, and a caption
recipe       the settings, their bounds, and the defaults for a large and a small model
train        the loss under control, and a run from its first step to its file
previews     a sheet of condition images, images without and images with the ControlNet
args         the options of the script
edge_score   the agreement of two edge images
evaluate     edges and names of held-out scenes, with and without the ControlNet
"""
