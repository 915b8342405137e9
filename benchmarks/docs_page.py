"""docs/benchmarks/performance.md: every kept file of figures, newest first, as a table and a plot of its ratios."""

import json
import statistics
from pathlib import Path

from benchmarks.report import COLUMNS, remark, results_of, rows, title_of
from benchmarks.results import Result
from benchmarks.tasks import TASKS

INTRODUCTION = """# Performance

`python scripts/bench.py` measures, `--keep` writes a file of figures for the task and the machine, and `--report` makes
this page and its plots from all such files; earlier machines' files stay.

How: all sides have v1-5's networks with the same random weights, the same input and threads, in one process, and take
turns after one each to warm up: ours, ours without patches, diffusers, diffusers under `torch.compile`, OpenVINO, ours
again, and so on. A ratio is of two turns of the same round, so the drift of a machine is in both; the table gives the
median with the least and the most. Below 1, ours is faster. "Of peak" is the operations of the textbook's model a
second, as a share of those of the best 4096 x 4096 matrix product that took its turns in between. Peak memory is
VmHWM, the most that a process of its own held, with the files that it maps. "Differs by" is of the answers, relative to
diffusers', in the 2-norm; guidance multiplies the roundings of bf16, the more so with random weights, for which two
texts are nearly one. "Ours, no patches" is the textbook's model, with the order of channels that diffusers has here.
OpenVINO has fixed sizes and the LATENCY hint and was converted beforehand; `torch.compile` has inductor, with freezing
on a CPU. In a training step both have the base in the run's precision, the adapter in fp32, and the same layers.
"""
OUR_OTHERS = "#c44e52"
MOST = 3.0  # where plots end: a turn that something else on the machine disturbed may go far beyond
COLOURS = {
    "plain": "#4c72b0",
    "diffusers": "#dd8452",
    "compiled": "#55a868",
    "openvino": "#8172b3",
    "alone": "#dd8452",
    "threads": "#55a868",
}


def write(folder: Path) -> Path:
    """folder.md beside the folder, and in it a PNG beside each JSON. Needs matplotlib."""
    for path, kept in kept_files(folder):
        plot(results_of(kept), title(kept), path.with_suffix(".png"))
    target = folder.with_name(f"{folder.name}.md")
    target.write_text(page(folder), encoding="utf-8")
    return target


def kept_files(folder: Path) -> list[tuple[Path, dict]]:
    """The newest first."""
    files = [(path, json.loads(path.read_text(encoding="utf-8"))) for path in sorted(folder.glob("*.json"))]
    return sorted(files, key=lambda file: file[1]["date"], reverse=True)


def page(folder: Path) -> str:
    sections = [section(kept, f"{folder.name}/{path.stem}") for path, kept in kept_files(folder)]
    return "\n".join([INTRODUCTION, *sections])


def title(kept: dict) -> str:
    options, machine = kept["options"], kept["machine"]
    size = f"{options['size']}x{options['size']}"
    what = "many prompts, bundled model" if list(kept["results"]) == ["many"] else size
    where = machine["gpu"] or f"{machine['processor']}, {machine['cores']} cores"
    return f"{options['dtype']}, {what}: {where}, {kept['date'][:10]}"


def section(kept: dict, stem: str) -> str:
    """stem: of the JSON and the plot, as the page links to them."""
    options, found = kept["options"], results_of(kept)
    table = ["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
    table += ["| " + " | ".join(row) + " |" for result in found for row in rows(result)]
    versions = ", ".join(f"{name} {number}" for name, number in kept["versions"].items() if number)
    said = [f"{options['rounds']} rounds, {options['threads']} threads, {options['steps']} steps a picture", versions]
    said += [f"revision {kept['revision']}", ", ".join(kept["machine"]["abilities"])]
    if kept.get("load_before") is not None:  # the first files do not say
        said.append(f"load {kept['load_before']:.1f} before it began")
    details = f"{'; '.join(filter(None, said))}. [Every turn]({stem}.json)"
    remarks = [text for text in map(remark, found) if text]
    plot = f"![Times of ours as a share of each other side's]({stem}.png)"
    return "\n".join([f"## {title(kept)}", "", *table, "", *[f"{text}\n" for text in remarks], details, "", plot, ""])


def plot(results: list[Result], title: str, path: Path) -> None:
    """A bar for each task and other side: the median of ours / side, with a line from the least to the most pair."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    bars = [(result, side) for result in results for side in result.sides if side != "ours"]
    figure, axis = pyplot.subplots(figsize=(9, 1.2 + 0.34 * len(bars)), layout="constrained")
    for place, (result, side) in enumerate(bars):
        ratios = result.ratios(side)
        middle = statistics.median(ratios)
        spread = [[middle - min(ratios)], [max(ratios) - middle]]
        axis.barh(place, middle, xerr=spread, color=COLOURS.get(side, OUR_OTHERS), ecolor="#333333", capsize=3)
        axis.text(min(max(ratios), 0.9 * MOST), place, f"  {middle:.2f}", va="center", fontsize="small")
    names = [f"{TASKS[result.name].title} / {title_of(result.name, side)}" for result, side in bars]
    axis.set_yticks(range(len(bars)), names, fontsize="small")
    axis.invert_yaxis()
    axis.set_xlim(0, min(MOST, 1.12 * max(max(result.ratios(side)) for result, side in bars)))
    axis.axvline(1, color="black", linestyle=":", linewidth=1)
    axis.set(title=title, xlabel="time of ours / time of the other side\n(bars: median; lines: least and most pair)")
    axis.title.set_fontsize("medium")
    figure.savefig(path, dpi=100)
    pyplot.close(figure)
