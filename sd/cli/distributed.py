"""Generation in one process or in several that `torchrun` starts: the same images under the same file names.

    torchrun --nproc-per-node=2 scripts/txt2img.py --from-file prompts.txt

Rank 0 plans all images and file names; every rank then generates its own shard, without synchronization.
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

from sd.cli.requests import GenerationRequest, split_by_image
from sd.pipeline.infotext import read_infotext
from sd.pipeline.settings import GenerationSettings
from sd.pipeline.stable_diffusion import StableDiffusion
from sd.utils.device import rank_and_world_size
from sd.utils.errors import UserError
from sd.utils.files import next_number


@contextmanager
def worker_context() -> Iterator[None]:
    """Gives a rank, within the context, its own GPU and its share of the cores; all but rank 0 print errors only."""
    rank, count = rank_and_world_size()
    if count == 1:
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    if os.environ.get("OMP_NUM_THREADS") == "1":  # torchrun's default, even where there are more cores
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(max(1, cores // int(os.environ["LOCAL_WORLD_SIZE"])))
    if rank == 0:
        yield
        return
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield  # an exception is printed outside of the context


def broadcast(make: Callable[[], list[GenerationRequest]]) -> list[GenerationRequest]:
    """Returns, in every rank, what `make` returns in rank 0: seeds and prompts may be random."""
    rank, count = rank_and_world_size()
    if count == 1:
        return make()
    store, _, _ = next(dist.rendezvous("env://"))
    if rank == 0:
        requests = make()
        store.set("requests", zlib.compress(json.dumps([asdict(request) for request in requests]).encode()))
        return requests
    store.set_timeout(timedelta(days=1))  # an LLM may take long to write the prompts
    given = json.loads(zlib.decompress(store.get("requests")))
    return [GenerationRequest(**one | {"settings": GenerationSettings(**one["settings"])}) for one in given]


def shard(requests: list[GenerationRequest]) -> list[GenerationRequest]:
    """Returns this rank's requests, the largest first, so that all ranks end at about the same time."""
    rank, count = rank_and_world_size()
    if count == 1:
        return requests
    return sorted(requests, key=lambda request: request.settings.num_images, reverse=True)[rank::count]


def assign_filenames(
    pipe: StableDiffusion,
    requests: list[GenerationRequest],
    folder: Path,
    resume: bool = False,
    region_masks: int = 0,
) -> list[GenerationRequest]:
    """Returns the requests with the numbers of their files. resume: without the images that the folder has already.

    region_masks: how many masks the images are generated with, which their infotext says.

    The folder has an image if an intact PNG in it holds exactly the same infotext. A missing image gets the number that
    it would have had in the first run.
    """
    there = saved_texts(folder) if resume else {}
    counts: Counter[str] = Counter()
    first: dict[str, int] = {}
    missing: list[GenerationRequest] = []
    for request in requests:
        prefix, index = request.prefix, counts[request.prefix]
        settings = pipe.resolve_size(request.settings, None)
        texts = request.texts(pipe.infotexts(settings, False, region_masks))
        left = [k for k, text in enumerate(texts) if text not in there]
        for k, text in enumerate(texts):
            if text in there and there[text][0] == prefix:
                first.setdefault(prefix, there[text][1] - index - k)
        if len(left) == len(texts):
            missing.append(replace(request, number=index))
        else:
            singly = split_by_image(request.settings)
            missing += [replace(request, settings=singly[k], number=index + k) for k in left]
        counts[prefix] += len(texts)
    if resume:
        total = counts.total()
        print(f"{total - sum(one.settings.num_images for one in missing)} of {total} images are in {folder} already.")
    for prefix in counts.keys() - first.keys():
        first[prefix] = next_number(folder, prefix)
    return [replace(one, number=max(0, first[one.prefix]) + (one.number or 0)) for one in missing]


def saved_texts(folder: Path) -> dict[str, tuple[str, int]]:
    """Returns the infotexts in a folder's images, each with the prefix and the number of its file."""
    found: dict[str, tuple[str, int]] = {}
    for path in sorted(folder.glob("*.png")):
        if name := re.fullmatch(r"(.*?)(\d{5,})", path.stem):
            with suppress(UserError):  # a broken file, or a grid
                found.setdefault(read_infotext(path), (name[1], int(name[2])))
    return found
