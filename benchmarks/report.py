"""A table to read and a JSON file to keep."""

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

from benchmarks import multi_process as many
from benchmarks.backends import BACKENDS
from benchmarks.results import Result
from benchmarks.tasks import DRAWING, GUIDANCE, TASKS, Options, RandomModel
from sd.utils.errors import UserError

KEPT = Path(__file__).resolve().parents[1] / "docs" / "benchmarks" / "performance"
VERSIONS = ("torch", "diffusers", "transformers", "accelerate", "peft", "openvino")
# What a processor has for such work, the best first: the first one is part of a file's name.
ABILITIES = {
    "amx_bf16": "amx",
    "amx_int8": "amx-int8",
    "avx512_fp16": "avx512-fp16",
    "avx512_bf16": "avx512-bf16",
    "avx512_vnni": "avx512-vnni",
    "avx512f": "avx512",
    "avx2": "avx2",
}
COLUMNS = ("", "side", "median", "ours / side (least, most)", "of peak", "differs by", "peak memory")
WIDTHS = (24, 44, 11, 28, 9, 12, 12)


def heading(names: list[str], options: Options) -> str:
    """What the table's figures are of."""
    threads = options.threads or torch.get_num_threads()
    said = f"{options.dtype}, {threads} threads; {options.rounds} rounds in turn; {options.steps} steps a picture"
    if names == ["many"]:
        return f"{many.PICTURES} pictures by the bundled model, {said}."
    size = RandomModel(options, "meta").size
    return (
        f"{size}x{size}, {said} (guidance {GUIDANCE}); one turn each to warm up.\n"
        "All sides have the same random weights. Ratios are of turns that follow each other. Memory is the peak of a"
        " process that does the one thing.\n"
        '"of peak": the operations of the textbook\'s model a second beside those of a large matrix product. "differs'
        " by\": of the answers, relative to diffusers'."
    )


def warning() -> str:
    """What to say beforehand on a busy machine, "" on an idle one."""
    load = load_before()
    if load is None or load < 0.5:
        return ""
    return (
        f"note: something else keeps this machine busy (load {load:.1f} on {os.cpu_count()} cores): ratios are not"
        " those of an idle one, since some sides' threads wait for one another more than others' do."
    )


def title_of(task: str, side: str) -> str:
    return many.BACKENDS[side] if task == "many" else BACKENDS[side].title


def rows(result: Result) -> list[tuple[str, ...]]:
    """A row for each side, those that are missing last: as many cells as there are COLUMNS."""
    found: list[tuple[str, ...]] = []
    for side in result.sides:
        ratios, share, peak = result.ratios(side), result.share(side), result.peak_bytes.get(side)
        spread = f"{statistics.median(ratios):.3f} ({min(ratios):.3f}, {max(ratios):.3f})" if ratios else ""
        difference = f"{result.differences[side]:.1e}" if side in result.differences else ""
        found.append(
            (
                TASKS[result.name].title,
                title_of(result.name, side),
                f"{result.median(side):.3f} s",
                "" if side == "ours" else spread,
                "" if share is None else f"{share:.0%}",
                difference,
                "" if peak is None else f"{peak / 1e9:.2f} GB",
            )
        )
    for side, why in result.missing.items():
        found.append((TASKS[result.name].title, title_of(result.name, side), why, "", "", "", ""))
    return found


def remark(result: Result) -> str:
    """What the figures of a task come to, where that is not plain from them; "" elsewhere."""
    if result.name != "many":
        return ""
    shares = [1 / ratio for ratio in result.ratios("alone")]
    return (
        f"{many.PROCESSES} processes draw {statistics.median(shares):.1%} ({min(shares):.1%} to {max(shares):.1%}) of"
        f" {many.PROCESSES} times what one draws alone."
    )


def lines(cells: list[tuple[str, ...]]) -> list[str]:
    """Rows of the table, as wide as a terminal likes them."""
    return ["".join(f"{cell:{width}}" for cell, width in zip(row, WIDTHS)).rstrip() for row in cells]


def report(results: list[Result], options: Options) -> dict:
    """All there is to know about a run, for a JSON file."""
    own = {"ckpt": options.ckpt and options.ckpt.name, "threads": options.threads or torch.get_num_threads()}
    own |= {"size": RandomModel(options, "meta").size, "work": None}
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "revision": revision(),
        "machine": machine(),
        "load_before": load_before(),
        "versions": {name: version(name) for name in VERSIONS},
        "options": asdict(options) | own,
        "results": {result.name: asdict(result) | follows(result) for result in results},
    }


def follows(result: Result) -> dict:
    """What other programs need not work out again."""
    return {
        "medians": {side: result.median(side) for side in result.seconds},
        "ratios": {side: result.ratios(side) for side in result.sides},
        "shares_of_peak": {side: result.share(side) for side in result.sides},
    }


def results_of(kept: dict) -> list[Result]:
    """The other way round."""
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
    """How many processes wanted a core in the minute before the first call; a system may not say."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def short_name(machine: dict) -> str:
    """Of a machine, for the name of a file: intel-xeon-amx-2-cores."""
    words = re.sub(r"\((r|tm)\)|\bcpu\b|\bprocessor\b|@.*", " ", (machine["gpu"] or machine["processor"]).lower())
    best = [ABILITIES[flag] for flag in machine["abilities"][:1]]
    cores = [] if machine["gpu"] else [*best, str(machine["cores"]), "cores"]
    return "-".join([*re.findall(r"[a-z0-9]+", words), *cores])


def kept_path(names: list[str], options: Options) -> Path:
    """Where the figures of these tasks on this machine are kept, over earlier ones of the same."""
    own_size = RandomModel(options, "meta").sizes["image_size"]
    more = [] if tuple(names) == DRAWING else names
    more = [*more, *[f"{options.size}px"] * (options.size not in (None, own_size))]
    return KEPT / f"{'-'.join([options.dtype, *more, short_name(machine())])}.json"


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def revision() -> str | None:
    """The git revision of this code, with `-dirty` where files have changed since; None outside of git."""
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
