"""Write docs/benchmarks/performance.md: a table and a plot of ratios for every stored JSON file, newest first."""

import json
import statistics
from pathlib import Path

from benchmarks.report import COLUMNS, remark, results_of, table_rows, title_of
from benchmarks.results import Result
from benchmarks.tasks import TASKS

INTRODUCTION = """# Performance

`python scripts/bench.py` measures, `--keep` stores the results of the tasks on this machine as JSON, and `--report`
makes this page and its plots from all such files, those of earlier machines included.

Method: all backends have v1-5's networks with the same random weights, the same input and the same number of threads.
They run in one process and alternate, after one run each to warm up: ours, ours without patches, diffusers, diffusers
under `torch.compile`, OpenVINO, ours again, and so on. A ratio compares two runs of the same round, so that a drift of
the machine's speed affects both; the table gives the median, minimum and maximum. Below 1, ours is faster. "Of peak" is
the number of operations per second of the unpatched model, as a share of that of the fastest 4096 x 4096 matrix product
that was measured in between. Peak memory is VmHWM, the maximum of a separate process, including the files that it maps.
"Relative error" is that of the outputs against diffusers', in the 2-norm; guidance amplifies the rounding errors of
bf16, even more with random weights, for which two texts are nearly equal. "Ours, no patches" is the unpatched model in
the channels-last order that diffusers has here. OpenVINO has fixed sizes and the LATENCY hint and was converted
beforehand; `torch.compile` uses inductor, with freezing on a CPU. In a training step, both backends have the base model
in the run's precision, the adapter in fp32, and the same adapted layers.
"""
OTHER_COLOR = "#c44e52"
PLOT_LIMIT = 3.0  # upper limit of the plots: a run that another process disturbed may be far above it
COLORS = {
    "plain": "#4c72b0",
    "diffusers": "#dd8452",
    "compiled": "#55a868",
    "openvino": "#8172b3",
    "alone": "#dd8452",
    "threads": "#55a868",
}


def write_page(folder: Path) -> Path:
    """Write the page to FOLDER.md, and a plot next to each JSON file in the folder. Needs matplotlib."""
    for path, kept in result_files(folder):
        plot(results_of(kept), title(kept), path.with_suffix(".png"))
    target = folder.with_name(f"{folder.name}.md")
    target.write_text(page(folder), encoding="utf-8")
    return target


def result_files(folder: Path) -> list[tuple[Path, dict]]:
    """Return all JSON files with their contents, newest first."""
    files = [(path, json.loads(path.read_text(encoding="utf-8"))) for path in sorted(folder.glob("*.json"))]
    return sorted(files, key=lambda file: file[1]["date"], reverse=True)


def page(folder: Path) -> str:
    sections = [section(kept, f"{folder.name}/{path.stem}") for path, kept in result_files(folder)]
    return "\n".join([INTRODUCTION, *sections])


def title(kept: dict) -> str:
    options, machine = kept["options"], kept["machine"]
    size = f"{options['size']}x{options['size']}"
    what = "many prompts, bundled model" if list(kept["results"]) == ["many"] else size
    what += ", bundled model" * options.get("bundled", False) + f", batch {options.get('batch', 1)}" * (
        options.get("batch", 1) > 1
    )
    where = machine["gpu"] or f"{machine['processor']}, {machine['cores']} cores"
    return f"{options['dtype']}, {what}: {where}, {kept['date'][:10]}"


def section(kept: dict, stem: str) -> str:
    """Return the page's section of one JSON file. stem: the link to the JSON and the plot, without the suffix."""
    options, found = kept["options"], results_of(kept)
    table = ["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
    table += ["| " + " | ".join(row) + " |" for result in found for row in table_rows(result)]
    versions = ", ".join(f"{name} {number}" for name, number in kept["versions"].items() if number)
    details = [
        f"{options['rounds']} rounds, {options['threads']} threads, {options['steps']} steps per image",
        versions,
    ]
    details += [f"revision {kept['revision']}", ", ".join(kept["machine"]["abilities"])]
    if kept.get("load_before") is not None:  # absent from the oldest files
        details.append(f"load average {kept['load_before']:.1f} before the start")
    note = f"{'; '.join(filter(None, details))}. [All measurements]({stem}.json)"
    remarks = [text for text in map(remark, found) if text]
    plot = f"![Our time as a share of each other backend's]({stem}.png)"
    return "\n".join([f"## {title(kept)}", "", *table, "", *[f"{text}\n" for text in remarks], note, "", plot, ""])


def plot(results: list[Result], title: str, path: Path) -> None:
    """Plot a bar for each task and backend: the median of ours / backend, with a line from minimum to maximum."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    bars = [(result, backend) for result in results for backend in result.backends if backend != "ours"]
    figure, axis = pyplot.subplots(figsize=(9, 1.2 + 0.34 * len(bars)), layout="constrained")
    for place, (result, backend) in enumerate(bars):
        ratios = result.ratios(backend)
        middle = statistics.median(ratios)
        spread = [[middle - min(ratios)], [max(ratios) - middle]]
        axis.barh(place, middle, xerr=spread, color=COLORS.get(backend, OTHER_COLOR), ecolor="#333333", capsize=3)
        axis.text(min(max(ratios), 0.9 * PLOT_LIMIT), place, f"  {middle:.2f}", va="center", fontsize="small")
    names = [f"{TASKS[result.name].title} / {title_of(result.name, backend)}" for result, backend in bars]
    axis.set_yticks(range(len(bars)), names, fontsize="small")
    axis.invert_yaxis()
    axis.set_xlim(0, min(PLOT_LIMIT, 1.12 * max(max(result.ratios(backend)) for result, backend in bars)))
    axis.axvline(1, color="black", linestyle=":", linewidth=1)
    axis.set(title=title, xlabel="our time / time of the other backend\n(bars: median; lines: minimum and maximum)")
    axis.title.set_fontsize("medium")
    figure.savefig(path, dpi=100)
    pyplot.close(figure)
