"""Fifty clients, malformed requests beside them, and random kills of the server and its worker; run by hand.

    python tests/web/kill_server.py --jobs 2000 --kills 20

The server is whole, with the page, except that its worker paints one color for each seed. At the end every job that was
accepted is there and has ended, every image belongs to its job and is listed by the API, and no answer was 5xx.
"""

import argparse
import http.client
import io
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS.parent)]

import fake_jobs  # noqa: E402

CLIENTS, IMAGES = 50, 2
PATIENCE = 300  # seconds for the server to start again
ROUTES = (
    *("/jobs", "/sdapi/v1/txt2img", "/sdapi/v1/img2img", "/sdapi/v1/png-info", "/sdapi/v1/options", "/jobs/x/events"),
    *("/sdapi/v1/embeddings", "/sdapi/v1/extra-single-image", "/controlnet/detect", "/internal/progress", "/config"),
    *("/gradio_api/queue/join", "/gradio_api/queue/data", "/gradio_api/upload", "/gradio_api/file=/etc/passwd", "/"),
    *("/gradio_api/proxy=http://127.0.0.1", "/gradio_api/call/x", "/gradio_api/info", "/gradio_api/cancel", "/login"),
    *("/gradio_api/heartbeat/x", "/gradio_api/startup-events", "/theme.css", "/static/%00", "/assets/..%2f..", "/%ff"),
)


def make_painter():
    """What the worker runs: images of one color by the seed, at once."""
    fake_jobs.SECONDS = 0.002
    return fake_jobs.fake_generate


def serve(port: int, folder: Path) -> None:
    import uvicorn

    from sd.web.jobs.model_index import Models
    from sd.web.jobs.queue import Jobs
    from sd.web.jobs.worker import WorkerProcess
    from sd.web.server import Server, create_app, read_outside

    models = Models(*(folder / name for name in ("weights", "loras", "embeddings")))
    read_outside(models)
    jobs = Jobs(folder / "jobs", WorkerProcess(make_painter))
    config = uvicorn.Config(create_app(jobs, models), host="127.0.0.1", port=port, log_level="critical")
    Server(config, jobs).run()


def free_port() -> int:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


