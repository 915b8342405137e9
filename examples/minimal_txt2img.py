"""Text to image with Stable Diffusion on one page: the networks from `sd/`, and every other step written out.

    python examples/minimal_txt2img.py "a red apple" apple.png

Tokenize, encode the text, start from noise, predict and remove the noise with classifier-free guidance, decode.
tests/project/test_examples.py compares the image with the pipeline's, pixel by pixel.
"""

import sys
from itertools import pairwise
from pathlib import Path

import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from sd.checkpoints.checkpoint import load_models
from sd.schedule import SD1_SCHEDULE, sigma_list
from sd.tokenizer import Tokenizer
from sd.vae import LATENT_SCALE


@torch.no_grad()
def generate(
    prompt, negative_prompt="", checkpoint=ROOT / "weights/emoji.safetensors", size=128, steps=30, scale=7.5, seed=0
):
    """Return one PIL image of `size` x `size` pixels, sampled with DDIM (Song et al. 2021, eq. 12) in `steps` steps."""
    clip, vae, unet, _ = load_models(checkpoint, torch.float32)

    # Each prompt becomes 77 token ids, then 77 vectors. Guidance moves away from the first and towards the second.
    context = clip(Tokenizer()([negative_prompt, prompt]))  # (2, 77, D)

    # The noise levels of the run, falling from 14.6 to 0.03. x holds the clean latent plus sigma times noise.
    sigmas = sigma_list(steps, to_zero=False)
    shape = (1, 4, size // vae.downsample, size // vae.downsample)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * (1 + sigmas[0] ** 2) ** 0.5

    for sigma, next_sigma in pairwise(sigmas):
        # The U-Net was trained on inputs of unit variance, and on the time step t that has this noise level.
        inputs = (x / (1 + sigma**2) ** 0.5).expand(2, -1, -1, -1)
        eps = unet(inputs, torch.full((2,), SD1_SCHEDULE.t_of(sigma)), context)
        uncond, cond = (x - sigma * eps).chunk(2)  # two estimates of the clean latent
        x0 = uncond + scale * (cond - uncond)  # classifier-free guidance (Ho & Salimans 2022, eq. 6)
        x = x0 + next_sigma / sigma * (x - x0)  # the same direction from x0, with less noise

    latent = x / (1 + sigmas[-1] ** 2) ** 0.5
    image = vae.decode(latent / LATENT_SCALE)[0]  # (3, size, size) in [-1, 1]
    pixels = ((image + 1) * 127.5).round().clamp(0, 255).byte()
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


if __name__ == "__main__":
    if len(sys.argv) > 3 or {"-h", "--help"} & set(sys.argv):
        sys.exit(__doc__)
    prompt, path = (*sys.argv[1:], *("a red apple", "apple.png")[len(sys.argv) - 1 :])
    generate(prompt).save(path)
    print(path)
