"""The table of results on the terminal, and the JSON file of results."""

import importlib.metadata
import json
import os
import platform
import re
import statistics
import subprocess
from dataclasses import asdict, fields
from datetime import datetime, timezone
from functools import cache
from pathlib import Path

import torch

from benchmarks import multi_process
from benchmarks.backends import BACKENDS
from benchmarks.results import Result
from benchmarks.tasks import DEFAULT_TASKS, GUIDANCE, TASKS, Options, RandomModel
from sd.utils.errors import UserError

RESULTS_FOLDER = Path(__file__).resolve().parents[1] / "docs" / "benchmarks" / "performance"
VERSIONS = ("torch", "diffusers", "transformers", "accelerate", "peft", "openvino", "onnxruntime")
# The processor's relevant instruction sets, the best first: the first one is part of a file's name.
ABILITIES = {
    "amx_bf16": "amx",
    "amx_int8": "amx-int8",
    "avx512_fp16": "avx512-fp16",
    "avx512_bf16": "avx512-bf16",
    "avx512_vnni": "avx512-vnni",
    "avx512f": "avx512",
    "avx2": "avx2",
}
COLUMNS = ("", "backend", "median", "ours / backend (min, max)", "of peak", "relative error", "peak memory")
WIDTHS = (26, 44, 11, 28, 9, 16, 12)


def heading(names: list[str], options: Options) -> str:
    """Return the text above the table: the settings, and how to read the columns."""
    threads = options.threads or torch.get_num_threads()
    conditions = f"{options.dtype}, {threads} threads; {options.rounds} rounds; {options.steps} steps per image"
    if names == ["many"]:
        return f"{multi_process.IMAGES} images by the bundled model, {conditions}."
    size = RandomModel(options, "meta").size
    if options.bundled:
        conditions += "; networks of the bundled model's size"
    return (
        f"{size}x{size}, {conditions} (guidance {GUIDANCE}); one run of each backend to warm up.\n"
        "All backends have the same random weights. Ratios compare runs of the same round. Memory is the peak of a"
        " separate process that does only this task.\n"
        '"of peak": operations per second of the unpatched model, relative to a large matrix product. "relative error":'
        " of the outputs, relative to diffusers'."
    )


def load_note() -> str:
    """Return a note where the machine is busy, "" where it is idle."""
    load = load_before()
    if load is None or load < 0.5:
        return ""
    return (
        f"note: other processes use this machine (load average {load:.1f} on {os.cpu_count()} cores): ratios differ"
        " from those of an idle machine, because backends synchronize their threads to different degrees."
    )


def title_of(task: str, backend: str) -> str:
    return multi_process.BACKENDS[backend] if task == "many" else BACKENDS[backend].title


def table_rows(result: Result) -> list[tuple[str, ...]]:
    """Return a row of cells for each backend, in the order of COLUMNS; unavailable backends are last."""
    found: list[tuple[str, ...]] = []
    for backend in result.backends:
        ratios, share, peak = result.ratios(backend), result.share(backend), result.peak_bytes.get(backend)
        spread = f"{statistics.median(ratios):.3f} ({min(ratios):.3f}, {max(ratios):.3f})" if ratios else ""
        difference = f"{result.differences[backend]:.1e}" if backend in result.differences else ""
        found.append(
            (
                TASKS[result.name].title,
                title_of(result.name, backend),
                f"{result.median(backend):.3f} s",
                "" if backend == "ours" else spread,
                "" if share is None else f"{share:.0%}",
                difference,
                "" if peak is None else f"{peak / 1e9:.2f} GB",
            )
        )
    for backend, why in result.missing.items():
        found.append((TASKS[result.name].title, title_of(result.name, backend), why, "", "", "", ""))
    return found


def remark(result: Result) -> str:
    """Return the summary below a task's rows: the parallel efficiency of "many", "" for other tasks."""
    if result.name != "many":
        return ""
    shares = [1 / ratio for ratio in result.ratios("alone")]
    return (
        f"{multi_process.PROCESSES} processes reach {statistics.median(shares):.1%} ({min(shares):.1%} to"
        f" {max(shares):.1%}) of {multi_process.PROCESSES} times the throughput of one process alone."
    )


def format_rows(cells: list[tuple[str, ...]]) -> list[str]:
    """Return the rows as lines of text with aligned columns."""
    return ["".join(f"{cell:{width}}" for cell, width in zip(row, WIDTHS)).rstrip() for row in cells]


def report(results: list[Result], options: Options) -> dict:
    """Return the settings, the machine and all measurements of a run, for a JSON file."""
    own = {"ckpt": options.ckpt and options.ckpt.name, "threads": options.threads or torch.get_num_threads()}
    own |= {"size": RandomModel(options, "meta").size, "work": None}
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "revision": revision(),
        "machine": machine(),
        "load_before": load_before(),
        "versions": {name: version(name) for name in VERSIONS},
        "options": asdict(options) | own,
        "results": {result.name: asdict(result) | derived_figures(result) for result in results},
    }


def derived_figures(result: Result) -> dict:
    """Return the figures computed from the measurements, for readers of the JSON file."""
    return {
        "medians": {backend: result.median(backend) for backend in result.seconds},
        "ratios": {backend: result.ratios(backend) for backend in result.backends},
        "shares_of_peak": {backend: result.share(backend) for backend in result.backends},
    }


def results_of(kept: dict) -> list[Result]:
    """Return the measurements in the contents of a JSON file, the inverse of `report`."""
    names = {field.name for field in fields(Result)}
    return [Result(**{name: one[name] for name in one if name in names}) for one in kept["results"].values()]


def machine() -> dict:
    cpuinfo = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model = re.search(r"model name\s*:\s*(.+)", cpuinfo)
    flags = re.search(r"flags\s*:\s*(.+)", cpuinfo)
    return {
        "system": platform.platform(),
        "processor": model[1] if model else platform.processor(),
        "abilities": [flag for flag in ABILITIES if flags and flag in flags[1].split()],
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
    }


@cache
def load_before() -> float | None:
    """Return the load average of the minute before the first call, or None where the system has none."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def short_name(machine: dict) -> str:
    """Return a machine's name for file names, such as intel-xeon-amx-2-cores."""
    words = re.sub(r"\((r|tm)\)|\bcpu\b|\bprocessor\b|@.*", " ", (machine["gpu"] or machine["processor"]).lower())
    best = [ABILITIES[flag] for flag in machine["abilities"][:1]]
    cores = [] if machine["gpu"] else [*best, str(machine["cores"]), "cores"]
    return "-".join([*re.findall(r"[a-z0-9]+", words), *cores])


def results_path(names: list[str], options: Options) -> Path:
    """Return the path of the JSON file of these tasks on this machine, which replaces an earlier one."""
    own_size = RandomModel(options, "meta").sizes["image_size"]
    more = [] if tuple(names) == DEFAULT_TASKS else names
    more = ["bundled", *more] if options.bundled else more
    more = [*more, *[f"batch{options.batch}"] * (options.batch > 1)]
    more = [*more, *[f"{options.size}px"] * (options.size not in (None, own_size))]
    return RESULTS_FOLDER / f"{'-'.join([options.dtype, *more, short_name(machine())])}.json"


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def revision() -> str | None:
    """Return the git revision of this code, with `-dirty` where files differ from it; None outside of git."""
    command = ["git", "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def write_report(path: Path, results: list[Result], options: Options) -> None:
    try:
        path.write_text(json.dumps(report(results, options), indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}.") from error
