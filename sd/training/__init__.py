"""Training: the loop, the loss and several processes; `finetune` adapts a model to a few images; `pretrain` trains the
bundled model from scratch.

Reading order:

train_state    the state of a run, from which it resumes after a kill
logger         progress bar, JSON lines, TensorBoard
distributed    several processes that train as one, and stop signals
loop           the one training loop: exact resume, EMA, gradient accumulation, mixed precision
loss           the noise-prediction error and its weights by timestep

finetune/      textual inversion, LoRA and DreamBooth: data, latents, methods, validation, files
controlnet/    ControlNets for a frozen model: condition images, training, evaluation
pretrain/      CLIP, VAE and U-Net of the bundled model, on emoji and on scenes
"""
