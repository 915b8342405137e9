"""Many drawings, by one process or by several that `torchrun` starts: the same pictures under the same names.

    torchrun --nproc-per-node=2 scripts/txt2img.py --from-file prompts.txt

The first process decides what is drawn and where it goes. Each then draws a share of its own and waits for no other.
"""

import json
import os
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from sd.cli.requests import Drawing, apart
from sd.pipeline.infotext import read_infotext
from sd.pipeline.settings import Settings
from sd.pipeline.stable_diffusion import StableDiffusion
from sd.utils.device import rank_and_world_size as processes
from sd.utils.errors import UserError
from sd.utils.files import next_number


@contextmanager
def one_of_many() -> Iterator[None]:
    """Takes the process's own GPU and its share of the cores; all but the first are silent, errors aside."""
    rank, count = processes()
    if count == 1:
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    if os.environ.get("OMP_NUM_THREADS") == "1":  # torchrun's own choice, also where there are cores for more
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        torch.set_num_threads(max(1, cores // int(os.environ["LOCAL_WORLD_SIZE"])))
    if rank == 0:
        yield
        return
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield  # what is raised is printed outside of here


def agreed(make: Callable[[], list[Drawing]]) -> list[Drawing]:
    """What `make` gives in the first process, in all of them: seeds and words may be chosen by chance."""
    rank, count = processes()
    if count == 1:
        return make()
    store, _, _ = next(dist.rendezvous("env://"))
    if rank == 0:
        drawings = make()
        store.set("drawings", zlib.compress(json.dumps([asdict(drawing) for drawing in drawings]).encode()))
        return drawings
    store.set_timeout(timedelta(days=1))  # a chat model may be writing the prompts
    given = json.loads(zlib.decompress(store.get("drawings")))
    return [Drawing(**one | {"settings": Settings(**one["settings"])}) for one in given]


def share(drawings: list[Drawing]) -> list[Drawing]:
    """This process's own, the largest first, so that all end at about the same time."""
    rank, count = processes()
    if count == 1:
        return drawings
    return sorted(drawings, key=lambda drawing: drawing.settings.num_images, reverse=True)[rank::count]


def plan(pipe: StableDiffusion, drawings: list[Drawing], folder: Path, resume: bool = False) -> list[Drawing]:
    """Numbers for all files, as they come. resume: without the pictures that the folder has already.

    It has a picture where a PNG that is whole holds the very same settings, to the letter. What is missing between two
    of them goes where it would have been.
    """
    there = saved(folder) if resume else {}
    counts, first, missing = Counter(), {}, []
    for drawing in drawings:
        prefix, index = drawing.prefix, counts[drawing.prefix]
        settings = pipe.with_size(drawing.settings, None)
        texts = drawing.texts(pipe.infotexts(settings, from_image=False))
        left = [k for k, text in enumerate(texts) if text not in there]
        for k, text in enumerate(texts):
            if text in there and there[text][0] == prefix:
                first.setdefault(prefix, there[text][1] - index - k)
        if len(left) == len(texts):
            missing.append(replace(drawing, number=index))
        else:
            singly = apart(drawing.settings)
            missing += [replace(drawing, settings=singly[k], number=index + k) for k in left]
        counts[prefix] += len(texts)
    if resume:
        total = counts.total()
        print(f"{total - sum(one.settings.num_images for one in missing)} of {total} pictures are in {folder} already.")
    for prefix in counts.keys() - first.keys():
        first[prefix] = next_number(folder, prefix)
    return [replace(drawing, number=max(0, first[drawing.prefix]) + drawing.number) for drawing in missing]


def saved(folder: Path) -> dict[str, tuple[str, int]]:
    """The text in each picture of a folder that has one, with the picture's prefix and number."""
    found = {}
    for path in sorted(folder.glob("*.png")):
        if name := re.fullmatch(r"(.*?)(\d{5,})", path.stem):
            with suppress(UserError):  # broken, or a sheet: not one of ours
                found.setdefault(read_infotext(path), (name[1], int(name[2])))
    return found
