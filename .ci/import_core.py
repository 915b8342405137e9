"""Imports every module that `requirements.txt` is enough for: all of sd but for the page, and what measures it."""

import importlib
import pkgutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import sd
import sd.training

for package in (sd, sd.training):
    for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        if not module.ispkg:
            importlib.import_module(module.name)
