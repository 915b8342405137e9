"""Pictures of a class, drawn by the model itself before it learns, so that it does not forget what it knows of it.

Ruiz et al. 2022, "DreamBooth", section 3.3: class-specific prior preservation.
"""

import hashlib
import json
import re
from pathlib import Path

import torch.distributed as dist
from tqdm import tqdm

from sd.pipeline.stable_diffusion import StableDiffusion
from sd.utils.files import write_png


def class_pictures(
    pipe: StableDiffusion,
    prompt: str,
    count: int,
    folder: Path,
    size: int,
    rank: int = 0,
    ranks: int = 1,
    content: str = "",
    **settings,
) -> Path:
    """Draws those of `count` pictures that are not there yet, the k-th with seed k; returns the folder they are in.

    folder: for all classes; each model, prompt and kind of settings has one of its own there, for later runs too. rank,
    ranks: several processes share the work. content: a hash of the model, whose name alone does not tell it.
    settings: as a pipeline takes them.
    """
    model = pipe.path.stem if pipe.path else "model"
    words = re.sub(r"\W+", "-", prompt.lower()).strip("-")
    origin = hashlib.sha256(json.dumps([content, prompt, settings], sort_keys=True).encode()).hexdigest()[:8]
    place = folder / f"{model}-{words}-{size}-{origin}"
    missing = [k for k in range(rank, count, ranks) if not (place / f"{k:05}.png").exists()]
    for k in tqdm(missing, desc=f"drawing {prompt!r}", unit="picture", disable=not missing or rank > 0, leave=False):
        picture = pipe(prompt, seed=k, width=size, height=size, **settings).images[0]
        write_png(picture, place / f"{k:05}.png")
    if ranks > 1:
        dist.barrier()
    return place
