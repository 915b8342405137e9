"""Imports every module that `requirements.txt` is enough for: all of sd but the server, and what measures it."""

import importlib
import pkgutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import sd

for module in pkgutil.walk_packages(sd.__path__, "sd."):
    if not module.name.startswith("sd.web"):
        importlib.import_module(module.name)
