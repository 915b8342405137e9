"""Images as prompts in the pipeline: given to an IP-Adapter, and made ready for a run."""

from dataclasses import dataclass

from PIL import Image
from torch import nn

from sd.control.ip_adapter.files import IPAdapter
from sd.control.ip_adapter.image_prompt import ImagePrompt
from sd.control.preprocessors import preprocess
from sd.control.units import ControlUnit
from sd.pipeline.inputs.control_images import fit_control_image
from sd.utils.images import to_rgb, to_tensor

SIDE = 512  # pixels of a square that an image is fitted to before CLIP's own size, where it is not cropped


@dataclass
class ImagePromptInput:
    """A unit with an IP-Adapter, and its image."""

    unit: ControlUnit
    loaded: IPAdapter
    image: Image.Image
    is_blank: bool = False  # see `ControlInput`

    @property
    def networks(self) -> list[nn.Module]:
        """Return what runs beside the U-Net."""
        return [self.loaded.network]

    def control_for(self, width: int, height: int) -> ImagePrompt:
        """Returns it at work; the size of the generated image changes nothing. Raises UserError for its encoder."""
        unit, image = self.unit, to_rgb(self.image)
        if unit.resize != "crop":  # which CLIP does itself
            image = fit_control_image(image, unit.resize, SIDE, SIDE)
        pixels = preprocess(image, unit.preprocessor, unit.a, unit.b)
        layers = self.loaded.read_image(to_tensor(Image.fromarray(pixels)))
        return ImagePrompt(layers, unit.weight, unit.start, unit.end)
