"""A table to read and a JSON file to keep."""

import importlib.metadata
import json
import os
import platform
import re
import statistics
import subprocess
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path

import torch

from sd.benchmark.measure import Result
from sd.benchmark.peers import PACKAGES
from sd.benchmark.tasks import GUIDANCE, TASKS, Options, RandomModel
from sd.errors import UserError


def heading(options: Options) -> str:
    """What the table's figures are of."""
    size = RandomModel(options, "meta").size
    threads = options.threads or torch.get_num_threads()
    return (
        f"{size}x{size}, {options.dtype}, {threads} threads; {options.rounds} rounds in turn after one to warm up;"
        f" {options.steps} steps a picture (ddim, guidance {GUIDANCE}).\n"
        "Both sides have the same random weights and channels-last convolutions. Memory is the peak of a process that"
        " does the one thing.\n"
        '"of peak": our operations a second beside those of a large matrix product. "differ by": of the answers,'
        " relative."
    )


COLUMNS = f"{'':22}{'ours':>10}{'diffusers':>12}   {'ours/diffusers (least, most)':30}{'of peak':>8}{'differ by':>11}"


def lines(result: Result) -> list[str]:
    """A result's rows of the table: its time, and its memory where that was measured."""
    title = TASKS[result.name].title
    theirs = f"{result.median('diffusers'):10.3f} s" if "diffusers" in result.seconds else ""
    ratios, share = result.ratios(), result.share("ours")
    pairs = f"{statistics.median(ratios):.3f} ({min(ratios):.3f}, {max(ratios):.3f})" if ratios else ""
    of_peak = "" if share is None else f"{share:.0%}"
    difference = "" if result.difference is None else f"{result.difference:.1e}"
    rows = [f"{title:22}{result.median('ours'):8.3f} s{theirs:>12}   {pairs:30}{of_peak:>8}{difference:>11}"]
    peaks = [peak for peak in result.peak_bytes.values() if peak is not None]
    if peaks:
        values = "".join(f"{peak / 1e9:{width}.2f} GB" for peak, width in zip(peaks, (7, 9)))
        ratio = f"{peaks[0] / peaks[1]:.3f}" if len(peaks) == 2 else ""
        rows.append(f"{title + ', memory':22}{values}   {ratio}".rstrip())
    return rows


def report(results: list[Result], options: Options) -> dict:
    """All there is to know about a run, for a JSON file."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "revision": revision(),
        "machine": machine(),
        "versions": {name: version(name) for name in ("torch", *PACKAGES)},
        "options": asdict(options) | {"ckpt": options.ckpt and options.ckpt.name, "threads": torch.get_num_threads()},
        "results": {
            result.name: asdict(result) | {"ratios": result.ratios(), "share_of_peak": result.share("ours")}
            for result in results
        },
    }


def machine() -> dict:
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text()) if cpuinfo.exists() else None
    return {
        "system": platform.platform(),
        "processor": found[1] if found else platform.processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
    }


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
