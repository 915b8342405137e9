"""One step of teaching a LoRA, ours and diffusers': batch 1, latents and text states made beforehand.

Both: rank 4 on the queries, keys, values and outputs of all attention, the base frozen, AdamW, clipped gradients; the
adapter in fp32 and the base in the run's own precision. diffusers' train_text_to_image_lora.py has it so under
`--mixed_precision bf16`: what is frozen is cast to bf16, the adapter stays fp32, the forward pass is under autocast.
Of that script's steps only the U-Net's is done, which is in its favour: it encodes the texts anew in every step.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.diffusers_backend import peer_clip, peer_unet, peer_vae
from benchmarks.tasks import RANK, SEED, TIME, RandomModel
from sd.adapters.injection import deltas_of
from sd.checkpoints.diffusers_keys import unet_names
from sd.optimization.registry import TRAINABLE
from sd.pipeline.stable_diffusion import StableDiffusion
from sd.schedule import SD1_SCHEDULE
from sd.training.finetune.methods import LoraTraining
from sd.training.finetune.recipes import Recipe, recipe_for
from sd.training.finetune.setup import train_config
from sd.training.loop import Trainer
from sd.training.loss import eps_errors, snr_weights

NAME = "taught"
TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]


def recipe(pipe: StableDiffusion) -> Recipe:
    """Plain errors and a constant rate, as diffusers' script has them."""
    return recipe_for(
        "lora", pipe, NAME, rank=RANK, targets=("attention",), min_snr=0.0, schedule="constant", warmup=0, lr=1e-4
    )


def example(model: RandomModel) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x0, noise, t, context of the one example: the same for both sides."""
    generator = torch.Generator().manual_seed(SEED)
    x0, noise = torch.randn(2, 1, *model.latent_shape, generator=generator).to(model.device).unbind(0)
    length, width = model.sizes["clip"]["max_length"], model.sizes["unet"]["context_dim"]
    context = torch.randn(1, length, width, generator=generator).to(model.device, model.dtype)
    return x0, noise, torch.tensor([TIME]), context


def our_step(model: RandomModel, pipe: StableDiffusion) -> Callable[[], Tensor]:
    """As `sd.training.finetune.finetune.teach` sets it up. A turn gives the gradients of every `up` in a row, fp32."""
    pipe.set_optimizations(TRAINABLE)
    pipe.optimize()
    asked = recipe(pipe)
    lora = LoraTraining(pipe, NAME, asked)
    patches = deltas_of(pipe.unet, NAME)
    downs = {name: patches[path].lora_down for path, name in unet_names(patches).items()}
    ups = {name: patches[path].lora_up for path, name in unet_names(patches).items()}
    start(downs)
    x0, noise, t, context = example(model)
    weights = snr_weights()

    def loss(*_: object) -> Tensor:
        return eps_errors(pipe.unet, x0, noise, t, context, weights).mean()

    trainer = Trainer(lora.module, loss, train_config(asked, "lora", pipe, world_size=1), rank=0, world_size=1)

    @torch.enable_grad()
    def turn() -> Tensor:
        trainer.step(0, torch.tensor([0]))
        return gradients(ups)

    return turn


def their_step(model: RandomModel) -> Callable[[], Tensor]:
    """As `our_step`, by diffusers and peft."""
    from diffusers.training_utils import cast_training_params
    from peft import LoraConfig

    unet = peer_unet(model.unet, model.sizes).requires_grad_(False).train()
    others = peer_vae(model.vae, model.sizes), peer_clip(model.clip, model.sizes)  # their script holds them, as we do
    unet.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, init_lora_weights="gaussian", target_modules=TARGETS))
    cast_training_params(unet, dtype=torch.float32)
    layers = {name: layer for name, layer in unet.named_modules() if hasattr(layer, "lora_A")}
    ups = {name: layer.lora_B["default"].weight for name, layer in layers.items()}
    start({name: layer.lora_A["default"].weight for name, layer in layers.items()})
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
def start(downs: dict[str, Tensor]) -> None:
    """The same random numbers in both sides' `down`, by diffusers' names of the layers; `up` is 0, as ever."""
    generator = torch.Generator().manual_seed(SEED)
    for _, down in sorted(downs.items()):
        down.copy_(torch.randn(down.shape, generator=generator) / RANK)


def gradients(ups: dict[str, Tensor]) -> Tensor:
    return torch.cat([up.grad.flatten() for _, up in sorted(ups.items())])
