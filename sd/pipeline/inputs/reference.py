"""Reference images in the pipeline: encoded, and made ready for an image size."""

from dataclasses import dataclass

import torch
from PIL import Image
from torch import nn

from sd.control.preprocessors import PREPROCESSORS
from sd.control.reference import Reference
from sd.control.units import MODES, ControlUnit
from sd.pipeline.inputs.control_images import fit_control_image
from sd.pipeline.latents import encode_image
from sd.schedule import NoiseSchedule
from sd.utils.images import to_tensor
from sd.vae import AutoencoderKL

SEED = 0xAD41_0E5F  # of the reference's noise: one that no image is likely to start from
FIDELITY = {"prompt": 0.0, "control": 1.0}  # by the mode of a unit; in the mode "balanced" it is the unit's `a`


@dataclass
class ReferenceInput:
    """A unit without a ControlNet, and its image. vae, schedule: what the image is encoded and noised with."""

    unit: ControlUnit
    image: Image.Image
    vae: AutoencoderKL
    schedule: NoiseSchedule
    is_blank: bool = False  # see `ControlInput`

    @property
    def networks(self) -> list[nn.Module]:
        """Return what runs beside the U-Net: nothing."""
        return []

    def control_for(self, width: int, height: int, second_pass: bool = False) -> Reference:
        """Returns it at work on an image of this size, in the first pass or in the second.

        The noise is the same at every step and for every image of a call, so that the U-Net reads the reference as it
        would on its way back from that noise, and one run of it serves all images.
        """
        unit = self.unit
        latent = encode_image(self.vae, to_tensor(fit_control_image(self.image, unit.resize, width, height)))
        noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(SEED)).to(latent.device)
        return Reference(
            torch.cat([latent, noise], dim=1),
            self.schedule,
            unit.weight,
            unit.start,
            unit.end,
            fidelity=fidelity_of(unit, second_pass),
            attention=unit.preprocessor != "reference_adain",
            adain=unit.preprocessor != "reference_only",
        )


def fidelity_of(unit: ControlUnit, second_pass: bool = False) -> float:
    """Returns the style fidelity that a unit works at: in the second pass 0 in place of its own, as in the webui."""
    own = PREPROCESSORS[unit.preprocessor].a.default if unit.a is None else unit.a
    return FIDELITY.get(unit.mode, 0.0 if second_pass else own)


def reference_notes(unit: ControlUnit) -> list[str]:
    """Returns sentences on the values of a unit without a ControlNet that change nothing."""
    notes = []
    if unit.mode in FIDELITY and unit.a is not None:
        notes.append(
            f'The style fidelity of {unit.preprocessor} is {FIDELITY[unit.mode]:g} in the mode "{MODES[unit.mode]}": '
            f"{unit.a:g} changes nothing."
        )
    if unit.preprocessor == "reference_only" and unit.weight > 1:
        notes.append(f"A weight of 1 changes all self-attentions: {unit.weight:g} is the same for {unit.preprocessor}.")
    return notes
