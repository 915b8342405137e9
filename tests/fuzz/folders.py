"""Hostile folders: of diffusers, PEFT and others, with links to elsewhere, pipes, and configurations that lie.

`hostile_folders()` yields (name, build) pairs; build(folder) fills an empty folder.
"""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from fuzz.parsers import CONFIG_FILES, CONFIGS
from fuzz.programs import as_safetensors, as_zip, program, table, tensor

SECRET = "nothing-of-this-may-appear"
WEIGHTS = as_safetensors(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', bytes(4))
NETWORKS = ("unet", "vae", "text_encoder")
STEM = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}


def hostile_folders() -> Iterator[tuple[str, Callable[[Path], None]]]:
    for label, change in {**links(), **indices(), **configs(), **adapters()}.items():
        yield label, lambda folder, change=change: build(folder, change)


def build(folder: Path, change: Callable[[Path], None]) -> None:
    for name, config in zip(CONFIG_FILES[:5], CONFIGS):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(config))
    for part in NETWORKS:
        (folder / part / f"{STEM[part]}.safetensors").write_bytes(WEIGHTS)
    change(folder)


def replace(path: Path, make: Callable[[Path], object]) -> None:
    path.unlink(missing_ok=True)
    make(path)


def links() -> dict[str, Callable[[Path], None]]:
    """Each file in place of a link to a device, a folder, itself, a secret; or of a pipe, which blocks its reader."""
    ways: dict[str, Callable[[Path], object]] = {
        "zero": lambda path: path.symlink_to("/dev/zero"),
        "null": lambda path: path.symlink_to("/dev/null"),
        "standard-input": lambda path: path.symlink_to("/dev/stdin"),
        "memory": lambda path: path.symlink_to("/proc/self/mem"),
        "itself": lambda path: path.symlink_to(path.name),
        "nowhere": lambda path: path.symlink_to("/nowhere/at/all"),
        "above": lambda path: path.symlink_to(".."),
        "secret": lambda path: (path.with_name("secret").write_text(SECRET), path.symlink_to("secret")),
        "pipe": os.mkfifo,
        "folder": lambda path: path.mkdir(),
        "unreadable": lambda path: (path.write_bytes(b"{}"), path.chmod(0)),
    }
    places = [*CONFIG_FILES[:5], *(f"{part}/{STEM[part]}.safetensors" for part in NETWORKS)]
    return {
        f"{label}-{place.replace('/', '-')}": lambda folder, place=place, make=make: replace(folder / place, make)
        for label, make in ways.items()
        for place in places
    }


def indices() -> dict[str, Callable[[Path], None]]:
    """Lists of shards."""
    values = {
        "null": None, "list": [], "text": "a", "numbers": {"a": 1}, "lists": {"a": ["x"]}, "empty-names": {"a": ""},
        "above": {"a": "../../../etc/passwd", "b": "/etc/passwd"}, "nul": {"a": "a\0b"},
        "itself": {"a": "x.index.json"},
        "surrogate": {"a": "\ud800"}, "long": {"a": "a" * 5000}, "folder": {"a": ".."},
        "many": {str(i): f"shard-{i}.safetensors" for i in range(50_000)},
        "many-of-one": {str(i): f"{i}/good.safetensors" for i in range(50_000)},
    }  # fmt: skip

    def change(folder: Path, value: object) -> None:
        name = "diffusion_pytorch_model.safetensors"
        (folder / "unet" / name).unlink()
        (folder / "unet" / "good.safetensors").write_bytes(WEIGHTS)
        (folder / "unet" / f"{name}.index.json").write_text(json.dumps({"weight_map": value}))

    return {f"shards-{label}": lambda folder, value=value: change(folder, value) for label, value in values.items()}


def configs() -> dict[str, Callable[[Path], None]]:
    """Each number of each configuration in turn, as something else."""
    values = (None, -1, 0, 10**9, 10**400, 1.5, True, "8", [], [[]], {"a": 1}, [10**9] * 4)

    def change(folder: Path, number: int, key: str, value: object) -> None:
        (folder / CONFIG_FILES[number]).write_text(json.dumps(CONFIGS[number] | {key: value}))

    return {
        f"{CONFIG_FILES[number].split('/')[0]}-{key}-{i}": lambda folder, a=(number, key, value): change(folder, *a)
        for number, config in enumerate(CONFIGS)
        for key in config
        for i, value in enumerate(values)
    }


def adapters() -> dict[str, Callable[[Path], None]]:
    """Folders of PEFT, whose configuration scales every layer."""
    key = "base_model.model.down_blocks.0.attentions.0.proj_in.lora_A.weight"
    values = (None, "a", -1, 10**400, [], {"a": {}}, {"(a+)+$": 8}, {"[": 1}, True)

    def change(folder: Path, field: str, value: object) -> None:
        config = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "target_modules": ["to_q"]} | {field: value}
        (folder / "adapter_config.json").write_text(json.dumps(config))
        (folder / "adapter_model.bin").write_bytes(as_zip(program(table(**{key: tensor()}))))

    fields = (
        "peft_type",
        "r",
        "lora_alpha",
        "rank_pattern",
        "alpha_pattern",
        "target_modules",
        "use_rslora",
        "use_dora",
    )
    return {
        f"peft-{field}-{i}": lambda folder, a=(field, value): change(folder, *a)
        for field in fields
        for i, value in enumerate(values)
    }
