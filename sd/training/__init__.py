"""Learning: how each part of Stable Diffusion comes to know what it knows. Read from the top:

emoji         drawings from npm packages to a folder of named pictures
data          pictures and captions as tensors
log           what a run says of itself
processes     several processes that train as one, and Ctrl-C
state         what a run goes on from after a kill
loop          the one training loop: exact resume, averages, accumulation, mixed precision
objective     the error in the noise, and how much it counts at each time
contrastive   CLIP from nothing
adversary     the decoder's opponent, for sharp pictures
autoencoder   the VAE from nothing
diffusion     the U-Net from nothing
measure       how good the result is at its small world
style_judge   in whose hand a drawing is, whatever it shows
scratch       the three in their order, at the sizes of the bundled model
bundle        the files that ship

caption_files what people write down about their pictures
image_folders where images stand, in a folder or one folder down
photos        a folder of somebody's pictures, found and checked
buckets       sizes for pictures that are not square
captions      what is said of a picture while a word is learnt
long_captions captions of any length to what the U-Net reads
latent_cache  pictures as latents, encoded once
examples      pictures with noise in them, and the loss of a step
checkpointing memory for time
recipes       how each method teaches, in numbers
methods       textual inversion, LoRA, DreamBooth: what each trains
class_pictures what the model knew of a class, so that it stays known
advice        which step to take, by which rule
watch         whether it learns, and which step to take
outputs       where the result goes, checked before and written after
disk          how much room a run needs
runs          a run's folder, and what it is about
metadata      what a file says of its making
preparing     a model, latents and settings, before the first step
personalize   from a folder of pictures to a file that prompts can name
concepts      things and a style that the bundled model never saw, to measure it by
cli           what the three teaching scripts share

The package pretrain has a reading order of its own: the bundled model trained on scenes.
"""
