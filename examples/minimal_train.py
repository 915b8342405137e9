"""Train the U-Net of Stable Diffusion on one page: images to latents, noise, the U-Net's guess, its error, a step.

    python examples/minimal_train.py photos/ "a photo of sks dog" tuned.safetensors 200

Every weight of the U-Net is trained on all images of a folder with one caption (DreamBooth without its prior).
`scripts/train_*.py` add what a long run needs: resume, validation, averages, mixed precision, captions, small adapters.
"""

import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import ImageOps

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from sd.checkpoints.checkpoint import load_models, save_checkpoint
from sd.schedule import SD1_SCHEDULE
from sd.tokenizer import Tokenizer
from sd.utils.images import open_image, to_rgb
from sd.vae import LATENT_SCALE, sample_latent


def load_images(folder, size):
    """Return all images of a folder, cropped to `size` x `size` pixels: (N, 3, size, size) in [-1, 1]."""
    files = sorted(path for path in Path(folder).iterdir() if path.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp"))
    images = [ImageOps.fit(to_rgb(open_image(path)), (size, size)) for path in files]  # upright, in 8 bits
    return torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) / 127.5 - 1 for image in images])


def train(images, caption, checkpoint=ROOT / "weights/emoji.safetensors", steps=200, batch=4, lr=1e-5, seed=0):
    """Train on `images`, (N, 3, H, W) in [-1, 1]. Return the three networks, their source, and the losses."""
    clip, vae, unet, source = load_models(checkpoint, torch.float32)
    unet.train()
    optimizer = torch.optim.AdamW(unet.parameters(), lr=lr)
    generator = torch.Generator().manual_seed(seed)

    with torch.no_grad():  # the text encoder and the VAE are frozen, so each runs once
        mean, logvar = vae.encode(images)  # (N, 4, H/8, W/8) each
        context = clip(Tokenizer()(caption)).expand(batch, -1, -1)  # (batch, 77, D)

    losses = []
    for step in range(steps):
        chosen = torch.randint(len(images), (batch,), generator=generator)
        normal = torch.randn(mean[chosen].shape, generator=generator)
        x0 = LATENT_SCALE * sample_latent(mean[chosen], logvar[chosen], normal)
        noise = torch.randn(x0.shape, generator=generator)
        t = torch.randint(1000, (batch,), generator=generator)
        eps = unet(SD1_SCHEDULE.add_noise(x0, noise, t), t, context)  # DDPM (Ho et al. 2020), eq. 4
        loss = F.mse_loss(eps, noise)  # eq. 14
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        print(f"step {step + 1}/{steps}: loss {losses[-1]:.4f}")
    return clip, vae, unet, source, losses


if __name__ == "__main__":
    if len(sys.argv) not in (4, 5):
        sys.exit(__doc__)
    folder, caption, path, *steps = sys.argv[1:]
    clip, vae, unet, source, _ = train(load_images(folder, size=128), caption, steps=int(steps[0]) if steps else 200)
    print(path, save_checkpoint(path, clip, vae, unet, source.config))
