"""The U-Net trained on scenes, with cross-attention at the finest level too, and the text tower with a small learning
rate.

Latent diffusion trains its text encoder jointly with the U-Net (Rombach et al. 2022, section 3.3). Here the encoder was
trained on captions before, so it uses a small fraction of the learning rate, or stays frozen.
"""

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from sd.clip import CLIPTextModel
from sd.denoiser import Guidance
from sd.samplers import dpmpp_2m
from sd.schedule import TIMES, sigma_list
from sd.tokenizer import Tokenizer
from sd.training.loop import TrainConfig, save_model, train
from sd.training.loss import prediction_errors, snr_weights
from sd.training.pretrain import run as pretrain_run
from sd.training.pretrain.scene_latents import WORDINGS, SceneLatents
from sd.training.pretrain.scenes.sheets import captioned_sheet
from sd.training.pretrain.train_unet import EMPTY_CAPTIONS, STYLE_ALONE, X0_WEIGHTS, new_unet
from sd.unet import UNetModel
from sd.utils.images import from_tensor
from sd.vae import LATENT_SCALE, AutoencoderKL

# Two heads rather than eight: at 64 channels eight heads have 8 channels each, and on a CPU their attention at 16 x 16
# takes half of a training step.
UNET_SIZES = pretrain_run.SIZES["unet"] | {"attention_levels": [0, 1, 2], "num_heads": 2}
SIZES = pretrain_run.SIZES | {"unet": UNET_SIZES}
SHEET = (
    "a blue apple", "a purple star", "a green car", "a pink elephant", "two hearts", "three stars", "four trees",
    "two bananas", "a cat and a dog", "a flower and a mushroom", "a cat left of a tree", "a star above a house",
    "a red car and a blue heart", "a dog in the snow", "a castle at night", "a red apple, fluent 3d emoji",
)  # fmt: skip


def widened_unet(shipped: dict[str, Tensor]) -> UNetModel:
    """Return a U-Net of UNET_SIZES with the shipped weights: new blocks pass their input on.

    Where the shipped one has more heads, training first has to repair its attention.
    """
    unet = new_unet(UNET_SIZES)
    missing, unexpected = unet.load_state_dict(shipped, strict=False)
    new = {key.split(".transformer_blocks")[0] for key in missing}
    if unexpected or not all(key.split(".")[2] == "1" for key in new):
        raise ValueError(f"these weights belong to another U-Net: {sorted(unexpected) or sorted(new)}")
    return unet


def train_scene_unet(
    unet: UNetModel, text: CLIPTextModel, vae: AutoencoderKL, run: Path, data: SceneLatents, settings: TrainConfig,
    compiled: bool = False,
) -> nn.Module:  # fmt: skip
    """Train the U-Net to predict the noise in a scene's latent, given one of its captions (Rombach et al. 2022,
    equation 3).

    `settings.lr_multipliers["text"]` is the text tower's fraction of the learning rate; with 0 it stays frozen.
    compiled: use `torch.compile`, which needs a C++ compiler and takes minutes at the start.
    """
    tokenizer, weights = Tokenizer(), snr_weights(*X0_WEIGHTS)
    trains_text = settings.lr_multipliers.get("text", 0) > 0
    text.requires_grad_(trains_text)
    networks = nn.ModuleDict({"unet": unet, "text": text})
    denoise = torch.compile(unet) if compiled else unet

    def loss(networks: nn.ModuleDict, indices: Tensor, generator: torch.Generator) -> Tensor:
        x0 = data.latents[indices].float()
        noise = torch.randn(x0.shape, generator=generator)
        # Stratified timesteps, one from each of B equal parts of 0..999: less variance in the sum.
        t = ((torch.arange(len(x0)) + torch.rand(len(x0), generator=generator)) * TIMES / len(x0)).long()
        tokens = tokenizer(sample_captions(data, indices, generator)).to(settings.device)
        with torch.set_grad_enabled(trains_text and torch.is_grad_enabled()):
            context = networks["text"](tokens)  # (B, 77, D)
        return prediction_errors(denoise, x0, noise, t, context, weights).mean()

    def on_save(networks: nn.ModuleDict, step: int) -> None:
        for name in ("unet", "text"):
            (run / name).mkdir(exist_ok=True)
            save_model(networks[name], run / name)
        seen = step * settings.batch * settings.accumulate
        sheet(networks["text"], vae, networks["unet"], data.latents.shape[-1]).save(run / f"sheet-{seen:08d}.png")

    return train(networks, loss, len(data), run, settings, on_save)


def sample_captions(data: SceneLatents, indices: Tensor, generator: torch.Generator) -> list[str]:
    """Return one caption for each scene, sometimes the empty one or the style alone."""
    captions = []
    for i in indices.tolist():
        short = torch.rand((), generator=generator).item()
        k = int(torch.randint(WORDINGS, (), generator=generator))
        if short < EMPTY_CAPTIONS:
            captions.append("")
        else:
            captions.append(data.styles[i] if short < EMPTY_CAPTIONS + STYLE_ALONE else data.captions[i][k])
    return captions


@torch.no_grad()
def sample_images(
    text: CLIPTextModel, vae: AutoencoderKL, unet: UNetModel, prompts: list[str], seeds: list[int], side: int,
    steps: int = 16, guidance: float = 4.0,
) -> Tensor:  # fmt: skip
    """Return one image for each prompt from the noise of its seed: (B, 3, H, W) in [-1, 1]. side: of the latents."""
    tokenizer, device = Tokenizer(), unet.out[2].weight.device
    cond = text(tokenizer(prompts).to(device))
    uncond = text(tokenizer("").to(device)).expand_as(cond)
    sigmas = sigma_list(steps)
    noise = [torch.randn(4, side, side, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    x = torch.stack(noise).to(device) * (1 + sigmas[0] ** 2) ** 0.5
    *_, (latent, _) = dpmpp_2m(Guidance(unet, cond, uncond, guidance), x, sigmas, None)
    return vae.decode(latent / LATENT_SCALE).clamp(-1, 1).cpu()


def sheet(text: CLIPTextModel, vae: AutoencoderKL, unet: UNetModel, side: int) -> Image.Image:
    """Return a sheet of the prompts of SHEET with captions, always from the same noise."""
    images = sample_images(text, vae, unet, list(SHEET), list(range(len(SHEET))), side)
    return captioned_sheet(from_tensor(images), list(SHEET), columns=8)
