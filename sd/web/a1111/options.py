"""The webui's options: those that can be set for all requests, and the check of all others."""

from pathlib import PurePosixPath
from typing import Any

from sd.pipeline.metadata.infotext_fields import DDIM_SAMPLERS
from sd.pipeline.noise import SOURCES
from sd.pipeline.sampler_names import ETA_SAMPLERS
from sd.pipeline.settings import COMPAT, MAX_SEED, check_number, check_whole
from sd.prompts.weighting import CHUNK, COMMA_REACH, EMPHASIS
from sd.utils.errors import UserError
from sd.web.a1111.webui_options import AT_DEFAULT, FIXED, NO_EFFECT, SHOWN
from sd.web.jobs.model_index import Models

MOST_CLIP_SKIP = 12
NOTHING = (None, "", [], {})  # no value, for any option
CHOICES = {  # the options that can be set, and the methods that check them
    "sd_model_checkpoint": "choose_checkpoint",
    "sd_vae": "choose_vae",
    "CLIP_stop_at_last_layers": "choose_clip_skip",
    "randn_source": "choose_rng",
    "eta_noise_seed_delta": "choose_seed_delta",
    "eta_ancestral": "choose_eta",
    "eta_ddim": "choose_eta",
    "compat": "choose_compat",
    "emphasis": "choose_emphasis",
    "comma_padding_backtrack": "choose_comma_padding",
    "s_min_uncond": "choose_ngms",
}
OWN_VAE = ("automatic", "none")  # the webui's words for "no separate VAE"


class Options:
    """The options that are set for all requests until the server ends."""

    def __init__(self, models: Models):
        self.models = models
        self.chosen: dict[str, Any] = {}

    def all(self) -> dict[str, Any]:
        checkpoint = title_of(self.models, self.models.default_checkpoint())
        defaults = {"sd_model_checkpoint": checkpoint, "CLIP_stop_at_last_layers": 1, "sd_vae": "Automatic"}
        defaults |= {"randn_source": "CPU", "eta_noise_seed_delta": 0, "eta_ancestral": 1.0, "eta_ddim": 0.0}
        defaults |= {"compat": "none", "emphasis": "Original"}
        defaults |= {"comma_padding_backtrack": COMMA_REACH, "s_min_uncond": 0.0}
        fixed = {name: value for name, (value, _) in FIXED.items()}
        return defaults | fixed | AT_DEFAULT | SHOWN | self.chosen

    def set(self, changes: dict[str, Any]) -> None:
        self.chosen |= self.check(changes)[0]

    def with_changes(self, changes: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """Return all options for one request, and notes on those that differ here. Raises UserError."""
        checked, notes = self.check(changes)
        return self.all() | checked, notes

    def check(self, changes: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """Return the changes that can be made, and notes; nothing is set yet.

        Raises UserError for an unknown option and for a value that is not supported.
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
        """Return "Automatic", "None" or a name, as the webui writes it. Raises UserError."""
        text = str(value)
        if text.lower() in OWN_VAE:
            return text.capitalize()
        if "VAE" not in self.models.folders:
            raise UserError(f"unknown VAE {text[:100]!r}: leave sd_vae out.")
        path = self.models.find("VAE", text)
        return next(name for name, one in self.models.names("VAE").items() if one == path)

    def choose_clip_skip(self, value: Any) -> int:
        whole = int(value) if isinstance(value, float) and value.is_integer() else value
        check_whole("CLIP_stop_at_last_layers", whole, 1, MOST_CLIP_SKIP)
        return whole

    def choose_rng(self, value: Any) -> str:
        if str(value).lower() not in SOURCES:
            raise UserError(f"unknown randn_source {str(value)[:100]!r}; choose from {', '.join(SOURCES.values())}.")
        return SOURCES[str(value).lower()]

    def choose_seed_delta(self, value: Any) -> int:
        check_whole("eta_noise_seed_delta", value, 0, MAX_SEED)
        return value

    def choose_eta(self, value: Any) -> float:
        check_number("eta (eta_ancestral, eta_ddim)", value, 0, 1)
        return float(value)

    def choose_emphasis(self, value: Any) -> str:
        if value not in EMPHASIS.values():
            raise UserError(f"unknown emphasis {str(value)[:100]!r}; choose from {', '.join(EMPHASIS.values())}.")
        return value

    def choose_comma_padding(self, value: Any) -> int:
        whole = int(value) if isinstance(value, float) and value.is_integer() else value
        check_whole("comma_padding_backtrack", whole, 0, CHUNK - 1)
        return whole

    def choose_ngms(self, value: Any) -> float:
        check_number("s_min_uncond", value, 0, 15)
        return float(value)

    def choose_compat(self, value: Any) -> str:
        """Return the value of the option --compat, which the webui does not have."""
        if value not in COMPAT:
            raise UserError(f"unknown compat {str(value)[:100]!r}; choose from {', '.join(COMPAT)}.")
        return value


def settings_of(options: dict[str, Any], sampler: str) -> dict[str, Any]:
    """Return the fields of `GenerationSettings` that the webui has as options. sampler: by our name, for its eta."""
    eta = options["eta_ddim" if sampler in DDIM_SAMPLERS else "eta_ancestral"]
    own = 0.0 if sampler in DDIM_SAMPLERS else 1.0
    return {
        "rng": options["randn_source"].lower(),
        "ensd": options["eta_noise_seed_delta"],
        "eta": eta if sampler in ETA_SAMPLERS and eta != own else None,
        "compat": options["compat"],
        "emphasis": next(name for name, label in EMPHASIS.items() if label == options["emphasis"]),
        "comma_padding": options["comma_padding_backtrack"],
        "ngms": options["s_min_uncond"],
    }


def check_fixed(name: str, value: Any) -> str:
    """Return a note on an option that is fixed, or "". Raises UserError for a value that is not supported."""
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
        raise UserError(f"unknown option {name[:100]!r}: leave it out.")
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
