"""Measure at how many steps each sampler reaches the quality of 50 steps of DDPM, with the bundled model."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sd.evaluation.clip_score import Scorer
from sd.evaluation.confidence import MeanCI, mean_with_ci
from sd.pipeline.stable_diffusion import StableDiffusion
from sd.samplers import SAMPLERS
from sd.training.pretrain.dataset import Emoji, EmojiDataset
from sd.training.pretrain.evaluate import features_of_all, generate_images, nearest_shares
from sd.utils.images import from_tensor

REFERENCE = ("ddpm", 50)
STEPS = (5, 8, 10, 15, 20, 30, 50)
EXCLUDED = ("lcm", "euler_a")  # lcm needs a special model; euler_a equals ddpm
GUIDANCE = 3.0  # the bundled model's best scale, see weights/README.md


@dataclass
class Row:
    """The figures of one sampler at a number of steps, over the same prompts and seeds as the others.

    calls: of the U-Net, per image. right: the share of images whose nearest image of the dataset has the prompt's name.
    clip_t_change: the mean of pairwise differences to the reference; None for the reference itself.
    """

    sampler: str
    steps: int
    calls: int
    right: float
    clip_t: MeanCI
    clip_t_change: MeanCI | None = None

    def reaches(self, reference: "Row") -> bool:
        """Return whether the row is not significantly worse than the reference.

        The share of right names is at most one standard error lower, and the confidence interval of CLIP-T's change
        contains 0 or lies above it.
        """
        error = (2 * reference.right * (1 - reference.right) / reference.clip_t.count) ** 0.5
        change = self.clip_t_change
        return self.right >= reference.right - error and (change is None or change.value + change.half_width >= 0)


def measure(
    pipe: StableDiffusion,
    scorer: Scorer,
    wanted: list[Emoji],
    dataset: EmojiDataset,
    samplers: list[str],
    steps: tuple[int, ...] = STEPS,
    on_row: Callable[[Row], None] | None = None,
) -> list[Row]:
    """Measure every sampler at every number of steps, the reference first.

    wanted: the emoji to generate, the k-th with seed k. dataset: all candidates for the nearest image.
    """
    prompts = [emoji.captions[0] for emoji in wanted]
    texts, dataset_features, exact, rows = scorer.embed_texts(prompts), features_of_all(dataset), None, []
    pairs = [REFERENCE] + [(s, n) for s in samplers for n in steps if (s, n) != REFERENCE]
    for sampler, count in pairs:
        calls = CountCalls(pipe)
        generated = generate_images(pipe, prompts, sampler=sampler, steps=count, guidance_scale=GUIDANCE)
        values = (scorer.embed_images(from_tensor(generated)) * texts).sum(dim=1)
        exact = values if exact is None else exact
        change = None if exact is values else mean_with_ci(values - exact)
        right = nearest_shares(generated, wanted, dataset.emoji, dataset_features)["name"]
        rows.append(Row(sampler, count, calls.stop() // len(wanted), right, mean_with_ci(values), change))
        if on_row is not None:
            on_row(rows[-1])
    return rows


class CountCalls:
    """Counts the calls of the U-Net's last layer until `stop`."""

    def __init__(self, pipe: StableDiffusion):
        self.count = 0
        self.handle = pipe.unet.out.register_forward_pre_hook(self.add)

    def add(self, *_: object) -> None:
        self.count += 1

    def stop(self) -> int:
        self.handle.remove()
        return self.count


def table(rows: list[Row]) -> str:
    """Return Markdown: an explanation, then a table with a row for each sampler and a column for each step count."""
    reference, counts = rows[0], sorted({row.steps for row in rows})
    lines = ["| sampler | " + " | ".join(map(str, counts)) + " | enough |", "|---" * (len(counts) + 2) + "|"]
    for sampler in dict.fromkeys(row.sampler for row in rows):
        own = {row.steps: row for row in rows if row.sampler == sampler}
        enough = [row for _, row in sorted(own.items()) if row.reaches(reference)]
        cells = [cell(own.get(count), reference) for count in counts]
        least = f"{enough[0].steps} steps, {enough[0].calls} calls" if enough else "none"
        lines.append(f"| {SAMPLERS[sampler].label} | " + " | ".join(cells) + f" | {least} |")
    how = "By sampler and steps: images with the right name, and CLIP-T, over the same prompts and seeds. Bold: no "
    how += f"significant difference from 50 DDPM steps (n = {reference.clip_t.count}); `enough` is the first bold one."
    return "\n".join([how, "", *lines])


def cell(row: Row | None, reference: Row) -> str:
    if row is None:
        return ""
    text = f"{row.right:.0%}, {row.clip_t.value:.3f}"
    return f"**{text}**" if row.reaches(reference) else text


def plot(rows: list[Row], path: Path) -> None:
    """Plot both figures over the calls of the U-Net, a line for each sampler. Needs matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
    for title, axis, value in (
        ("images with the right name", axes[0], lambda row: row.right),
        ("CLIP-T", axes[1], lambda row: row.clip_t.value),
    ):
        for sampler in dict.fromkeys(row.sampler for row in rows):
            own = sorted((row for row in rows if row.sampler == sampler), key=lambda row: row.calls)
            calls, values = [row.calls for row in own], [value(row) for row in own]
            axis.plot(calls, values, marker="o", label=SAMPLERS[sampler].label)
        axis.axhline(value(rows[0]), color="black", linestyle=":", linewidth=1)
        axis.set(title=title, xlabel="calls of the U-Net", xscale="log")
        axis.set_xticks([5, 10, 20, 50, 100], ["5", "10", "20", "50", "100"])
    axes[1].legend(fontsize="small")
    figure.savefig(path, dpi=100)
    pyplot.close(figure)
