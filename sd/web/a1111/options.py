"""The webui's options that are chosen for all requests, and what a request may say of the others."""

from pathlib import PurePosixPath
from typing import Any

from sd.pipeline.settings import check_whole
from sd.utils.errors import UserError
from sd.web.a1111.webui_options import AT_DEFAULT, FIXED, NO_EFFECT, SHOWN
from sd.web.jobs.model_index import Models

MOST_CLIP_SKIP = 12
NOTHING = (None, "", [], {})  # asks for nothing, whatever the option
CHOICES = {  # what can be chosen, and the method that checks it
    "sd_model_checkpoint": "choose_checkpoint",
    "sd_vae": "choose_vae",
    "CLIP_stop_at_last_layers": "choose_clip_skip",
}
OWN_VAE = ("automatic", "none")  # the webui's words for "no separate VAE"


class Options:
    """What is chosen for all that do not say otherwise. It is forgotten when the server ends."""

    def __init__(self, models: Models):
        self.models = models
        self.chosen: dict[str, Any] = {}

    def all(self) -> dict[str, Any]:
        checkpoint = title_of(self.models, self.models.default_checkpoint())
        defaults = {"sd_model_checkpoint": checkpoint, "CLIP_stop_at_last_layers": 1, "sd_vae": "Automatic"}
        fixed = {name: value for name, (value, _) in FIXED.items()}
        return defaults | fixed | AT_DEFAULT | SHOWN | self.chosen

    def set(self, changes: dict[str, Any]) -> None:
        self.chosen |= self.check(changes)[0]

    def with_changes(self, changes: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """All of them, for one request, and notes on what this server has otherwise."""
        checked, notes = self.check(changes)
        return self.all() | checked, notes

    def check(self, changes: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """Those that can change, and notes. Raises UserError for an unknown one, and for a value that is not to be had.

        Whatever is wrong, nothing has been chosen yet.
        """
        checked, notes = {}, []
        for name, value in changes.items():
            if choose := getattr(self, CHOICES.get(name, ""), None):
                if value not in NOTHING:
                    checked[name] = choose(value)
            elif note := check_fixed(name, value):
                notes.append(note)
        return checked, notes

    def choose_checkpoint(self, value: Any) -> str:
        """The title of the checkpoint that a client names by its title, model_name, file name or hash."""
        titles = {path: title_of(self.models, name) for name, path in self.models.names("checkpoint").items()}
        by_model_name = {model_name_of(title): title for title in reversed(titles.values())}
        text = str(value)
        return by_model_name[text] if text in by_model_name else titles[self.models.checkpoint(text)]

    def choose_vae(self, value: Any) -> str:
        """As the webui writes it: "Automatic", "None", or a name."""
        text = str(value)
        if text.lower() in OWN_VAE:
            return text.capitalize()
        if "VAE" not in self.models.folders:
            raise UserError(f"there is no VAE named {text[:100]} here: leave sd_vae out.")
        path = self.models.find("VAE", text)
        return next(name for name, one in self.models.names("VAE").items() if one == path)

    def choose_clip_skip(self, value: Any) -> int:
        whole = int(value) if isinstance(value, float) and value.is_integer() else value
        check_whole("CLIP_stop_at_last_layers", whole, 1, MOST_CLIP_SKIP)
        return whole


def check_fixed(name: str, value: Any) -> str:
    """A note on an option that cannot change, or "". Raises UserError for a value that is not to be had."""
    if name in NO_EFFECT or value in NOTHING:
        return ""
    if name in FIXED:
        fixed, notes = FIXED[name]
        if value == fixed:
            return ""
        if isinstance(value, str) and value in notes:
            return notes[value]
    elif name in AT_DEFAULT:
        fixed = AT_DEFAULT[name]
        if value == fixed:
            return ""
    else:
        raise UserError(f"there is no option {name[:100]} here: leave it out.")
    raise UserError(f"the option {name} is {fixed!r} here and cannot be changed: leave it out.")


def title_of(models: Models, name: str) -> str:
    """The webui's title of a checkpoint without the hash: its file's path below the folder of checkpoints."""
    path, folder = models.names("checkpoint")[name], models.folders["checkpoint"]
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.name


def model_name_of(title: str) -> str:
    """The webui's model_name: "anime_dreamy" for "anime/dreamy.safetensors". Two titles may share one."""
    return title.replace("/", "_").removesuffix(PurePosixPath(title).suffix)


def vae_of(options: dict[str, Any]) -> str:
    """Return the value of `GenerateRequest.vae`."""
    return "" if options["sd_vae"].lower() == "automatic" else options["sd_vae"]
