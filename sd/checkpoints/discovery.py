"""Checkpoints, VAEs, LoRAs, embeddings and other models by name, for scripts, Python, the web UI and the HTTP API.

A name is looked up among the files of a few folders and is never a path, so no request reaches other files:

    dreamy                             the file's name without its ending, in any case
    anime/dreamy, anime\\dreamy.ckpt    with its folder and ending, either slash
    dreamy.safetensors [0123456789]    as the webui writes it; the hash alone finds a checkpoint as well
    my-dog                             the name in its metadata, `ss_output_name`

Files are recognized by their contents. Links that lead outside `weights/` are followed: only the owner of the folder
can create them.
"""

import difflib
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path

from sd.checkpoints.diffusers_format import MODEL_INDEX
from sd.checkpoints.families import PEFT_CONFIG
from sd.checkpoints.hashing import full_hash, known_hash, old_hash
from sd.checkpoints.model_files import FILE_ENDINGS, IMAGE_ENDINGS, Content, content_of, models_below
from sd.utils.errors import UserError

PACKAGE = Path(str(resources.files("sd"))).resolve()
CHECKOUT = PACKAGE.parent if (PACKAGE.parent / "weights" / "emoji.safetensors").is_file() else None
# The user's own models: in a checkout beside the code, otherwise in the current folder, unless SD_WEIGHTS names one.
WEIGHTS = Path(os.environ.get("SD_WEIGHTS") or (CHECKOUT or Path.cwd()) / "weights").expanduser().absolute()
OWN_DATA = WEIGHTS.parent / "data"  # the user's own wildcards and styles
SHIPPED = (CHECKOUT or PACKAGE) / "weights"  # the models that come with the code
BUNDLED = SHIPPED / "emoji.safetensors"
BUNDLED_CONTROLNET = SHIPPED / "emoji-edges.safetensors"  # for the bundled model
BUNDLED_TURBO = SHIPPED / "emoji-turbo.safetensors"  # a LoRA of it, for 4 steps
BUNDLED_ADDITIONS = {"ControlNet": BUNDLED_CONTROLNET, "LoRA": BUNDLED_TURBO}
LORAS = WEIGHTS / "loras"
EMBEDDINGS = WEIGHTS / "embeddings"
VAES = WEIGHTS / "vae"
CONTROLNETS = WEIGHTS / "controlnet"
UPSCALERS = WEIGHTS / "upscalers"
IMAGE_ENCODERS = WEIGHTS / "image_encoders"
PREFERRED = "v1-5-pruned-emaonly"

FRESH = 5.0  # seconds for which a listing is cached
LONGEST = 200  # characters of a name in a message
LISTED = 8  # names in a message
CONFIGS = ("config.json", PEFT_CONFIG)  # of a folder that is one model
OWN_VAE, AUTOMATIC = ("none",), ("", "automatic", "auto")  # the webui's words, in any case
HASH = re.compile(r"[0-9a-f]{8}|[0-9a-f]{10,64}", re.IGNORECASE)
IMAGE_ENCODER = "image encoder"
ENDINGS = {
    "checkpoint": (".safetensors", ".ckpt", ".pt", ".pth"),
    "VAE": (".safetensors", ".ckpt", ".pt", ".pth", ".bin"),
    "LoRA": (".safetensors", ".pt", ".bin", ".ckpt"),
    "embedding": (".safetensors", ".pt", ".bin", *IMAGE_ENDINGS),
    "ControlNet": (".safetensors", ".pth", ".pt", ".bin", ".ckpt"),
    "upscaler": (".pth", ".safetensors", ".pt"),
    IMAGE_ENCODER: (".safetensors", ".bin", ".pth", ".pt"),
}
INSTEAD = {  # what to do with a file of each kind
    "checkpoint": "choose it as the checkpoint",
    "VAE": "choose it as the VAE of a checkpoint",
    "LoRA": "name it in the prompt, <lora:NAME:1>",
    "embedding": "write its token in the prompt",
    "ControlNet": "name it with --control, or as the ControlNet on the page",
    "upscaler": "name it with --hires-upscaler, or as the upscaler on the page",
    IMAGE_ENCODER: "an IP-Adapter finds it itself, or name it with encoder=NAME in --control",
    "other": "choose another file",
}


