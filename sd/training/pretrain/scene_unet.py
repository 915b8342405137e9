"""The U-Net trained on scenes, from the shipped one. The text tower is frozen: it knows these captions already."""

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from sd.clip import CLIPTextModel
from sd.denoiser import Guidance
from sd.samplers import SAMPLERS
from sd.schedule import SD1_SCHEDULE, TIMES, sigma_list
from sd.tokenizer import Tokenizer
from sd.training.loop import TrainConfig, save_model, train
from sd.training.loss import prediction_errors, snr_weights
from sd.training.pretrain.scene_latents import WORDINGS, SceneLatents
from sd.training.pretrain.scenes.attention_loss import MAX_PHRASES, AttentionLoss, box_masks, collecting, find_tokens
from sd.training.pretrain.scenes.sheets import captioned_sheet
from sd.training.pretrain.train_unet import EMPTY_CAPTIONS, STYLE_ALONE, X0_WEIGHTS
from sd.unet import UNetModel
from sd.utils.device import rank_and_world_size
from sd.utils.images import from_tensor
from sd.vae import LATENT_SCALE, AutoencoderKL

ATTENTION_WEIGHT = 0.05  # of the attention's loss, some 0.7 at first, beside the noise's, some 0.2
SHEET = (
    "a blue apple", "a purple star", "a green car", "a pink elephant", "two hearts", "three stars", "four trees",
    "two bananas", "a cat and a dog", "a flower and a mushroom", "a cat left of a tree", "a star above a house",
    "a red car and a blue heart", "a dog in the snow", "a castle at night", "a red apple, fluent 3d emoji",
)  # fmt: skip


def train_scene_unet(
    unet: UNetModel, text: CLIPTextModel, vae: AutoencoderKL, run: Path, data: SceneLatents, settings: TrainConfig,
    teacher: UNetModel,
) -> nn.Module:  # fmt: skip
    """Train the U-Net to predict the noise in a scene's latent, given one of its captions (Rombach et al. 2022,
    equation 3), and to attend to the words of each object where it is (`attention_loss`).

    teacher: the shipped U-Net, which has learned single emoji. Its prediction is the target for these.
    """
    states, weights = TextStates(text), snr_weights(*X0_WEIGHTS)
    attention, tokenizer = AttentionLoss(), states.tokenizer

    def loss(unet: UNetModel, indices: Tensor, generator: torch.Generator) -> Tensor:
        x0 = data.latents[indices].float()
        noise = torch.randn(x0.shape, generator=generator)
        # Stratified timesteps, one from each of B equal parts of 0..999: less variance in the sum.
        t = ((torch.arange(len(x0)) + torch.rand(len(x0), generator=generator)) * TIMES / len(x0)).long()
        captions = sample_captions(data, indices, generator)
        # The earlier in sampling, the less an object's place is decided.
        attention.expect(*attention_targets(data, indices, captions, tokenizer), 1 - t / TIMES)
        context = states(captions)
        single = torch.tensor([not data.phrases[index] for index in indices.tolist()])
        target = noise_targets(teacher, x0, noise, t, context, single)
        with collecting(unet, attention):
            errors = prediction_errors(unet, x0, noise, t, context, weights, target=target)
        return errors.mean() + ATTENTION_WEIGHT * attention.value()

    def on_save(unet: UNetModel, step: int) -> None:
        save_model(unet, run)
        seen = step * settings.batch * settings.accumulate * rank_and_world_size()[1]
        sheet(text, vae, unet, data.latents.shape[-1]).save(run / f"sheet-{seen:08d}.png")

    return train(unet, loss, len(data), run, settings, on_save)


@torch.no_grad()
def noise_targets(teacher: UNetModel, x0: Tensor, noise: Tensor, t: Tensor, context: Tensor, single: Tensor) -> Tensor:
    """Return the noise (B, 4, h, w), with the teacher's prediction of it where `single` (B,) is true.

    The prediction is the mean of all noise that the noisy latent can have, so that learning from it has the same goal
    as learning from the noise, with less variance in the gradient.
    """
    if not single.any():
        return noise
    device, target = context.device, noise.clone()
    x = SD1_SCHEDULE.add_noise(x0[single], noise[single], t[single])
    target[single] = teacher(x.to(device), t[single].to(device), context[single.to(device)]).float().cpu()
    return target


def attention_targets(
    data: SceneLatents, indices: Tensor, captions: list[str], tokenizer: Tokenizer
) -> tuple[Tensor, Tensor]:
    """Return which tokens of each caption belong to each phrase (B, K, 77), and where its objects are (B, K, h, w)."""
    cells = data.latents.shape[-1]
    members = torch.zeros(len(captions), MAX_PHRASES, 77)
    masks = torch.zeros(len(captions), MAX_PHRASES, cells, cells)
    for i, (index, caption) in enumerate(zip(indices.tolist(), captions)):
        tokens = tokenizer.encode(caption)
        for k, (phrase, boxes) in enumerate(data.phrases[index]):
            places = find_tokens(tokens, tokenizer.encode(phrase))
            if places is not None:
                members[i, k, [1 + place for place in places]] = 1  # after the start token
                masks[i, k] = box_masks(boxes, cells)
    return members, masks


class TextStates:
    """The states of captions from a frozen text tower, each computed at its first use and kept in bfloat16."""

    def __init__(self, text: CLIPTextModel):
        self.text, self.tokenizer = text, Tokenizer()
        self.kept: dict[str, Tensor] = {}  # (77, D), by caption

    @torch.no_grad()
    def __call__(self, captions: list[str]) -> Tensor:
        """Return (B, 77, D) in the precision of the text tower."""
        new = sorted(set(captions) - self.kept.keys())
        weight = self.text.final_layer_norm.weight
        if new:
            states = self.text(self.tokenizer(new).to(weight.device))
            self.kept |= zip(new, states.to(torch.bfloat16))
        return torch.stack([self.kept[caption] for caption in captions]).to(weight.dtype)


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
    steps: int = 16, guidance: float = 4.0, sampler: str = "dpmpp_2m",
) -> Tensor:  # fmt: skip
    """Return one image for each prompt from the noise of its seed: (B, 3, H, W) in [-1, 1]. side: of the latents."""
    tokenizer, device = Tokenizer(), unet.out[2].weight.device
    cond = text(tokenizer(prompts).to(device))
    uncond = text(tokenizer("").to(device)).expand_as(cond)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def noise() -> Tensor:
        return torch.stack([torch.randn(4, side, side, generator=one) for one in generators]).to(device)

    run, _, to_zero, schedule = SAMPLERS[sampler]
    sigmas = sigma_list(steps, schedule, to_zero)
    x = noise() * (1 + sigmas[0] ** 2) ** 0.5
    *_, (latent, _) = run(Guidance(unet, cond, uncond, guidance), x, sigmas, noise)
    return vae.decode(latent / LATENT_SCALE).clamp(-1, 1).cpu()


def sheet(text: CLIPTextModel, vae: AutoencoderKL, unet: UNetModel, side: int) -> Image.Image:
    """Return a sheet of the prompts of SHEET with captions, always from the same noise."""
    images = sample_images(text, vae, unet, list(SHEET), list(range(len(SHEET))), side)
    return captioned_sheet(from_tensor(images), list(SHEET), columns=8)
