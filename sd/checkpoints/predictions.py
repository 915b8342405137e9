"""Recognizes what a model's U-Net was trained to predict. Only the noise (epsilon) is supported."""

import re
from pathlib import Path

from torch import Tensor

from sd.utils.errors import UserError

PREDICTION_KEYS = re.compile(r"v_pred|ztsnr|edm_\w+(\.\w+)?|sigma_(min|max|data)")  # keys of such models
PREDICTION_METADATA = {  # metadata, and how its text begins in such models
    "modelspec.prediction_type": "v",
    "ss_v_parameterization": "true",
    "ss_zero_terminal_snr": "true",
}


def check_prediction_type(path: Path, keys: list, alphas: object, metadata: dict[str, str]) -> None:
    """Raises UserError for a model that predicts v, or has another noise schedule: its images would be wrong.

    alphas: the noise schedule in the file, if there is one. One that ends in pure noise has zero terminal SNR.
    """
    signs = sorted({str(key) for key in keys if PREDICTION_KEYS.fullmatch(str(key))})
    signs += [key for key, value in PREDICTION_METADATA.items() if metadata.get(key, "").lower().startswith(value)]
    if isinstance(alphas, Tensor) and alphas.shape == (1000,) and alphas[-1] < 1e-5 and alphas[0] > 0.9:
        signs.append("alphas_cumprod")
    if signs:
        raise UserError(
            f"{path} is a model with v-prediction or zero terminal SNR, as its {', '.join(signs[:3])} shows, which is "
            "not supported yet: give a model that predicts the noise (epsilon)."
        )
