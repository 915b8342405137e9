"""The webui's options: the few that mean something here, and some that clients ask for, at the one value they have."""

from typing import Any

from sd.errors import UserError
from sd.settings import check_whole
from sd.web.models import Models

MOST_CLIP_SKIP = 12
FIXED = {
    "randn_source": "CPU",
    "sd_vae": "Automatic",
    "samples_format": "png",
    "eta_noise_seed_delta": 0,
    "eta_ddim": 0.0,
    "eta_ancestral": 1.0,
    "samples_save": True,
    "enable_pnginfo": True,
    "grid_save": False,
    "return_grid": False,
    "enable_emphasis": True,
    "emphasis": "Original",
    "img2img_fix_steps": False,
    "initial_noise_multiplier": 1.0,
    "live_previews_enable": True,
}
SAME = {"sd_vae": ("None",)}  # other spellings of these values
NOTHING = (None, "", [])  # asks for nothing, whatever the option


class Options:
    """What is chosen for all that do not say otherwise. It is forgotten when the server ends."""

    def __init__(self, models: Models):
        self.models = models
        self.chosen: dict[str, Any] = {}

    def all(self) -> dict[str, Any]:
        checkpoint = self.models.checkpoint().name
        return {"sd_model_checkpoint": checkpoint, "CLIP_stop_at_last_layers": 1} | FIXED | self.chosen

    def set(self, changes: dict[str, Any]) -> None:
        self.chosen |= self.check(changes)

    def with_changes(self, changes: dict[str, Any]) -> dict[str, Any]:
        """All of them, for one request."""
        return self.all() | self.check(changes)

    def check(self, changes: dict[str, Any]) -> dict[str, Any]:
        """Those that can change. Raises UserError for an unknown one, and for a value that is not to be had."""
        checked = {}
        for name, value in changes.items():
            if value in NOTHING:
                continue
            if name == "sd_model_checkpoint":
                checked[name] = self.models.checkpoint(str(value)).name
            elif name == "CLIP_stop_at_last_layers":
                check_whole(name, value, 1, MOST_CLIP_SKIP)
                checked[name] = value
            elif name not in FIXED:
                raise UserError(f"there is no option {name[:100]} here: leave it out.")
            elif value != FIXED[name] and value not in SAME.get(name, ()):
                raise UserError(f"the option {name} is {FIXED[name]!r} here and cannot be changed: leave it out.")
        return checked
