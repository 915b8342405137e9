"""What a run says of itself: a progress bar, a file of JSON lines, graphs in TensorBoard where that is installed."""

import json
import time
from pathlib import Path

from tqdm import tqdm


class Log:
    """A progress bar, one JSON line every few steps, and TensorBoard where it is installed."""

    EVERY = 10

    def __init__(self, run: Path, step: int, steps: int, leader: bool):
        self.leader = leader
        if not leader:
            return
        run.mkdir(parents=True, exist_ok=True)
        path = run / "log.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        kept = [line for line in lines if line["step"] <= step]  # what came after the checkpoint is undone
        self.seconds = kept[-1]["seconds"] if kept else 0.0
        self.file = open(path, "w", buffering=1)  # noqa: SIM115 - closed by close()
        self.file.writelines(json.dumps(line) + "\n" for line in kept)
        self.bar = tqdm(total=steps, initial=step, unit="step", dynamic_ncols=True)
        self.board = tensorboard(run)
        self.losses, self.examples, self.since = [], 0, time.monotonic()

    def add(self, step: int, loss: float, lr: float, examples: int) -> None:
        if not self.leader:
            return
        self.losses.append(loss)
        self.examples += examples
        self.bar.update()
        if step % self.EVERY == 0:
            now = time.monotonic()
            mean = sum(self.losses) / len(self.losses)
            took = now - self.since
            self.seconds += took
            line = {"step": step, "loss": round(mean, 6), "lr": lr, "seconds": round(self.seconds, 1)}
            line["examples_per_second"] = round(self.examples / took, 1)
            self.file.write(json.dumps(line) + "\n")
            self.bar.set_postfix(loss=f"{mean:.4f}", refresh=False)
            if self.board is not None:
                self.board.add_scalar("loss", mean, step)
                self.board.add_scalar("lr", lr, step)
            self.losses, self.examples, self.since = [], 0, now

    def close(self) -> None:
        if self.leader:
            self.bar.close()
            self.file.close()
            if self.board is not None:
                self.board.close()


def last_line(run: Path) -> dict:
    """The newest line of a run's log: step, loss, lr, seconds and examples_per_second."""
    return json.loads((run / "log.jsonl").read_text().splitlines()[-1])


def tensorboard(run: Path):
    """A writer into `run`, or None where TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(run)
