"""The control types of the webui's ControlNet extension: which preprocessors and models belong together.

Both are matched to a type by their names, as the extension does. The bundled ControlNet reads edges and scribbles.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from sd.control.preprocessors import PREPROCESSORS

NONE = "None"  # as the extension's lists have it
EVERY = "All"
PREFERRED = "v11"  # in the names of ControlNet 1.1's models, which are chosen before others


@dataclass(frozen=True)
class ControlType:
    """words: the letters and digits, one of which is in the names of its preprocessors and models.

    default: the preprocessor that is chosen first. A type without one of its own is listed where a model belongs to it.
    """

    words: tuple[str, ...]
    default: str = "none"


CONTROL_TYPES = {
    "Canny": ControlType(("canny", "edges", "invert"), "canny"),
    "Depth": ControlType(("depth",)),
    "IP-Adapter": ControlType(("ipadapter",), "ip-adapter_clip_sd15"),
    "Inpaint": ControlType(("inpaint",), "inpaint_only"),
    "InstructP2P": ControlType(("ip2p", "instructp2p")),
    "Lineart": ControlType(("lineart", "invert")),
    "MLSD": ControlType(("mlsd", "invert")),
    "NormalMap": ControlType(("normal",)),
    "OpenPose": ControlType(("openpose",)),
    "Reference": ControlType(("reference",), "reference_only"),
    "Scribble": ControlType(("scribble", "sketch", "edges", "invert"), "scribble_xdog"),
    "Segmentation": ControlType(("seg",)),
    "Shuffle": ControlType(("shuffle",)),
    "SoftEdge": ControlType(("softedge", "hed", "pidi")),
    "T2I-Adapter": ControlType(("t2iadapter",)),
    "Tile": ControlType(("tile", "blur"), "tile_resample"),
}


def describe_control_types(models: Iterable[str]) -> dict[str, dict]:
    """Returns the extension's description of each control type that is of use here.

    models: the names of the ControlNets and adapters that are there. Where none belongs to a type by its name, all are
    listed, so that a file with another name can be chosen.
    """
    every = list(models)
    described = {EVERY: describe_type(list(PREPROCESSORS), every, "none")}
    for name, one in CONTROL_TYPES.items():
        modules = ["none", *names_with(one.words, PREPROCESSORS)]
        found = names_with(one.words, every)
        default = next((model for model in found if PREFERRED in model.lower()), (found or [NONE])[0])
        if PREPROCESSORS[one.default].model_free:
            described[name] = describe_type(modules, [], one.default)
        elif one.default != "none" or found:
            described[name] = describe_type(modules, found or every, one.default, default)
    return described


def names_with(words: Iterable[str], names: Iterable[str]) -> list[str]:
    """Returns the names in whose letters and digits one of the words stands."""
    return [name for name in names if any(word in re.sub(r"[\W_]", "", name.lower()) for word in words)]


def describe_type(modules: list[str], models: list[str], default: str, model: str = NONE) -> dict:
    """Returns one entry of the answer, with the extension's names."""
    return {
        "module_list": modules,
        "model_list": [NONE, *models],
        "default_option": default,
        "default_model": model,
    }
