"""One training step of a LoRA, ours and diffusers': batch 1, with latents and text states computed beforehand.

Both train rank 4 on the queries, keys, values and outputs of all attention, with a frozen base, AdamW and clipped
gradients, the adapter in fp32 and the base in the run's precision. diffusers' train_text_to_image_lora.py does the same
with `--mixed_precision bf16`: frozen weights are cast to bf16, the adapter stays in fp32, and the forward pass runs
under autocast. Only the U-Net's part of that script's step is timed, which favors it: it also encodes the texts in
every step.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.diffusers_backend import diffusers_clip, diffusers_unet, diffusers_vae
from benchmarks.tasks import RANK, SEED, TIME, RandomModel
from sd.adapters.injection import deltas_of
from sd.checkpoints.diffusers_keys import unet_names
from sd.optimization.registry import TRAINABLE
from sd.pipeline.stable_diffusion import StableDiffusion
from sd.schedule import SD1_SCHEDULE
from sd.training.finetune.finetune import optimize_frozen
from sd.training.finetune.methods import LoraTraining
from sd.training.finetune.recipes import Recipe, recipe_for
from sd.training.finetune.setup import train_config
from sd.training.loop import Trainer
from sd.training.loss import prediction_errors, snr_weights

NAME = "trained"
TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]


def recipe(pipe: StableDiffusion) -> Recipe:
    """Return the settings of diffusers' script: an unweighted loss and a constant learning rate."""
    return recipe_for(
        "lora", pipe, NAME, rank=RANK, targets=("attention",), min_snr=0.0, schedule="constant", warmup=0, lr=1e-4
    )


def example(model: RandomModel) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return x0, noise, t and context of the one example, which both backends train on."""
    generator = torch.Generator().manual_seed(SEED)
    x0, noise = torch.randn(2, 1, *model.latent_shape, generator=generator).to(model.device).unbind(0)
    length, width = model.sizes["clip"]["max_length"], model.sizes["unet"]["context_dim"]
    context = torch.randn(1, length, width, generator=generator).to(model.device, model.dtype)
    return x0, noise, torch.tensor([TIME]), context


def our_step(model: RandomModel, pipe: StableDiffusion, direct: bool = False) -> Callable[[], Tensor]:
    """Return our training step, set up as in `sd.training.finetune.finetune`.

    direct: without Winograd's convolutions. It returns the gradients of every `up` matrix as one vector in fp32.
    """
    pipe.set_optimizations(TRAINABLE)
    pipe.optimize()
    settings = recipe(pipe)
    lora = LoraTraining(pipe, NAME, settings)
    if not direct:
        optimize_frozen(pipe, settings)
    patches = deltas_of(pipe.unet, NAME)
    downs = {name: patches[path].lora_down for path, name in unet_names(patches).items()}
    ups = {name: patches[path].lora_up for path, name in unet_names(patches).items()}
    initialize_downs(downs)
    x0, noise, t, context = example(model)
    weights = snr_weights()

    def loss(*_: object) -> Tensor:
        return prediction_errors(pipe.unet, x0, noise, t, context, weights).mean()

    trainer = Trainer(lora.module, loss, train_config(settings, "lora", pipe, world_size=1), rank=0, world_size=1)

    @torch.enable_grad()
    def turn() -> Tensor:
        trainer.step(0, torch.tensor([0]))
        return gradients(ups)

    return turn


def their_step(model: RandomModel) -> Callable[[], Tensor]:
    """Return the training step by diffusers and peft; it returns the same gradients as `our_step`."""
    from diffusers.training_utils import cast_training_params
    from peft import LoraConfig

    unet = diffusers_unet(model.unet, model.sizes).requires_grad_(False).train()
    others = (
        diffusers_vae(model.vae, model.sizes),
        diffusers_clip(model.clip, model.sizes),
    )  # in memory, as in their script
    unet.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, init_lora_weights="gaussian", target_modules=TARGETS))
    cast_training_params(unet, dtype=torch.float32)
    layers = {name: layer for name, layer in unet.named_modules() if hasattr(layer, "lora_A")}
    ups = {name: layer.lora_B["default"].weight for name, layer in layers.items()}
    initialize_downs({name: layer.lora_A["default"].weight for name, layer in layers.items()})
    x0, noise, t, context = example(model)
    trained = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, betas=(0.9, 0.999), weight_decay=0.01, eps=1e-8)

    @torch.enable_grad()
    def turn(held: object = others) -> Tensor:
        optimizer.zero_grad()
        with torch.autocast(model.device, torch.bfloat16, enabled=model.dtype == torch.bfloat16):
            noisy = SD1_SCHEDULE.add_noise(x0, noise, t).to(model.dtype)
            eps = unet(noisy, t.to(model.device), context, return_dict=False)[0]
            loss = F.mse_loss(eps.float(), noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        return gradients(ups)

    return turn


@torch.no_grad()
def initialize_downs(downs: dict[str, Tensor]) -> None:
    """Initialize the `down` matrices of both backends with the same random numbers, by diffusers' layer names.

    The `up` matrices are 0, as always.
    """
    generator = torch.Generator().manual_seed(SEED)
    for _, down in sorted(downs.items()):
        down.copy_(torch.randn(down.shape, generator=generator) / RANK)


def gradients(ups: dict[str, Tensor]) -> Tensor:
    return torch.cat([up.grad.flatten() for _, up in sorted(ups.items())])
