"""A job that only counts, for tests of the queue. Without torch, so that another process starts quickly with it."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sd.pipeline.metadata.settings_infotext import to_infotext
from sd.utils.errors import UserError
from sd.web.jobs.job import Cancelled, Skipped

SECONDS = 0.02  # of a step of `fake_generate`


class Odd(Exception):
    pass


def count(job, tell):
    """request: steps, seconds (of each), then what to do: "user error", "break", "memory", "exit", "kill"."""
    request, skipped = job.request, 0
    steps = request.get("steps", 3)
    try:
        for step in range(1, steps + 1):
            time.sleep(request.get("seconds", 0))
            try:
                tell({"step": step, "steps": steps})
            except Skipped:
                skipped += 1
    except Cancelled:
        if request.get("keep"):  # as a training that saves itself does
            return {"files": [], "step": step}
        raise
    if request.get("record"):
        (job.folder / "made.txt").write_text("recorded")
        tell({"result": {"files": ["made.txt"]}})
    match request.get("do"):
        case "user error":
            raise UserError("the apple is blue: paint it red.")
        case "break":
            raise Odd("no such luck\nin two lines")
        case "memory":
            raise MemoryError
        case "exit":
            os._exit(3)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
    (job.folder / "made.txt").write_text(str(steps))
    return {"files": ["made.txt"], "skipped": skipped}


def save_and_die(job, tell):
    """Ends its process after one image is saved and before that is recorded, with another one half-written."""
    from PIL import Image

    from sd.utils.files import save_png

    text = "a red apple\nSteps: 1, Sampler: Euler, CFG scale: 7, Seed: 42, Size: 64x64"
    save_png(Image.new("RGB", (64, 64)), job.folder, text)
    (job.folder / f".00001.png.{os.getpid()}.part").write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)


def make_dying():
    return save_and_die


def fake_generate(job, tell):
    """As an `ImageGenerator`, at once: each image is one color, and 8 steps take `SECONDS` each."""
    from PIL import Image

    from sd.pipeline.settings import GenerationSettings
    from sd.utils.files import save_png

    settings = GenerationSettings(**job.request["settings"])
    result = {"files": [], "images": [], "seeds": [], "infotexts": [], "settings": vars(settings), "notes": []}
    try:
        for step in range(1, 9):
            time.sleep(SECONDS)
            tell({"step": step, "steps": 8})
    except Cancelled:
        return result
    for index, seed in enumerate(settings.seeds()):
        text = to_infotext(settings, index, "emoji", "0123456789", from_image=False)
        name = save_png(Image.new("RGB", (64, 64), (seed % 256, 90, 160)), job.folder, text).name
        for key, value in (("files", name), ("images", name), ("seeds", seed), ("infotexts", text)):
            result[key].append(value)
    return result


def job_events(jobs, id):
    """Yields the job, as `Job.public` has it, now and after each change until it has ended."""
    changed = threading.Event()
    with jobs.watch(id, changed.set):
        while True:
            changed.clear()
            snapshot, ended = jobs.snapshot(id)
            yield snapshot
            if ended:
                return
            changed.wait()


def make_counter():
    return count


def main():
    """A program that does jobs in `folder` until it is killed."""
    from sd.web.jobs.queue import Jobs

    jobs = Jobs(Path(sys.argv[1]), count)
    jobs.submit("count", {})
    list(job_events(jobs, jobs.list()[0].id))
    jobs.submit("count", {"steps": 1000, "seconds": 0.1})
    jobs.submit("count", {})
    print("begun", flush=True)
    time.sleep(600)


if __name__ == "__main__":
    main()
