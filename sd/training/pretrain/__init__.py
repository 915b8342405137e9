"""Pretraining of the bundled model on scenes: objects on backgrounds, with captions that say what is where.

Read from the top:

colors            color words measured, named and changed in OKLCH
cutouts           objects of the emoji packages as transparent images
vocabulary        the names, their plurals, and the combinations that training never sees
backgrounds       flat colors, gradients and landscapes drawn by code
wording           what a scene shows, and every caption that is true of it
grammar           from a seed to a scene: content, caption, layout
render            scenes to images
sheets            images under their captions, to be looked at
stream            training examples by number: scenes and single emoji

scene_vae         the autoencoder on scenes
scene_text        CLIP on scene captions, with hard negatives and a reader of the token states
scene_latents     scenes encoded in bulk
scene_unet        the U-Net on those latents, with cross-attention at 16 x 16
detector          a small detector of names, places and colors: the judge
scene_tasks       GenEval's six tasks on held-out combinations
scene_evaluation  those tasks from prompts to scores and sheets
pipeline          the stages in their order, their settings, and the export
"""