class Attack:
    """A server, its clients, and what they saw. count: jobs to be accepted."""

    def __init__(self, folder: Path, count: int, seed: int):
        self.folder, self.count, self.chance = folder, count, random.Random(seed)
        self.port, self.lock = free_port(), threading.Lock()
        self.accepted: dict[str, int] = {}  # a job's id -> its seed
        self.statuses: Counter[int] = Counter()
        self.fives: list[str] = []
        self.malformed = 0
        self.done = threading.Event()
        self.start()

    def start(self) -> None:
        command = [sys.executable, __file__, "--serve", str(self.port), str(self.folder)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            with suppress(OSError, http.client.HTTPException):
                if self.ask("GET", "/jobs")[0] == 200:
                    return
            time.sleep(0.3)
        raise SystemExit("the server does not start")

    def ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            connection.request(method, path, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            data = b"" if "event-stream" in (answer.getheader("Content-Type") or "") else answer.read()
        finally:
            connection.close()
        with self.lock:
            self.statuses[answer.status] += 1
            if answer.status >= 500:
                self.fives.append(f"{answer.status} {method} {path}: {data[:200]!r}")
        return answer.status, data

    def client(self, number: int) -> None:
        chance = random.Random(number)
        while not self.done.is_set():
            if len(self.accepted) >= self.count:
                return
            seed = chance.randrange(1 << 30)
            body = {"prompt": f"job {seed}", "seed": seed, "num_images": IMAGES, "width": 64, "height": 64, "steps": 8}
            try:
                status, data = self.ask("POST", "/jobs", json.dumps(body).encode())
                if status != 202:
                    time.sleep(0.5)
                    continue
                id = json.loads(data)["id"]
                with self.lock:
                    self.accepted[id] = seed
                while json.loads(self.ask("GET", f"/jobs/{id}")[1])["state"] in ("queued", "running"):
                    time.sleep(1)
            except (OSError, http.client.HTTPException):  # the server was killed
                time.sleep(1)

    def send_nonsense(self) -> None:
        chance = random.Random(99)
        while not self.done.is_set():
            path = chance.choice(ROUTES) + chance.choice(("", "", "?session_hash=x", f"?{quote(os.urandom(9))}"))
            body = chance.choice((None, b"{", b"[]", b'{"prompt": "\\ud83c"}', b'{"data": [[[[', chance.randbytes(300),
                                  b'{"prompt": 1e999}', b'{"image": "AAAA"}', b'{"data": [null]}'))  # fmt: skip
            with suppress(OSError, http.client.HTTPException):
                self.ask(chance.choice(("GET", "POST", "PUT", "DELETE")), path, body)
                self.malformed += 1
            time.sleep(0.2)

    def worker(self) -> int | None:
        """Returns the id of a process of the server's: the worker, or the reader of files."""
        children = []
        for thread in Path(f"/proc/{self.process.pid}/task").glob("*/children"):
            with suppress(OSError):
                children += [int(child) for child in thread.read_text().split()]
        found = []
        for child in sorted(children):
            with suppress(OSError):
                if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                    found.append(child)
        return self.chance.choice(found) if found else None

    def kill(self, of_server: bool) -> str:
        if not of_server:
            if worker := self.worker():
                with suppress(ProcessLookupError):
                    os.kill(worker, signal.SIGKILL)
            return "worker"
        self.process.kill()
        self.process.wait()
        self.start()
        return "server"

    def run(self, kills: int) -> Counter[str]:
        threads = [threading.Thread(target=self.client, args=[number]) for number in range(CLIENTS)]
        nonsense = threading.Thread(target=self.send_nonsense)
        for thread in (*threads, nonsense):
            thread.start()
        killed: Counter[str] = Counter()
        for number in range(kills):
            while len(self.accepted) < self.count * (number + 0.5) / kills and any(
                map(threading.Thread.is_alive, threads)
            ):
                time.sleep(0.2)
            time.sleep(self.chance.uniform(0, 1))
            killed[self.kill(of_server=number % 3 == 2)] += 1
            print(f"{len(self.accepted)} jobs accepted, {number + 1} kills, {time.strftime('%H:%M:%S')}", flush=True)
        for thread in threads:
            thread.join()
        self.done.set()
        nonsense.join()
        return killed

    def check(self) -> dict[str, int]:
        """Returns counts of what must be 0, and the states of the jobs."""
        from PIL import Image

        states: Counter[str] = Counter()
        wrong = Counter(lost=0, unended=0, mixed=0, unlisted=0)
        for id, seed in self.accepted.items():
            status, data = self.ask("GET", f"/jobs/{id}")
            if status != 200:
                wrong["lost"] += 1
                continue
            job = json.loads(data)
            states[job["state"]] += 1
            wrong["unended"] += job["state"] in ("queued", "running")
            listed = (job.get("result") or {}).get("images", [])
            on_disk = {path.name for path in (self.folder / "jobs" / id).glob("*.png")} - {"preview.png"}
            wrong["unlisted"] += len(on_disk - set(listed))
            wrong["lost"] += job["state"] == "done" and len(listed) != IMAGES
            for index, name in enumerate(listed):
                image = Image.open(io.BytesIO(self.ask("GET", f"/jobs/{id}/files/{name}")[1]))
                text = image.info["parameters"]
                right = f"job {seed}\n" in text and f"Seed: {seed + index}," in text
                wrong["mixed"] += not right or image.convert("RGB").getpixel((0, 0))[0] != (seed + index) % 256
        return {**wrong, **states}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=2000, help="jobs to be accepted (default: 2000)")
    parser.add_argument("--kills", type=int, default=20, help="kills; every third is the server's (default: 20)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    parser.add_argument("--serve", nargs=2, metavar=("PORT", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(int(args.serve[0]), Path(args.serve[1]))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        attack = Attack(Path(folder), args.jobs, args.seed)
        try:
            killed = attack.run(args.kills)
            found = attack.check()
        finally:
            attack.done.set()
            attack.process.kill()
            attack.process.wait()
    print(f"{len(attack.accepted)} jobs of {CLIENTS} clients, {attack.malformed} malformed ones; kills: {dict(killed)}")
    print(f"{found}; statuses {dict(sorted(attack.statuses.items()))}")
    print("\n".join(attack.fives[:20]))
    return 1 if attack.fives or any(found[name] for name in ("lost", "unended", "mixed", "unlisted")) else 0


if __name__ == "__main__":
    sys.exit(main())
