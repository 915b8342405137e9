"""Files of ESRGAN and Real-ESRGAN, with their old and new names.

conv_first, body.0.rdb1.conv1, ..., conv_up1          Real-ESRGAN, often below `params_ema`
conv_first, RRDB_trunk.0.RDB1.conv1, ..., upconv1     ESRGAN's own code
model.0, model.1.sub.0.RDB1.conv1.0, ..., model.3     ESRGAN's first code, and most models that people trained
"""

import re
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from sd.checkpoints.config import skip_init
from sd.checkpoints.families import describe_contents
from sd.checkpoints.foreign_files import reads_file
from sd.checkpoints.weight_files import read_weights
from sd.upscalers.rrdbnet import RRDBNet
from sd.utils.errors import UserError
from sd.utils.files import Signature, signature_of

USE_ANOTHER = "give an ESRGAN or Real-ESRGAN model (RRDBNet), such as RealESRGAN_x4plus"
TRUNK = {"RRDB_trunk": "body", "trunk_conv": "conv_body", "HRconv": "conv_hr"}


@reads_file
def read_upscaler(path: str | Path) -> dict[str, Tensor]:
    """Reads the tensors of a file by Real-ESRGAN's names. Raises UserError for what holds no RRDBNet."""
    path = Path(path).expanduser()
    whole = content = read_weights(path).content
    for wrapper in ("params_ema", "params", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    entries = content.items() if isinstance(content, dict) else ()
    tensors = {str(key).removeprefix("module."): value for key, value in entries if isinstance(value, Tensor)}
    tensors = to_new_names(tensors)
    if "conv_first.weight" not in tensors or "body.0.rdb1.conv1.weight" not in tensors:
        wrapped = content is not whole
        what = describe_contents(content) or ("an upscaler" if wrapped else "no upscaler")
        what = "an upscaler of another kind" if what == "an upscaler" else what
        raise UserError(f"{path} is {what}: {USE_ANOTHER}.")
    return tensors


def to_new_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns the tensors by Real-ESRGAN's names; a name of no layout is kept."""
    if any(re.match(r"model\.1\.sub\.", key) for key in tensors):
        return {rename_first(key, first_names(tensors)): tensor for key, tensor in tensors.items()}
    return {rename_own(key): tensor for key, tensor in tensors.items()}


def rename_own(key: str) -> str:
    """Returns the new name of a name of ESRGAN's own code."""
    first, dot, rest = key.partition(".")
    first = TRUNK.get(first, re.sub(r"^upconv(\d)$", r"conv_up\1", first))
    return first + dot + re.sub(r"\bRDB(\d)", r"rdb\1", rest)


def first_names(tensors: dict[str, Tensor]) -> dict[str, str]:
    """Returns the new names of the outer layers of ESRGAN's first code, by their numbers in the sequence."""
    found = {int(match[1]) for key in tensors if (match := re.fullmatch(r"model\.(\d+)\.weight", key))}
    first, *ups, hr, last = sorted(found)
    names = {first: "conv_first", hr: "conv_hr", last: "conv_last"}
    return {str(number): name for number, name in (names | {n: f"conv_up{i + 1}" for i, n in enumerate(ups)}).items()}


def rename_first(key: str, outer: dict[str, str]) -> str:
    """Returns the new name of a name of ESRGAN's first code."""
    if match := re.fullmatch(r"model\.1\.sub\.(\d+)\.RDB(\d)\.conv(\d)\.0\.(\w+)", key):
        return f"body.{match[1]}.rdb{match[2]}.conv{match[3]}.{match[4]}"
    if match := re.fullmatch(r"model\.1\.sub\.\d+\.(weight|bias)", key):
        return f"conv_body.{match[1]}"
    if match := re.fullmatch(r"model\.(\d+)\.(weight|bias)", key):
        return f"{outer[match[1]]}.{match[2]}"
    return key


@reads_file
def load_upscaler(path: str | Path) -> RRDBNet:
    """Loads an upscaler, fp32, on the CPU. Raises UserError for a file that holds no RRDBNet."""
    tensors = read_upscaler(path)
    width, inputs = tensors["conv_first.weight"].shape[:2]
    blocks = 1 + max(int(key.split(".")[1]) for key in tensors if re.match(r"body\.\d+\.", key))
    growth = tensors["body.0.rdb1.conv1.weight"].shape[0]
    doublings = sum(bool(re.fullmatch(r"conv_up\d+\.weight", key)) for key in tensors)
    shrink = {3: 1, 12: 2, 48: 4}.get(inputs, 0)
    if not shrink or max(width, growth) > 1024 or blocks > 256 or doublings > 4:
        raise UserError(f"{path} is an upscaler of another kind: {USE_ANOTHER}.")
    with torch.device("meta"), skip_init():
        network = RRDBNet(width, blocks, growth, doublings, shrink)
    expected = network.state_dict()
    wrong = sorted(tensors.keys() ^ expected.keys())
    wrong += [key for key, place in expected.items() if key in tensors and tensors[key].shape != place.shape]
    if wrong:
        raise UserError(f"{path} is an upscaler of another kind ({wrong[0]} differs): {USE_ANOTHER}.")
    if broken := [key for key in expected if not torch.isfinite(tensors[key]).all()]:
        raise UserError(f"{path} holds values that are not finite numbers ({broken[0]}): fetch it again.")
    network.load_state_dict({key: tensors[key].float() for key in expected}, strict=True, assign=True)
    return network.eval().requires_grad_(False)


@lru_cache(maxsize=2)  # the webui's "extras" blend the images of two
def cached_upscaler(path: Path, signature: Signature) -> RRDBNet:
    """Returns one of the last two upscalers again, unless its file has changed."""
    return load_upscaler(path)


def read_cached(path: Path) -> RRDBNet:
    """Returns the network of a file, which stays loaded until two others were asked for. Raises UserError."""
    return cached_upscaler(path, signature_of(path))
