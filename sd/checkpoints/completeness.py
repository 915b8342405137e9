"""Whether a file has all tensors of its networks: the sentences that name what is missing, or what it is instead."""

from pathlib import Path

from torch import Tensor, nn

from sd.checkpoints.vae_files import USE_ANOTHER, VaeFile
from sd.utils.errors import UserError

DISPLAY_NAMES = {"unet": "the U-Net", "vae": "the VAE", "clip": "the text encoder"}


def check_completeness(path: Path, parts: dict, what: str | None, separate: VaeFile | None) -> None:
    """Raises UserError, naming it, for a file of another model or of a part of one. what: from `describe_contents`."""
    absent = [part for part, tensors in parts.items() if not tensors]
    if absent == ["vae"] and what is None:
        if separate is None:
            raise MissingVae(path)
    elif absent or what == "a ControlNet":
        what = what or f"only a part of a checkpoint, without {' and '.join(DISPLAY_NAMES[part] for part in absent)}"
        raise UserError(f"{path} is {what}: give a whole Stable Diffusion 1.x checkpoint.")


class MissingVae(UserError):
    """A checkpoint has no VAE of its own, and none was chosen for it."""

    def __init__(self, path: str | Path):
        super().__init__(
            f"{path} has no VAE of its own: choose one with --vae FILE, in Python with vae=, or put one beside it as "
            f"{Path(path).stem}.vae.safetensors."
        )
        self.path = path

    def __reduce__(self) -> tuple:
        return type(self), (self.path,)  # as it is sent between processes


def summarize_keys(keys: list[str], limit: int = 3) -> str:
    """Returns the first keys of a list as text, and how many more there are."""
    more = f" and {len(keys) - limit} more" if len(keys) > limit else ""
    return ", ".join(keys[:limit]) + more


def check_state_dict(
    part: str, network: nn.Module, tensors: dict[str, Tensor], path: Path, is_separate: bool = False
) -> None:
    """Raises UserError, naming the keys, unless a state dict has exactly the network's keys and shapes.

    is_separate: whether the network has a file of its own.
    """
    expected = network.state_dict()
    place = f"{path}: {DISPLAY_NAMES[part]}"
    wanted = USE_ANOTHER if is_separate else "give a whole Stable Diffusion 1.x checkpoint"
    if missing := [key for key in expected if key not in tensors]:
        raise UserError(f"{place} lacks {summarize_keys(missing)}: {wanted}.")
    if unexpected := [key for key in tensors if key not in expected]:
        raise UserError(
            f"{place} has {summarize_keys(unexpected)}, which Stable Diffusion 1.x does not have: {wanted}."
        )
    wrong = [
        f"{key} {list(tensors[key].shape)} instead of {list(place.shape)}"
        for key, place in expected.items()
        if tensors[key].shape != place.shape
    ]
    if wrong:
        raise UserError(f"{place} has tensors of the wrong shape: {summarize_keys(wrong)}.")
    if integers := [key for key, tensor in tensors.items() if not tensor.is_floating_point()]:
        raise UserError(f"{place} has integers in {summarize_keys(integers)}: give weights in fp32, fp16 or bf16.")