class Models:
    """The folders of models. New files are found within seconds, or at once after `refresh`."""

    def __init__(
        self,
        weights: Path = WEIGHTS,
        loras: Path = LORAS,
        embeddings: Path = EMBEDDINGS,
        vaes: Path | None = None,  # weights/vae
    ):
        vaes = weights / VAES.name if vaes is None else vaes
        self.folders = {"checkpoint": weights, "LoRA": loras, "embedding": embeddings, "VAE": vaes}
        self.folders |= {"ControlNet": weights / CONTROLNETS.name, "upscaler": weights / UPSCALERS.name}
        self.folders |= {IMAGE_ENCODER: weights / IMAGE_ENCODERS.name}
        self.listings: dict[str, tuple[float, object]] = {}

    def refresh(self) -> None:
        self.listings = {}

    def names(self, kind: str) -> dict[str, Path]:
        """Returns the files and folders of a kind by name. kind: as in `model_files.Content`.

        A name is the file's without suffix; of equal names the later one has its folder too, and then its suffix.
        """
        return self.cached(f"names of {kind}", lambda: self.assign_names(kind))

    def find(self, kind: str, name: str) -> Path:
        """Returns the file or folder of that name. Raises UserError, with similar names, where there is none."""
        text, digits = split_hash(name)
        wanted = text.replace("\\", "/")
        if (wanted == "" and not digits) or re.search(r"\0|^/|(^|/)\.{1,2}(/|$)", wanted):
            article = "an" if kind[0] in "aeiou" else "a"
            raise UserError(
                f"that is not the name of {article} {kind}: give its file's name without folder and ending."
            )
        for one in self.match_name(kind, wanted):
            if one.is_of(kind):
                return one.path
        found = self.find_alias(kind, wanted) or self.find_hash(kind, digits or wanted)
        if found is None:
            raise UserError(self.missing_message(kind, text or name))
        return found

    def checkpoint(self, name: str = "") -> Path:
        """Returns the checkpoint of that name, or the default one if ""."""
        return self.find("checkpoint", name) if name else self.names("checkpoint")[self.default_checkpoint()]

    def default_checkpoint(self) -> str:
        """Returns the name of v1-5 if there is one, otherwise of another checkpoint, otherwise of the bundled one.

        A checkpoint that was fine-tuned here is never the default, and one for inpainting only if there is no other.
        """
        own = {name: content_of(path) for name, path in self.names("checkpoint").items() if path != BUNDLED}
        fit = [name for name, content in own.items() if content.kind == "checkpoint" and not content.trained]
        fit.sort(key=lambda name: (name.lower() != PREFERRED, own[name].what != "a checkpoint"))
        return fit[0] if fit else BUNDLED.stem

    def vae(self, name: str | None, checkpoint: Path) -> Path | None:
        """Returns the separate VAE for a checkpoint: by its name, the one beside it, or None for the checkpoint's own.

        name: "" or "Automatic" takes NAME.vae.safetensors (or .vae.pt, .vae.ckpt) beside NAME.safetensors; "None" does
        not.
        """
        return separate_vae(name, checkpoint, lambda text: self.find("VAE", text))

    def cached(self, what: str, make: Callable[[], object]):
        made, found = self.listings.get(what, (-FRESH, None))
        if time.monotonic() - made >= FRESH:
            found = make()
            self.listings[what] = time.monotonic(), found
        return found

    def files(self, kind: str) -> list["Candidate"]:
        """Returns the candidates for that kind: in its own folder, then among the checkpoints."""
        return self.cached(f"files of {kind}", lambda: self.list_files(kind))

    def list_files(self, kind: str) -> list["Candidate"]:
        found = [Candidate(BUNDLED.parent, BUNDLED, is_own=True)] if kind == "checkpoint" else []
        for folder in dict.fromkeys((self.folders[kind], self.folders["checkpoint"])):
            apart = {other.resolve() for other in self.folders.values()} - {folder.resolve()}
            is_own = folder == self.folders[kind]
            paths = [path for path in models_below(folder, apart) if is_listed(path, kind, is_own)]
            stems = {path.with_suffix("") for path in paths if path.suffix.lower() not in IMAGE_ENDINGS}
            found += [Candidate(folder, path, is_own) for path in paths if not is_preview(path, stems)]
        if kind in BUNDLED_ADDITIONS:  # after the user's own files, one of which may have its name
            found.append(Candidate(SHIPPED, BUNDLED_ADDITIONS[kind], is_own=True))
        return found

    def assign_names(self, kind: str) -> dict[str, Path]:
        named: dict[str, Path] = {}
        for one in self.files(kind):
            if one.is_of(kind):
                free = [name for name in one.possible_names if name not in named]
                named |= dict.fromkeys(free[:1], one.path)
        return named

    def match_name(self, kind: str, wanted: str) -> list["Candidate"]:
        """Returns the candidates for a name, the best first: exact case before any case, the name before the folder."""
        ranked = []
        for one in self.files(kind):
            ranks = [
                (alias != wanted, rank)
                for rank, alias in enumerate(one.possible_names)
                if alias.lower() == wanted.lower()
            ]
            ranked += [(min(ranks), one)] if ranks else []
        return [one for _, one in sorted(ranked, key=lambda pair: pair[0])]

    def find_alias(self, kind: str, wanted: str) -> Path | None:
        """Returns the file that has this name in its metadata."""
        contents = ((content_of(one.path), one.path) for one in self.files(kind))
        return next((path for content, path in contents if is_alias(content, kind, wanted)), None)

    def find_hash(self, kind: str, digits: str) -> Path | None:
        """Returns a checkpoint by its hash. Files are hashed only if no cached hash matches."""
        if kind != "checkpoint" or not HASH.fullmatch(digits):
            return None
        paths, digits = list(self.names(kind).values()), digits.lower()
        ways = [old_hash] if len(digits) == 8 else [known_hash, full_hash]
        return next((path for hashed in ways for path in paths if hashed(path).startswith(digits)), None)

    def missing_message(self, kind: str, name: str) -> str:
        """Returns the message for a name that is not found, with similar names."""
        shown = name[:LONGEST]
        for other in self.folders:
            for one in self.match_name(other, name.replace("\\", "/")):
                if (content := content_of(one.path)).kind not in ("", kind):
                    instead = INSTEAD[content.kind].replace("NAME", one.path.stem)
                    return f"{shown} is {content.what}, not {with_article(kind)}: {instead}."
        names = {one.lower(): one for one in reversed(self.names(kind))}
        if near := difflib.get_close_matches(shown.lower(), names):
            return f"there is no {kind} named {shown}; did you mean {names[near[0]]}?"
        folder = self.folders[kind]
        if not names:
            within = "" if folder == self.folders["checkpoint"] else f"{folder.parent.name}/"
            return f"there is no {kind} named {shown}: put it into {within}{folder.name}/, which holds none yet."
        listed = [name[:LONGEST] for name in list(names.values())[::-1][:LISTED]]
        more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
        return f"there is no {kind} named {shown}; choose from {', '.join(listed)}{more}."


