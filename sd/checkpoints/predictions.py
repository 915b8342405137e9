"""What a model's U-Net predicts, and the end of its noise schedule, as the marks in its files show them.

eps  the noise: Stable Diffusion 1.x, and what is assumed where there is no mark
v    a mixture of noise and image (Salimans & Ho 2022, "Progressive Distillation for Fast Sampling", appendix D)

A model of zero terminal SNR (Lin et al. 2023) was trained with a schedule whose last level is pure noise.
"""

import re
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from sd.utils.errors import UserError

V_KEY, ZERO_SNR_KEY = "v_pred", "ztsnr"  # empty tensors in a state dict, as other programs write and read them
OTHER_KEYS = re.compile(r"edm_\w+(\.\w+)?|sigma_(min|max|data)")  # keys of models with another denoiser
V_METADATA = {"modelspec.prediction_type": "v", "ss_v_parameterization": "true"}  # and how the text begins
ZERO_SNR_METADATA = {"ss_zero_terminal_snr": "true"}
PURE_NOISE = 1e-5  # a share of signal below this, at the last timestep, is none
YAML_V = re.compile(r"""^[ \t]*parameterization:[ \t]*["']?v["']?\s*(#.*)?$""", re.MULTILINE)
MAX_YAML = 1 << 20


class Prediction(NamedTuple):
    """What a U-Net predicts. v: v instead of the noise. zero_snr: whether its schedule ends in pure noise."""

    v: bool = False
    zero_snr: bool = False

    @property
    def name(self) -> str:
        """One of `PREDICTIONS`."""
        return ("v" if self.v else "eps") + ("-zero-snr" if self.zero_snr else "")


EPS = Prediction()
PREDICTIONS = {one.name: one for one in (EPS, Prediction(v=True), Prediction(zero_snr=True), Prediction(True, True))}
PREDICTION_HELP = (
    f"what the model predicts, one of {', '.join(PREDICTIONS)}; eps and v leave the noise schedule as the file marks it"
)


def find_prediction(path: Path, keys: list, alphas: object, metadata: dict[str, str]) -> Prediction:
    """Return what the marks of a checkpoint's file, or of the webui's NAME.yaml beside it, show; eps without a mark.

    alphas: the noise schedule in the file, if there is one. One that ends in pure noise has zero terminal SNR.
    Raises UserError for a model with another kind of denoiser (EDM): its images would be wrong.
    """
    names = {str(key) for key in keys}
    if other := sorted(name for name in names if OTHER_KEYS.fullmatch(name)):
        raise UserError(
            f"{path} is a model of the EDM family, as its {', '.join(other[:3])} shows, which is not supported: give a "
            "model that predicts the noise (epsilon) or v."
        )
    marked_v = V_KEY in names or has_metadata(metadata, V_METADATA) or YAML_V.search(read_yaml(path)) is not None
    marked_zero = ZERO_SNR_KEY in names or has_metadata(metadata, ZERO_SNR_METADATA) or ends_in_noise(alphas)
    return Prediction(marked_v, marked_zero)


def has_metadata(metadata: dict[str, str], marks: dict[str, str]) -> bool:
    return any(metadata.get(key, "").lower().startswith(value) for key, value in marks.items())


def ends_in_noise(alphas: object) -> bool:
    """Return whether a file's alphas_cumprod are those of zero terminal SNR."""
    is_table = isinstance(alphas, Tensor) and alphas.shape == (1000,)
    return isinstance(alphas, Tensor) and is_table and bool(alphas[-1] < PURE_NOISE) and bool(alphas[0] > 0.9)


def read_yaml(path: Path) -> str:
    """Return the webui's configuration of a checkpoint, NAME.yaml beside it; "" where there is none."""
    place = path.with_suffix(".yaml")
    try:
        is_read = place.is_file() and place.stat().st_size < MAX_YAML  # a pipe would be waited for
        return place.read_text(encoding="utf-8", errors="replace") if is_read else ""
    except OSError:
        return ""


def choose_prediction(marked: Prediction, chosen: str | None) -> Prediction:
    """Return what the user chose, one of `PREDICTIONS`, or what is marked if None.

    "eps" and "v" alone leave the noise schedule as it is marked. Raises UserError for another name.
    """
    if chosen is None:
        return marked
    if chosen not in PREDICTIONS:
        raise UserError(f"unknown prediction {chosen!r}; choose from {', '.join(PREDICTIONS)}.")
    found = PREDICTIONS[chosen]
    return found._replace(zero_snr=found.zero_snr or marked.zero_snr)


def prediction_of(config: dict) -> Prediction:
    """Return what a configuration (see `sd.checkpoints.config`) names; one without the entry is eps."""
    return PREDICTIONS[config.get("prediction", EPS.name)]


def with_prediction(config: dict, prediction: Prediction) -> dict:
    """Return a configuration that names a prediction; one of eps has no entry, as before there was a choice."""
    rest = {name: value for name, value in config.items() if name != "prediction"}
    return rest if prediction == EPS else rest | {"prediction": prediction.name}


def prediction_marks(prediction: Prediction) -> dict[str, Tensor]:
    """Return the entries of a state dict that mark it."""
    marks = {V_KEY: prediction.v, ZERO_SNR_KEY: prediction.zero_snr}
    return {key: torch.zeros(0) for key, marked in marks.items() if marked}


def prediction_metadata(metadata: dict[str, str], prediction: Prediction) -> dict[str, str]:
    """Return a checkpoint's metadata with what it predicts, and without older words on it that are not true."""
    known = (*V_METADATA, *ZERO_SNR_METADATA)
    if prediction == EPS and not any(key in metadata for key in known):
        return metadata
    rest = {key: value for key, value in metadata.items() if key not in known}
    zero = {"ss_zero_terminal_snr": "True"} if prediction.zero_snr else {}
    return rest | {"modelspec.prediction_type": "v" if prediction.v else "epsilon"} | zero
