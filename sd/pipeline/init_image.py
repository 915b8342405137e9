"""Inputs of img2img and inpainting: the init image's latent, its mask, and the channels of an inpainting U-Net."""

from dataclasses import dataclass, field

import torch
from PIL import Image
from torch import Tensor

from sd.control.interval import Interval
from sd.pipeline.inputs.soft_inpaint import soft_latent_mask
from sd.pipeline.latents import encode_image
from sd.pipeline.mask import latent_mask, mask_notes, mask_to_tensor
from sd.unet import UNetModel
from sd.utils.images import apply_orientation, resize_and_crop, to_tensor
from sd.vae import AutoencoderKL


@dataclass
class InitImage:
    """An init image as the sampling loop needs it; all None for txt2img.

    init_latent: (1, 4, h, w), scaled. latent_mask: (1, 1, h, w), 1 where to generate. inpaint_channels: (1, 5, h, w),
    the further input of a 9-channel U-Net: the mask and the masked image's latent. pixels (1, 3, H, W) and mask (1, 1,
    H, W): the image and its mask, for `paste`. notes: sentences on the mask. controls: ControlNets, references and
    image prompts that work on the U-Net, with txt2img too. soft_mask: for soft inpainting, (1, 1, h, w) in [0, 1].
    tile: the side of a window of tiled diffusion, in positions of the latent; 0 for none. region_weights: of the
    prompt's regions, see `sd.pipeline.inputs.regions`; none for a plain prompt.
    """

    init_latent: Tensor | None = None
    latent_mask: Tensor | None = None
    inpaint_channels: Tensor | None = None
    pixels: Tensor | None = None
    mask: Tensor | None = None
    notes: list[str] = field(default_factory=list)
    controls: list[Interval] = field(default_factory=list)
    soft_mask: Tensor | None = None
    tile: int = 0
    region_weights: list[Tensor] = field(default_factory=list)

    def paste(self, generated: Tensor) -> Tensor:
        """Returns generated images (B, 3, H, W) with the init image's own pixels where the mask is black."""
        if self.mask is None or self.pixels is None:
            return generated
        return torch.lerp(self.pixels, generated.cpu(), self.mask)


def prepare_init_image(
    unet: UNetModel,
    vae: AutoencoderKL,
    image: Image.Image | None,
    mask: Image.Image | None,
    width: int,
    height: int,
    soft: bool = False,
) -> InitImage:
    """Encodes an image and a mask, fitted to width x height pixels; a mask is stretched over its image first.

    soft: whether gray parts of the mask count as gray.

    Without an image, a 9-channel U-Net gets a gray one that is masked everywhere. Raises UserError for a mask that
    leaves nothing to regenerate.
    """
    for_inpainting = unet.in_channels == 9
    if image is None and not for_inpainting:
        return InitImage()
    pixels = torch.zeros(1, 3, height, width) if image is None else to_tensor(resize_and_crop(image, width, height))
    if mask is None and not for_inpainting:
        return InitImage(init_latent=encode_image(vae, pixels))
    if mask is None or image is None:
        full_mask = torch.ones_like(pixels[:, :1])  # (1, 1, H, W)
    else:
        full_mask = mask_to_tensor(mask, width, height, over=apply_orientation(image).size)
    cells = latent_mask(full_mask, vae.downsample).to(vae.post_quant_conv.weight.device)  # (1, 1, h, w)
    init = InitImage(init_latent=None if image is None else encode_image(vae, pixels))
    if mask is not None and image is not None:
        init.notes = mask_notes(mask, cells)
        init.latent_mask, init.pixels, init.mask = cells, pixels, full_mask
        init.soft_mask = soft_latent_mask(full_mask, vae.downsample).to(cells.device) if soft else None
    if for_inpainting:
        masked_latent = encode_image(vae, pixels * (full_mask < 0.5))  # the masked part is mid-gray, 0
        init.inpaint_channels = torch.cat([cells, masked_latent], dim=1)
    return init
