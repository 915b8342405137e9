"""The figures of chapter 5: feature maps of the blocks, missing skip connections, and the two epsilons of GroupNorm."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from PIL import Image
from torch import Tensor, nn

from sd.schedule import SD1_SCHEDULE
from sd.unet import SpatialTransformer, UNetModel
from sd.vae import LATENT_SCALE
from tour.figure import Figure, Models
from tour.plots import BLUE, GRAY, GREEN, ORANGE, Axes, image_rows, principal_plane

PROMPT, SEED = "a house, noto emoji", 3
TIMES = (900, 500, 100)
SHOWN = ("input_blocks.0", "input_blocks.1", "input_blocks.3", "input_blocks.5", "middle_block")
SHOWN_UP = ("output_blocks.1", "output_blocks.3", "output_blocks.5")
EPSILONS = (1e-5, 1e-6)


@contextmanager
def recording(unet: UNetModel, names: tuple[str, ...]) -> Iterator[dict[str, Tensor]]:
    """Store the latest output of some modules, by their names, while the block runs."""
    outputs: dict[str, Tensor] = {}

    def recorder(name: str):
        return lambda module, inputs, output: outputs.update({name: output})

    hooks = [unet.get_submodule(name).register_forward_hook(recorder(name)) for name in names]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


def feature_maps(models: Models) -> Figure:
    """Outputs of blocks for one noisy latent at three times; the three colors are the three largest components."""
    x0, noise = models.generate(PROMPT, SEED), models.noise(4)
    denoise = models.denoiser(PROMPT, scale=1)
    rows, sizes = {}, {}
    for t in TIMES:
        sigma = SD1_SCHEDULE.sigmas[t].item()
        x = x0 + sigma * noise
        with recording(models.unet, SHOWN + SHOWN_UP) as outputs:
            estimate = denoise(x, sigma)
        sizes = {name: list(output.shape[1:]) for name, output in outputs.items()}
        maps = [in_colors(outputs[name][0]) for name in SHOWN + SHOWN_UP]
        rows[f"t = {t}"] = [*models.decode(x / (1 + sigma**2) ** 0.5), *maps, *models.decode(estimate)]
    columns = ["x", *(short_name(name) for name in SHOWN + SHOWN_UP), "x0"]
    notes = ["", *("x".join(map(str, sizes[name])) for name in SHOWN + SHOWN_UP), ""]
    alt = (
        "Three rows of feature maps. The first map shows noise, with a house in it at low noise, the 4 x 4 maps a "
        "few colored cells, and out 3 the smooth outline of a house at all three times."
    )
    numbers = {"shapes": [sizes[name] for name in SHOWN + SHOWN_UP], "times": list(TIMES)}
    return Figure(image_rows(rows, columns, 84, notes), numbers, alt)


def short_name(name: str) -> str:
    return name.replace("_blocks.", " ").replace("input", "in").replace("output", "out").replace("_block", "")


def in_colors(features: Tensor) -> Image.Image:
    """Return features (C, h, w) as an image: their three largest principal components as red, green and blue."""
    points = features.flatten(1).T  # (h * w, C)
    mean, directions = principal_plane(points, 3)
    colors = (points - mean) @ directions
    colors = 0.5 + colors / (4 * colors.std(dim=0))  # two standard deviations each way
    pixels = (colors.clamp(0, 1) * 255).round().byte().reshape(*features.shape[1:], 3)
    return Image.fromarray(pixels.numpy())


@contextmanager
def without_skip(unet: UNetModel, index: int) -> Iterator[None]:
    """Replace the skip connection into `output_blocks[index]` with zeros while the block runs."""
    block = unet.output_blocks[index]
    from_below = (unet.output_blocks[index - 1] if index else unet.middle_block)[0].out_layers[-1].out_channels

    def cut(module: nn.Module, inputs: tuple) -> tuple:
        x = inputs[0].clone()
        x[:, from_below:] = 0  # the concatenation is [from below, skip]
        return x, *inputs[1:]

    hook = block.register_forward_pre_hook(cut)
    try:
        yield
    finally:
        hook.remove()


def skips_removed(models: Models) -> Figure:
    """One image with all skip connections, and once without each of them, from the same noise."""
    whole = models.generate(PROMPT, SEED, steps=10)
    latents, changes = [whole], []
    for index in range(len(models.unet.output_blocks)):
        with without_skip(models.unet, index):
            latents.append(models.generate(PROMPT, SEED, steps=10))
        changes.append(((latents[-1] - whole).square().mean() / whole.var()).sqrt().item())
    sides = [4, 4, 8, 8, 16, 16]
    columns = ["all skips", *(f"without {side}x{side}" for side in sides)]
    notes = ["0", *(f"{change:.2f}" for change in changes)]
    image = image_rows({"": models.decode(torch.cat(latents))}, columns, 112, notes)
    alt = (
        "Seven images of a house. Without one of the first five skips it stays a house with other details; without "
        "the last one it is colored noise with dark traces of a roof."
    )
    return Figure(image, {"changes": changes, "sides": sides}, alt)


def epsilons(models: Models) -> Figure:
    """The variances that the norms see, and the change of the output if all norms of a kind get the other epsilon."""
    kinds = norms_by_kind(models)
    x0 = models.generate(PROMPT, SEED)
    variances = group_variances(models, kinds, x0)
    edges = [10 ** (-7 + i / 2) for i in range(21)]
    axes = Axes((1e-7, 1e3), (0, 0.9), "", "variance v of a group", "", x_log=True, size=(660, 320))
    effect = [1 - ((v + 1e-6) / (v + 1e-5)) ** 0.5 for v in edges]
    axes.line(edges, effect, GRAY, "what 1e-5 instead of 1e-6 takes off the norm's output", width=3)
    for (name, values), color in zip(variances.items(), (BLUE, ORANGE, GREEN)):
        axes.bars(edges, torch.histc(values.log10(), 20, -7, 3) / len(values), color, f"share of groups: {name}")
    numbers = {
        "least": [values.min().item() for values in variances.values()],
        "median": [values.median().item() for values in variances.values()],
        "change": [change_by_epsilon(models, norms, x0) for norms in kinds.values()],
        "kinds": list(kinds),
        "effect": [effect[i] for i in (2, 4, 6, 14)],  # at v = 1e-6, 1e-5, 1e-4 and 1
    }
    alt = (
        "A curve that falls from 0.67 at a variance of 1e-7 to nothing at 1e-3, and three histograms of variances, "
        "all above 0.1, where the curve is zero."
    )
    return Figure(axes.render("top right"), numbers, alt)


def norms_by_kind(models: Models) -> dict[str, list[nn.GroupNorm]]:
    """Return the GroupNorms of the U-Net's ResBlocks, of its transformers, and of the VAE's decoder."""
    transformers = [one.norm for one in models.unet.modules() if isinstance(one, SpatialTransformer)]
    of_unet = [one for one in models.unet.modules() if isinstance(one, nn.GroupNorm)]
    return {
        "U-Net, ResBlocks (1e-5)": [norm for norm in of_unet if all(norm is not one for one in transformers)],
        "U-Net, transformers (1e-6)": transformers,
        "VAE (1e-6)": [one for one in models.vae.decoder.modules() if isinstance(one, nn.GroupNorm)],
    }


def run_all(models: Models, x0: Tensor) -> tuple[Tensor, Tensor]:
    """Return the U-Net's eps at t = 500, and the decoder's image, of one latent."""
    noisy = SD1_SCHEDULE.add_noise(x0, models.noise(4), torch.tensor([500]))
    return models.unet(noisy, torch.tensor([500.0]), models.context(PROMPT)), models.vae.decode(x0 / LATENT_SCALE)


def group_variances(models: Models, kinds: dict[str, list[nn.GroupNorm]], x0: Tensor) -> dict[str, Tensor]:
    """Return, for each kind, the variances of all groups of all its norms."""
    found: dict[str, list[Tensor]] = {name: [] for name in kinds}

    def recorder(name: str):
        return lambda module, inputs: found[name].append(inputs[0][0].unflatten(0, (32, -1)).flatten(1).var(dim=1))

    hooks = [norm.register_forward_pre_hook(recorder(name)) for name, norms in kinds.items() for norm in norms]
    try:
        run_all(models, x0)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: torch.cat(values) for name, values in found.items()}


def change_by_epsilon(models: Models, norms: list[nn.GroupNorm], x0: Tensor) -> float:
    """Return the relative change of the outputs if these norms get the other epsilon; they are restored."""
    before, eps = run_all(models, x0), norms[0].eps
    try:
        for norm in norms:
            norm.eps = sum(EPSILONS) - eps
        after = run_all(models, x0)
    finally:
        for norm in norms:
            norm.eps = eps
    return max(((new - old).norm() / old.norm()).item() for new, old in zip(after, before))


FIGURES = {"feature_maps": feature_maps, "skips_removed": skips_removed, "epsilons": epsilons}
