"""Fifty clients at once on the bundled model. LOAD_SECONDS=120 for as long as a release is tried."""

import base64
import hashlib
import json
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from web.test_server import server

SECONDS = float(os.environ.get("LOAD_SECONDS", "10"))
CLIENTS, SEEDS = 50, 5
SLOW = 0.2  # seconds for /progress to answer, in 99 cases of 100
SLOWEST = 1.0  # seconds, in any: what others do on a shared machine is in it
GROWTH = 50 << 10  # KiB that server and worker may grow by: an allocator's breath, less than a leak at each job makes


def memory(pid: int) -> int:
    """Resident, in KiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


class Crowd:
    """What the clients saw."""

    def __init__(self, running):
        self.running = running
        self.until = time.monotonic() + SECONDS
        self.lock = threading.Lock()
        self.together = threading.Barrier(CLIENTS)
        self.images: dict[int, set[str]] = {}
        self.answers: list[int] = []
        self.memories: list[int] = []

    def generate(self, seed: int) -> None:
        body = {"prompt": "a red apple", "steps": 2, "seed": seed}
        status, answer = self.running.ask("POST", "/sdapi/v1/txt2img", body)
        with self.lock:
            self.answers.append(status)
            if status == 200:
                digest = hashlib.sha256(base64.b64decode(answer["images"][0])).hexdigest()
                self.images.setdefault(seed, set()).add(digest)

    def client(self, number: int) -> None:
        choice = random.Random(number)
        self.together.wait()  # the first fifty requests come in one moment
        while time.monotonic() < self.until:
            self.generate(choice.randrange(SEEDS))

    def watch_memory(self) -> None:
        worker = self.running.worker()
        while time.monotonic() < self.until:
            self.memories.append(memory(self.running.process.pid) + memory(worker))
            time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.timeout(600 + 2 * SECONDS)
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="reads the memory from /proc")
def test_fifty_clients_at_once(tmp_path):
    with server(tmp_path) as running:
        alone = Crowd(running)
        for seed in range(SEEDS):
            alone.generate(seed)
        program = Path(__file__).parents[1] / "probes.py"
        command = [sys.executable, program, str(running.port), str(SECONDS)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as probing:
            assert probing.stdout.readline() == "begun\n"
            crowd = Crowd(running)
            threads = [threading.Thread(target=crowd.client, args=[number]) for number in range(CLIENTS)]
            threads.append(threading.Thread(target=crowd.watch_memory))
            for thread in threads:
                thread.start()
            times = sorted(json.loads(probing.stdout.read()))
            for thread in threads:
                thread.join()
        states = {job["state"] for job in running.ask("GET", "/jobs")[1]}
        made = list((tmp_path / "jobs").glob("*/00000.png"))
    settled = crowd.memories[len(crowd.memories) // 3 :]
    median, most, slowest = times[len(times) // 2], times[len(times) * 99 // 100], times[-1]
    print(
        f"\n{len(crowd.answers)} images in {SECONDS:g} s; /progress {len(times)} times, in ms: median "
        f"{1000 * median:.0f}, 99 % within {1000 * most:.0f}, slowest {1000 * slowest:.0f}; memory "
        f"{settled[0] >> 10} MB, at the end {settled[-1] >> 10} MB"
    )
    assert set(crowd.answers) == {200}, "a job was lost"
    assert states == {"done"}
    assert len(made) == len(crowd.answers) + SEEDS
    assert all(crowd.images[seed] == alone.images[seed] for seed in crowd.images), "a wrong image for a seed"
    assert most < SLOW
    assert slowest < SLOWEST
    assert settled[-1] - settled[0] < GROWTH
