"""Pretraining of the bundled model: from scratch on emoji, then on scenes, which are objects on backgrounds with
captions that say what is where.

Reading order, emoji:

emoji_dataset      images and names from npm packages to a folder
dataset            images and captions as tensors
train_clip         CLIP from scratch
discriminator      PatchGAN discriminator for the VAE decoder
train_vae          the VAE from scratch
train_unet         the U-Net from scratch
evaluate           how well the result generates names and styles
style_classifier   linear style classifier on random-filter texture features
imagenet_features  features of an ImageNet network, beside those of the bundled CLIP
run                the three networks in their order, at the sizes of the bundled model
export             the shipped files

Reading order, scenes:

scenes/            cut-outs, vocabulary, grammar, captions, rendering, tasks and their detector
scene_text         CLIP on scene captions, with hard negatives and a reader of the token states
scene_latents      scenes encoded in bulk
scene_unet         the U-Net on those latents
scene_vae          the VAE's decoder on scenes
pipeline           the stages in their order, their settings, and the export
"""
