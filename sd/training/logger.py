"""What a run says of itself: a progress bar, a file of JSON lines, graphs in TensorBoard where that is installed."""

import json
import time
from contextlib import suppress
from pathlib import Path

from tqdm import tqdm

from sd.utils.files import replacing


class Log:
    """A progress bar, one JSON line every few steps, and TensorBoard where it is installed."""

    EVERY = 10

    def __init__(self, run: Path, step: int, steps: int, leader: bool):
        self.leader = leader
        if not leader:
            return
        run.mkdir(parents=True, exist_ok=True)
        path = run / "log.jsonl"
        kept = [line for line in lines_of(path) if line["step"] <= step]  # what came after the checkpoint is undone
        self.seconds = kept[-1]["seconds"] if kept else 0.0
        with replacing(path) as part:
            part.write_text("".join(written(line) for line in kept), encoding="utf-8")
        self.file = open(path, "a", buffering=1, encoding="utf-8")  # noqa: SIM115 - closed by close()
        self.bar = tqdm(total=steps, initial=step, unit="step", dynamic_ncols=True)
        self.board = tensorboard(run)
        self.losses, self.examples, self.since = [], 0, time.monotonic()

    def add(self, step: int, loss: float, lr: float, examples: int, measures: dict | None = None) -> None:
        """One step. measures: more to write, by name; a line is then written at once, or else every few steps."""
        if not self.leader:
            return
        self.losses.append(loss)
        self.examples += examples
        self.bar.update()
        if step % self.EVERY == 0 or measures:
            now = time.monotonic()
            mean = sum(self.losses) / len(self.losses)
            took = now - self.since
            self.seconds += took
            line = {"step": step, "loss": round(mean, 6), "lr": lr, "seconds": round(self.seconds, 1)}
            line["examples_per_second"] = round(self.examples / took, 1)
            line |= measures or {}
            self.file.write(written(line))
            self.bar.set_postfix(loss=f"{mean:.4f}", refresh=False)
            if self.board is not None:
                for name, value in line.items():
                    if isinstance(value, float) and name != "seconds":
                        self.board.add_scalar(name, value, step)
            self.losses, self.examples, self.since = [], 0, now

    def close(self) -> None:
        if self.leader:
            self.bar.close()
            with suppress(OSError):  # a full disk, which `add` has told of
                self.file.close()
            if self.board is not None:
                self.board.close()


def last_line(run: Path) -> dict:
    """The newest line of a run's log: step, loss, lr, seconds and examples_per_second."""
    return lines_of(run / "log.jsonl")[-1]


def lines_of(path: Path) -> list[dict]:
    """A log's lines, but for those that a kill or a failing disk has spoilt."""
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
        with suppress(json.JSONDecodeError):
            line = json.loads(text)
            if isinstance(line, dict) and isinstance(line.get("step"), int):
                lines.append({"seconds": 0.0} | line)
    return lines


def written(line: dict) -> str:
    return json.dumps(line, ensure_ascii=False) + "\n"


def tensorboard(run: Path):
    """A writer into `run`, or None where TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(run)
