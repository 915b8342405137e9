"""The U-Net from nothing: latent diffusion on captions (Rombach et al. 2022, section 3.2 and 3.3)."""

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from sd.clip import CLIPTextModel
from sd.denoiser import Guidance
from sd.samplers import ddim
from sd.schedule import TIMES, sigma_list
from sd.tokenizer import Tokenizer
from sd.training.loop import Settings, keep, train
from sd.training.loss import eps_errors, snr_weights
from sd.training.pretrain.dataset import EmojiPictures
from sd.training.pretrain.train_vae import encode
from sd.unet import ResBlock, SpatialTransformer, UNetModel
from sd.utils.files import replacing, write_torch
from sd.utils.image_grid import grid
from sd.utils.images import from_tensor
from sd.vae import LATENT_SCALE, AutoencoderKL

EMPTY_CAPTIONS = 0.1  # the share of captions left out, so that the U-Net learns the unconditional picture too
STYLED_CAPTIONS = 0.8  # the share of captions that say the style
STYLE_ALONE = 0.05  # the share of captions that say nothing but the style, so that it is learnt apart from the names
EXACT_CAPTIONS = 0.4  # the share of captions in the first wording, "a red apple, noto emoji", which most prompts use
# An error in x0 weighs as much as the signal-to-noise ratio, within bounds. The upper one is Min-SNR's gamma (Hang
# et al. 2023). The lower one is for short trainings: without it, after 58,000 pictures, the estimate from noise was
# worse than the mean picture, so that the text had no say in the shapes.
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
    unet: UNetModel, run: Path, text: CLIPTextModel, vae: AutoencoderKL, pictures: EmojiPictures, settings: Settings
) -> UNetModel:
    """Latent diffusion: predict the noise in a noisy latent, given a caption (Rombach et al. 2022, eq. 3).

    The frozen text tower and autoencoder are run once over everything, before the first step, into `run/encoded.pt`.
    """
    captions = Captions(pictures)
    latents, states = encode_once(run, text, vae, pictures, captions.wordings, settings)
    weights = snr_weights(*X0_WEIGHTS)

    def loss(unet: UNetModel, indices: Tensor, generator: torch.Generator) -> Tensor:
        x0 = latents[indices]
        noise = torch.randn(x0.shape, generator=generator)
        # One time from each of B equal parts of 0..999: as random as before, with less variance in the sum.
        t = ((torch.arange(len(x0)) + torch.rand(len(x0), generator=generator)) * TIMES / len(x0)).long()
        context = states[captions.draw(indices, generator)].float()  # (B, 77, D)
        return eps_errors(unet, x0, noise, t, context, weights).mean()

    def on_save(unet: UNetModel, step: int) -> None:
        keep(unet, run)
        with settings.autocast():
            sheet(text, vae, unet, latents.shape[-1]).save(run / f"sheet-{step:06d}.png")

    return train(unet, loss, len(pictures), run, settings, on_save)


def new_unet(sizes: dict) -> UNetModel:
    """At random, but every branch's last layer is zero, as in LDM: at first each block only passes its input on."""
    unet = UNetModel(**sizes)
    last = [unet.out[2]]
    last += [module.out_layers[3] for module in unet.modules() if isinstance(module, ResBlock)]
    last += [module.proj_out for module in unet.modules() if isinstance(module, SpatialTransformer)]
    for layer in last:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    return unet


class Captions:
    """Every wording of every picture; each wording stands once in `wordings`, the empty one first."""

    def __init__(self, pictures: EmojiPictures):
        numbers = {"": 0}

        def number(captions: list[str]) -> list[int]:
            return [numbers.setdefault(caption, len(numbers)) for caption in captions]

        self.styled = [number(emoji.captions[: -len(emoji.plain_captions)]) for emoji in pictures.emoji]
        self.plain = [number(emoji.plain_captions) for emoji in pictures.emoji]
        self.style = number([emoji.style for emoji in pictures.emoji])
        self.wordings = list(numbers)

    def draw(self, indices: Tensor, generator: torch.Generator) -> list[int]:
        """For each picture the number of one wording: the empty one, the style alone, the name with it or without."""
        drawn = []
        for i in indices.tolist():
            short, styled, exact = torch.rand(3, generator=generator).tolist()
            wordings = self.styled[i] if styled < STYLED_CAPTIONS else self.plain[i]
            k = 0 if exact < EXACT_CAPTIONS else torch.randint(len(wordings), (), generator=generator).item()
            if short < EMPTY_CAPTIONS:
                drawn.append(0)
            elif short < EMPTY_CAPTIONS + STYLE_ALONE:
                drawn.append(self.style[i])
            else:
                drawn.append(wordings[k])
        return drawn


@torch.no_grad()
def encode_once(
    run: Path, text: CLIPTextModel, vae: AutoencoderKL, pictures: EmojiPictures, wordings: list[str], settings: Settings
) -> tuple[Tensor, Tensor]:
    """Scaled latents (N, 4, h, w) and, in bfloat16, text states (wordings, 77, D): made now or in an earlier go."""
    path = run / "encoded.pt"
    if not path.exists():
        with settings.autocast():
            latents = encode(vae, pictures).float() * LATENT_SCALE
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
    """A contact sheet of the prompts of SHEET, always from the same noise. side: of the latents."""
    tokenizer, device = Tokenizer(), unet.out[2].weight.device
    cond = text(tokenizer(list(SHEET)).to(device))
    uncond = text(tokenizer("").to(device)).expand_as(cond)
    sigmas = sigma_list(steps)
    noise = torch.randn(len(SHEET), 4, side, side, generator=torch.Generator().manual_seed(0)).to(device)
    x = noise * (1 + sigmas[0] ** 2) ** 0.5
    *_, (latent, _) = ddim(Guidance(unet, cond, uncond, guidance), x, sigmas, None)
    return grid(from_tensor(vae.decode(latent / LATENT_SCALE)))
