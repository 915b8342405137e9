"""Stable Diffusion 1.x by hand. A file imports only files that stand above it here, so read from the top:

errors      what a user can mend, said in one sentence
attention   softmax(q k^T / sqrt(d)) v
tokenizer   a prompt to 77 numbers
clip        77 numbers to 77 vectors (and pictures to one vector, for scoring)
vae         a picture to a latent and back
taesd       the same, tiny and approximate, for previews
unet        a noisy latent, its time and the text to the noise in it
schedule    how much noise there is at each time
denoiser    the U-Net as a function (x, sigma) -> x0; guidance and masks around it
samplers    the walks from noise to picture
names       what other programs call our modules
checkpoint  weights in and out of every file people own (pickles: the careful reader of .ckpt)
prompt      (weights:1.3), BREAK and long prompts to one context
image       pictures in and out (infotext: the settings kept inside a PNG)
pipeline    all of it together: prompt in, picture out
"""