@dataclass(frozen=True)
class Candidate:
    """A file or folder that may be a model. is_own: whether it is in the folder for models of that kind."""

    folder: Path
    path: Path
    is_own: bool

    @cached_property
    def possible_names(self) -> list[str]:
        """Returns all names that it may have, the shortest first."""
        short, inside = self.path.name, self.path.relative_to(self.folder).as_posix()
        ending = 0 if self.path.is_dir() else len(self.path.suffix)
        return list(dict.fromkeys(name[: len(name) - cut] for cut in (ending, 0) for name in (short, inside)))

    def is_of(self, kind: str) -> bool:
        """Returns whether it has that kind, or is not recognized and lies in the folder for that kind."""
        found = content_of(self.path).kind
        return found == kind or (found == "" and self.is_own)


def is_listed(path: Path, kind: str, is_own: bool) -> bool:
    """Returns whether its suffix fits that kind. Images hold embeddings only in the embeddings folder."""
    if path.resolve() in (BUNDLED, *BUNDLED_ADDITIONS.values()):
        return False  # they are listed by themselves, under their own names
    endings = ENDINGS[kind] if is_own else tuple(set(ENDINGS[kind]) - set(IMAGE_ENDINGS))
    return path.is_dir() or path.suffix.lower() in endings


def with_article(kind: str) -> str:
    if kind == "checkpoint":
        return "a checkpoint of Stable Diffusion 1.x"
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"


