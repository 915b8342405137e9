"""Fine-tuning on a folder of images: textual inversion, LoRA and DreamBooth.

Reading order:

data/                     folders, captions, aspect-ratio buckets, captions of any length
latent_cache              images as latents, encoded once
batch                     training examples, and the loss of a step
gradient_checkpointing    less memory for more time
recipes                   the default settings of each method
methods                   textual inversion, LoRA, DreamBooth: the trained parameters of each
prior_preservation        class images for DreamBooth
advice                    the best step, and the rule that chooses it
validation                held-out loss and preview images during training, scores at the end
outputs                   where the result goes, checked before and written after training
disk_space                the space that a run needs
runs                      a run's folder, and what may resume in it
metadata                  training metadata in the resulting files
setup                     model, latents and settings before the first step
finetune                  the whole process, from a folder of images to a file that prompts can use
evaluate                  a benchmark: objects and a style that the bundled model has never seen
args                      the options that the three scripts share
"""
