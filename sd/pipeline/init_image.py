"""Where a drawing starts when there is a picture: its latent, its mask, and what an inpainting U-Net wants of both."""

from dataclasses import dataclass, field

import torch
from PIL import Image
from torch import Tensor

from sd.pipeline.latents import encode_image
from sd.pipeline.mask import latent_mask, mask_notes, mask_to_tensor
from sd.unet import UNetModel
from sd.utils.images import fit, to_tensor, upright
from sd.vae import AutoencoderKL


@dataclass
class Start:
    """What there is of a picture to start from; all None without one.

    known: its latent (1, 4, h, w), scaled. mask: (1, 1, h, w), 1 where to draw. extra: (1, 5, h, w), what a 9-channel
    U-Net sees beside x: the mask and the masked picture's latent. pixels (1, 3, H, W), to_draw (1, 1, H, W): the
    picture and the mask themselves. notes: sentences on the mask.
    """

    known: Tensor | None = None
    mask: Tensor | None = None
    extra: Tensor | None = None
    pixels: Tensor | None = None
    to_draw: Tensor | None = None
    notes: list[str] = field(default_factory=list)

    def paste(self, drawn: Tensor) -> Tensor:
        """The drawn pictures (B, 3, H, W) with the picture's own pixels back where the mask is black."""
        return drawn if self.to_draw is None else torch.lerp(self.pixels, drawn.cpu(), self.to_draw)


def start_from(
    unet: UNetModel, vae: AutoencoderKL, image: Image.Image | None, mask: Image.Image | None, width: int, height: int
) -> Start:
    """image, mask: fitted to width and height, pixels. A mask is stretched over its picture first.

    Without a picture a 9-channel U-Net is told that all of a grey one is to be drawn. Raises UserError for a mask that
    leaves nothing to regenerate.
    """
    for_inpainting = unet.in_channels == 9
    if image is None and not for_inpainting:
        return Start()
    pixels = torch.zeros(1, 3, height, width) if image is None else to_tensor(fit(image, width, height))
    if mask is None:
        to_draw = torch.ones_like(pixels[:, :1])  # (1, 1, H, W)
    else:
        to_draw = mask_to_tensor(mask, width, height, over=upright(image).size)
    cells = latent_mask(to_draw, vae.downsample).to(vae.post_quant_conv.weight.device)  # (1, 1, h, w)
    start = Start(known=None if image is None else encode_image(vae, pixels))
    if mask is not None:
        start.notes = mask_notes(mask, upright(image).size, cells)
        start.mask, start.pixels, start.to_draw = cells, pixels, to_draw
    if for_inpainting:
        hidden = encode_image(vae, pixels * (to_draw < 0.5))  # what is to be drawn is mid-grey, 0
        start.extra = torch.cat([cells, hidden], dim=1)
    return start
