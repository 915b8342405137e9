"""Logging of a run: a progress bar, a file of JSON lines, and TensorBoard where it is installed."""

import json
import time
from contextlib import suppress
from pathlib import Path

from tqdm import tqdm

from sd.utils.files import replacing


class Logger:
    """Writes a progress bar, one JSON line every few steps, and TensorBoard scalars where TensorBoard is installed."""

    EVERY = 10

    def __init__(self, run: Path, step: int, steps: int, is_leader: bool):
        self.is_leader = is_leader
        if not is_leader:
            return
        run.mkdir(parents=True, exist_ok=True)
        path = run / "log.jsonl"
        lines = [line for line in read_log(path) if line["step"] <= step]  # steps after the checkpoint are repeated
        self.seconds = lines[-1]["seconds"] if lines else 0.0
        with replacing(path) as part:
            part.write_text("".join(to_json_line(line) for line in lines), encoding="utf-8")
        self.file = open(path, "a", buffering=1, encoding="utf-8")  # noqa: SIM115 - closed by close()
        self.bar = tqdm(total=steps, initial=step, unit="step", dynamic_ncols=True)
        self.writer = open_tensorboard(run)
        self.losses, self.examples, self.since = [], 0, time.monotonic()

    def add_step(self, step: int, loss: float, lr: float, examples: int, extra: dict | None = None) -> None:
        """Log one step.

        extra: more values to write, by name. A line with such values is written at once, other lines every few steps.
        """
        if not self.is_leader:
            return
        self.losses.append(loss)
        self.examples += examples
        self.bar.update()
        if step % self.EVERY == 0 or extra:
            now = time.monotonic()
            mean = sum(self.losses) / len(self.losses)
            elapsed = now - self.since
            self.seconds += elapsed
            line = {"step": step, "loss": round(mean, 6), "lr": lr, "seconds": round(self.seconds, 1)}
            line["examples_per_second"] = round(self.examples / elapsed, 1)
            line |= extra or {}
            self.file.write(to_json_line(line))
            self.bar.set_postfix(loss=f"{mean:.4f}", refresh=False)
            if self.writer is not None:
                for name, value in line.items():
                    if isinstance(value, float) and name != "seconds":
                        self.writer.add_scalar(name, value, step)
            self.losses, self.examples, self.since = [], 0, now

    def close(self) -> None:
        if self.is_leader:
            self.bar.close()
            with suppress(OSError):  # a full disk, which `add_step` has reported
                self.file.close()
            if self.writer is not None:
                self.writer.close()


def last_line(run: Path) -> dict:
    """Return the newest line of a run's log: step, loss, lr, seconds and examples_per_second."""
    return read_log(run / "log.jsonl")[-1]


def read_log(path: Path) -> list[dict]:
    """Return the lines of a log without those that a kill or a failing disk has damaged."""
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
        with suppress(json.JSONDecodeError):
            line = json.loads(text)
            if isinstance(line, dict) and isinstance(line.get("step"), int):
                lines.append({"seconds": 0.0} | line)
    return lines


def to_json_line(line: dict) -> str:
    return json.dumps(line, ensure_ascii=False) + "\n"


def open_tensorboard(run: Path):
    """Return a TensorBoard writer into `run`, or None where TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(run)
