"""The figures of chapter 12: inpainting and a ControlNet as wrappers, and a second pass at twice the size."""

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sd.checkpoints.discovery import BUNDLED_CONTROLNET
from sd.control.controlled_unet import Control, ControlledUNet
from sd.control.controlnet import controlnet_from_unet
from sd.control.controlnet_files import load_controlnet
from sd.control.edges import canny
from sd.denoiser import Guidance, Inpaint
from sd.samplers import ddim
from sd.schedule import sigma_list
from sd.training.controlnet.edge_score import edge_f1
from sd.utils.images import to_tensor
from tour.figure import GUIDANCE, Figure, Models
from tour.images import encode_pictures, sheet_image
from tour.plots import image_rows

STEPS = 10
SHOWN = (0, 2, 4, 6, 8, 9)


def run(denoise, models: Models, seed: int) -> tuple[Tensor, list[Tensor], list[float]]:
    """Return the finished latent (1, 4, 16, 16), each step's estimate of it, and the sigmas."""
    sigmas = sigma_list(STEPS)
    x = models.noise(seed) * (1 + sigmas[0] ** 2) ** 0.5
    steps = list(ddim(denoise, x, sigmas, None))
    return steps[-1][0], [x0 for _, x0 in steps], sigmas


def inpainting(models: Models) -> Figure:
    """The estimates of x0 without and with `Inpaint` around the same guidance, from the same noise."""
    image = sheet_image("a house")
    latent = encode_pictures(models.vae, [image])
    mask = torch.zeros(1, 1, 16, 16)
    mask[:, :, :, 8:] = 1  # the right half is generated
    guidance = models.denoiser("a tree, fluent 3d emoji")
    plain, plain_steps, sigmas = run(guidance, models, 2)
    inpaint = Inpaint(guidance, latent, mask)
    finished, steps, _ = run(inpaint, models, 2)
    white = Image.fromarray(np.where(np.arange(128)[None, :, None] < 64, np.asarray(image), 190).astype(np.uint8))
    rows = {
        "without Inpaint": [white, *models.decode(torch.cat([plain_steps[k] for k in SHOWN]))],
        "with Inpaint": [white, *models.decode(torch.cat([steps[k] for k in SHOWN]))],
    }
    columns = ["kept half", *(f"x0 at\nsigma {sigmas[k]:.2f}" for k in SHOWN)]
    difference = (finished - latent).abs()
    numbers = {
        "kept": difference[..., :8].max().item(),
        "generated": difference[..., 8:].mean().item(),
        "plain": (plain - latent).abs()[..., :8].mean().item(),
    }
    alt = "Two rows of estimates: a tree alone, and a tree whose left half is that of a house."
    return Figure(image_rows(rows, columns, 100), numbers, alt)


def control_wrapper(models: Models) -> Figure:
    """A ControlNet around the U-Net, from the same noise: untrained it changes no number, trained it follows edges."""
    picture = sheet_image("a rocket")
    edges = canny(np.asarray(picture), 100, 200)
    hint = torch.from_numpy(edges)[None, None].expand(1, 3, -1, -1).float() / 255
    cond, uncond = models.context("a rocket, fluent 3d emoji"), models.context("")
    torch.manual_seed(0)  # of the hint's layers, which the U-Net does not have
    networks = {
        "untrained": controlnet_from_unet(models.unet, models.pipe.sizes["unet"]).requires_grad_(False),
        "trained": load_controlnet(BUNDLED_CONTROLNET, models.unet, models.pipe.sizes["unet"]).network,
    }
    unets: dict[str, Any] = {"U-Net": models.unet}
    for name, network in networks.items():
        unets[name] = ControlledUNet(models.unet, [Control(network, network.embed_hint(hint))], batch=1)
    latents = {name: run(Guidance(unet, cond, uncond, GUIDANCE), models, 4)[0] for name, unet in unets.items()}
    made = models.decode(torch.cat(list(latents.values())))
    columns = ["an image", "its edges, the hint", "U-Net", "ControlledUNet, untrained", "ControlledUNet, trained"]
    numbers = {
        "untrained": (latents["untrained"] - latents["U-Net"]).abs().max().item(),
        "edges": [edge_f1(canny(np.asarray(image), 100, 200), edges) for image in (made[0], made[-1])],
        "parameters": sum(one.numel() for one in networks["trained"].parameters()) / 1e6,
        "unet_parameters": sum(one.numel() for one in models.unet.parameters()) / 1e6,
    }
    alt = "A rocket, its edges, and three results: two that are equal, and a rocket with the edges of the first image."
    return Figure(image_rows({"": [picture, Image.fromarray(edges), *made]}, columns, 128), numbers, alt)


def two_passes(models: Models) -> Figure:
    """An image of twice the size the model was trained at: at once, and in two passes."""
    prompt, seed = "a red apple, fluent 3d emoji", 1
    options: dict[str, Any] = dict(seed=seed, steps=8, guidance_scale=GUIDANCE, sampler="dpmpp_2m")
    models.pipe.set_optimizations([])
    small = models.pipe(prompt, **options).images[0]
    double = models.pipe(prompt, **options, hires_scale=2.0, hires_strength=0.35).images[0]
    at_once = models.pipe(prompt, **options, width=256, height=256).images[0]
    enlarged = small.resize((256, 256), Image.Resampling.BICUBIC)
    columns = ["128 px, enlarged", "256 px at once", "two passes"]
    sharp = [sharpness(one) for one in (enlarged, at_once, double)]
    alt = "An apple of 128 pixels enlarged, one made at 256 pixels at once, and one made in two passes."
    return Figure(image_rows({"": [enlarged, at_once, double]}, columns, 256), {"sharpness": sharp}, alt)


def sharpness(image: Image.Image) -> float:
    """Return the mean difference of neighboring pixels, of 0 … 255."""
    pixels = to_tensor(image)[0] * 127.5
    return (pixels[:, :, 1:] - pixels[:, :, :-1]).abs().mean().item()


FIGURES = {"inpainting": inpainting, "control_wrapper": control_wrapper, "two_passes": two_passes}