def split_hash(name: str) -> tuple[str, str]:
    """Returns (name, hash) of "name.safetensors [0123456789]", with the hash "" where there is none."""
    found = re.fullmatch(r"(.*?)\s*\[([0-9a-fA-F]+)\]\s*", name, re.DOTALL)
    return (found[1], found[2]) if found else (name, "")


def is_alias(content: Content, kind: str, wanted: str) -> bool:
    return content.kind == kind and content.alias != "" and content.alias.lower() == wanted.lower()


def is_preview(path: Path, stems: set[Path]) -> bool:
    """Returns whether an image is the preview of the file beside it."""
    if path.suffix.lower() not in IMAGE_ENDINGS:
        return False
    return path.stem.endswith(".preview") or path.with_suffix("") in stems


def vae_beside(checkpoint: Path) -> Path | None:
    """Returns NAME.vae.safetensors, NAME.vae.pt or NAME.vae.ckpt beside a checkpoint's file NAME."""
    if not checkpoint.is_file():
        return None
    beside = [checkpoint.with_name(f"{checkpoint.stem}.vae{ending}") for ending in (".safetensors", ".pt", ".ckpt")]
    return next((path for path in beside if path.is_file()), None)


def separate_vae(name: str | Path | None, checkpoint: Path, find: Callable[[str], Path]) -> Path | None:
    """Returns what `Models.vae` does, with another way to find a name."""
    text = str(name or "").lower()
    if text in AUTOMATIC:
        return vae_beside(checkpoint)
    return None if text in OWN_VAE else find(str(name))


def locate(kind: str, text: str | Path, models: Models | None = None) -> Path:
    """Resolves a command-line argument: a path if it exists, otherwise a name as in `Models.find`.

    A diffusers folder may be given by the path of its model_index.json. Raises UserError.
    """
    if not isinstance(text, (str, Path)):
        raise UserError(f"the {kind} is {text!r}: give its name or its path.")
    if not str(text).strip():
        raise UserError(f"the name of the {kind} is empty: give a name or a file.")
    path = Path(text).expanduser()
    if path.name == MODEL_INDEX and path.is_file():
        return path.parent
    if path.is_file() or (path.is_dir() and content_of(path).kind != ""):
        return path
    try:
        return (models or Models()).find(kind, str(text))
    except UserError as error:
        if path.is_dir() and kind != "checkpoint" and not any((path / name).is_file() for name in CONFIGS):
            raise UserError(
                f"{path} is a folder, and not one that is {with_article(kind)}: name a file in it."
            ) from None
        if path.exists():
            return path  # its reader describes what it is
        is_path = str(error).startswith("that is not")
        if not is_path and (path.suffix.lower() not in FILE_ENDINGS or not str(error).startswith("there is no")):
            raise
        if len(path.parts) > 1:
            raise UserError(f"file not found: {path}; check the path, or give a name in weights/.") from None
        raise UserError(f"file not found: {path}, and {error}") from None


def choose_checkpoint(name: str | None, folder: Path) -> Path:
    """Resolves a path or a name in `folder`; without one, returns the default checkpoint."""
    models = Models(folder)
    return locate("checkpoint", name, models) if name else models.checkpoint()
