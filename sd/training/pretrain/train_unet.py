"""The U-Net from scratch: latent diffusion on captions (Rombach et al. 2022, section 3.2 and 3.3)."""

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from sd.clip import CLIPTextModel
from sd.denoiser import Guidance
from sd.samplers import ddim
from sd.schedule import TIMES, sigma_list
from sd.tokenizer import Tokenizer
from sd.training.loop import TrainConfig, save_model, train
from sd.training.loss import prediction_errors, snr_weights
from sd.training.pretrain.dataset import EmojiDataset
from sd.training.pretrain.train_vae import encode
from sd.unet import ResBlock, SpatialTransformer, UNetModel
from sd.utils.files import replacing, write_torch
from sd.utils.image_grid import grid
from sd.utils.images import from_tensor
from sd.vae import LATENT_SCALE, AutoencoderKL

EMPTY_CAPTIONS = 0.1  # fraction of empty captions, for classifier-free guidance
STYLED_CAPTIONS = 0.8  # fraction of captions with the style
STYLE_ALONE = 0.05  # fraction of captions with the style only, so that it is learned separately from the names
EXACT_CAPTIONS = 0.4  # fraction of captions in the first wording, "a red apple, noto emoji", which most prompts use
# The error in x0 is weighted by the signal-to-noise ratio, within bounds. The upper one is Min-SNR's gamma (Hang et al.
# 2023). The lower one is for short trainings: without it, after 58,000 images, the estimate from pure noise was worse
# than the mean image, so that the text had no influence on the shapes.
X0_WEIGHTS = (0.5, 5.0)
SHEET = (
    "a red apple, fluent 3d emoji",
    "a cat face, noto emoji",
    "a dog, fluent flat emoji",
    "a rocket, fxemoji",
    "a tree, fluent 3d emoji",
    "a house, fluent flat emoji",
    "a car, noto emoji",
    "a pizza, fxemoji",
    "a red apple",
    "the sun",
    "a red heart",
    "a fish",
    "a snowman",
    "a puppy",
    "a banana",
    "a ghost",
)


def train_unet(
    unet: UNetModel, run: Path, text: CLIPTextModel, vae: AutoencoderKL, dataset: EmojiDataset, settings: TrainConfig
) -> UNetModel:
    """Train the U-Net to predict the noise in a latent, given a caption (Rombach et al. 2022, eq. 3).

    The frozen text tower and VAE run once over the whole dataset before the first step, into `run/encoded.pt`.
    """
    captions = Captions(dataset)
    latents, states = encode_once(run, text, vae, dataset, captions.wordings, settings)
    weights = snr_weights(*X0_WEIGHTS)

    def loss(unet: UNetModel, indices: Tensor, generator: torch.Generator) -> Tensor:
        x0 = latents[indices]
        noise = torch.randn(x0.shape, generator=generator)
        # Stratified timesteps, one from each of B equal parts of 0..999: less variance in the sum.
        t = ((torch.arange(len(x0)) + torch.rand(len(x0), generator=generator)) * TIMES / len(x0)).long()
        context = states[captions.sample(indices, generator)].float()  # (B, 77, D)
        return prediction_errors(unet, x0, noise, t, context, weights).mean()

    def on_save(unet: UNetModel, step: int) -> None:
        save_model(unet, run)
        with settings.autocast():
            sheet(text, vae, unet, latents.shape[-1]).save(run / f"sheet-{step:06d}.png")

    return train(unet, loss, len(dataset), run, settings, on_save)


def new_unet(sizes: dict) -> UNetModel:
    """Return a random U-Net; as in LDM, branches end in a zero layer, so that blocks at first pass their input on."""
    unet = UNetModel(**sizes)
    last = [unet.out[2]]
    last += [module.out_layers[3] for module in unet.modules() if isinstance(module, ResBlock)]
    last += [module.proj_out for module in unet.modules() if isinstance(module, SpatialTransformer)]
    for layer in last:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    return unet


class Captions:
    """All captions of every image; each distinct one occurs once in `wordings`, the empty one first."""

    def __init__(self, dataset: EmojiDataset):
        numbers = {"": 0}

        def number(captions: list[str]) -> list[int]:
            return [numbers.setdefault(caption, len(numbers)) for caption in captions]

        self.styled = [number(emoji.captions[: -len(emoji.plain_captions)]) for emoji in dataset.emoji]
        self.plain = [number(emoji.plain_captions) for emoji in dataset.emoji]
        self.style = number([emoji.style for emoji in dataset.emoji])
        self.wordings = list(numbers)

    def sample(self, indices: Tensor, generator: torch.Generator) -> list[int]:
        """Return the number of one caption for each image: the empty one, the style alone, or the name with or without
        it.
        """
        decoded = []
        for i in indices.tolist():
            short, styled, exact = torch.rand(3, generator=generator).tolist()
            wordings = self.styled[i] if styled < STYLED_CAPTIONS else self.plain[i]
            k = 0 if exact < EXACT_CAPTIONS else int(torch.randint(len(wordings), (), generator=generator))
            if short < EMPTY_CAPTIONS:
                decoded.append(0)
            elif short < EMPTY_CAPTIONS + STYLE_ALONE:
                decoded.append(self.style[i])
            else:
                decoded.append(wordings[k])
        return decoded


@torch.no_grad()
def encode_once(
    run: Path,
    text: CLIPTextModel,
    vae: AutoencoderKL,
    dataset: EmojiDataset,
    wordings: list[str],
    settings: TrainConfig,
) -> tuple[Tensor, Tensor]:
    """Return scaled latents (N, 4, h, w) and text states (wordings, 77, D) in bfloat16, computed now or in an earlier
    run.
    """
    path = run / "encoded.pt"
    if not path.exists():
        with settings.autocast():
            latents = encode(vae, dataset).float() * LATENT_SCALE
            tokens = Tokenizer()(wordings).to(settings.device)
            states = torch.cat([text(part).bfloat16().cpu() for part in tokens.split(256)])
        with replacing(path) as part:
            write_torch({"latents": latents, "states": states}, part)
    saved = torch.load(path, weights_only=True)
    return saved["latents"], saved["states"]


@torch.no_grad()
def sheet(
    text: CLIPTextModel, vae: AutoencoderKL, unet: UNetModel, side: int, steps: int = 20, guidance: float = 4.0
) -> Image.Image:
    """Return a contact sheet of the prompts of SHEET, always from the same noise. side: of the latents."""
    tokenizer, device = Tokenizer(), unet.out[2].weight.device
    cond = text(tokenizer(list(SHEET)).to(device))
    uncond = text(tokenizer("").to(device)).expand_as(cond)
    sigmas = sigma_list(steps)
    noise = torch.randn(len(SHEET), 4, side, side, generator=torch.Generator().manual_seed(0)).to(device)
    x = noise * (1 + sigmas[0] ** 2) ** 0.5
    *_, (latent, _) = ddim(Guidance(unet, cond, uncond, guidance), x, sigmas, None)
    return grid(from_tensor(vae.decode(latent / LATENT_SCALE)))
