"""All of it together: a prompt in, pictures out.

    text      -> prompt.encode_prompts        -> context
    noise     -> walk, down a list of sigmas  -> latent        (each step: denoiser -> U-Net)
    latent    -> vae.decode                   -> picture

A picture to start from, a mask, a second pass at a higher resolution: each is another start, or another wrapper around
the denoiser, and the rest stays as it is.
"""

import sys
from collections.abc import Callable, Collection
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from sd.adapters.adapter_calls import AdapterCalls
from sd.adapters.lora_loader import LoraReport
from sd.adapters.manager import Adapters
from sd.adapters.textual_inversion import EmbeddingReport
from sd.checkpoints.checkpoint import check_latents, load_models, save_checkpoint
from sd.checkpoints.config import fill_defaults
from sd.checkpoints.discovery import BUNDLED, locate, separate_vae
from sd.checkpoints.discovery import EMBEDDINGS as EMBEDDINGS
from sd.checkpoints.discovery import LORAS as LORAS
from sd.checkpoints.discovery import WEIGHTS as WEIGHTS
from sd.checkpoints.hashing import model_hash
from sd.clip import CLIPTextModel
from sd.optimization.registry import approximate_names, optimize
from sd.pipeline.image_inputs import as_image
from sd.pipeline.init_image import Start, start_from
from sd.pipeline.latents import decode_latent, encode_image
from sd.pipeline.noise import Noise
from sd.pipeline.sampling_loop import OnStep, Progress, sigma_lists, walk
from sd.pipeline.seamless import seamless
from sd.pipeline.settings import MAX_SEED, GenerationSettings, list_prompts
from sd.pipeline.taesd import TAESD
from sd.prompts.prompt_adapters import adapters_named_in
from sd.prompts.weighting import encode_prompts
from sd.tokenizer import Tokenizer
from sd.unet import UNetModel
from sd.utils.device import default_device, default_dtype
from sd.utils.errors import UserError
from sd.utils.images import from_tensor, to_tensor, upright
from sd.vae import AutoencoderKL

ImageLike = Image.Image | str | Path | np.ndarray | Tensor


@dataclass
class Pictures:
    """What a call made: as many PIL images as seeds and infotexts, and their final latents (B, 4, h, w), scaled.

    notes: what was not honored or deserves a warning, in sentences. reports: of what the prompts' names loaded.
    """

    images: list[Image.Image]
    seeds: list[int]
    infotexts: list[str]
    latents: Tensor
    notes: list[str] = field(default_factory=list)
    reports: list[LoraReport | EmbeddingReport] = field(default_factory=list)


class StableDiffusion(AdapterCalls):
    """The networks of one checkpoint, and what they are asked to draw. Make one with `from_pretrained`.

    path, vae_path: the files of the checkpoint, and of the VAE where that is a separate one.
    notes: what loading them had to say, in sentences.
    taesd: when set (see `taesd.load_taesd`), it makes the previews; with `decode_with_taesd`, the pictures too.
    optimizations: names of `optimize.OPTIMIZATIONS` to draw with; None: the usual ones that this machine has.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        clip: CLIPTextModel,
        vae: AutoencoderKL,
        unet: UNetModel,
        sizes: dict | None = None,
        path: Path | None = None,
        vae_path: Path | None = None,
    ):
        self.tokenizer, self.clip, self.vae, self.unet = tokenizer, clip, vae, unet
        self.sizes = fill_defaults({} if sizes is None else sizes, "the pipeline")
        self.image_size = self.sizes["image_size"]  # pixels: what the model was trained at
        self.path, self.vae_path = path, vae_path
        self.notes: list[str] = []
        self.adapters = Adapters(tokenizer, clip, unet)
        self.taesd: TAESD | None = None
        self.decode_with_taesd = False
        self.optimizations: Collection[str] | None = None

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        vae: str | Path | None = None,
    ) -> "StableDiffusion":
        """path: a .ckpt, a .safetensors or a diffusers folder, or its name in weights/; the bundled model if None.

        device: a GPU where there is one. dtype: fp16 on a GPU and fp32 on a CPU, which computes fp16 slowly and badly.
        vae: a separate VAE's file, folder, or name; if None, NAME.vae.safetensors or NAME.vae.pt beside the checkpoint
        NAME, where there is one; "none": the checkpoint's own in any case.
        Raises UserError for a file that is no checkpoint of Stable Diffusion 1.x, in one sentence that says what it is.
        """
        device = default_device() if device is None else torch.device(device)
        if dtype is None:
            dtype = default_dtype(device)
        path = BUNDLED if path is None else locate("checkpoint", path)
        separate = separate_vae(vae, path, lambda text: locate("VAE", text))
        clip, autoencoder, unet, checkpoint = load_models(path, dtype=dtype, device=device, vae=separate)
        check_latents(checkpoint)
        pipe = cls(Tokenizer(), clip, autoencoder, unet, checkpoint.config, path, separate)
        pipe.notes = list(checkpoint.warnings)
        if separate is not None and str(separate) != str(vae):
            pipe.notes.append(f"the VAE is {separate}{'' if vae else ', which lies beside the checkpoint'}.")
        for note in pipe.notes:
            print(f"note: {note}", file=sys.stderr)
        return pipe

    def save_pretrained(self, path: str | Path) -> None:
        """Writes a .ckpt, a .safetensors, or, under any other name, a diffusers folder; UserError if it cannot.

        LoRAs are saved in the weights after `fuse_lora`; one that is loaded beside them is refused, as embeddings are.
        """
        self.adapters.check_saving()
        save_checkpoint(path, self.clip, self.vae, self.unet, self.sizes)

    @property
    def device(self) -> torch.device:
        return self.unet.out[2].weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.unet.out[2].weight.dtype

    def __call__(
        self,
        prompt: str | list[str],
        negative_prompt: str | list[str] | None = "",
        image: ImageLike | None = None,
        mask: ImageLike | None = None,
        strength: float = 0.8,
        steps: int = 50,
        guidance_scale: float = 7.5,
        sampler: str = "ddpm",
        seed: int | None = None,
        width: int | None = None,
        height: int | None = None,
        num_images: int = 1,
        clip_skip: int = 1,
        on_step: OnStep | None = None,
        **more: object,
    ) -> Pictures:
        """Draws `num_images` pictures of a prompt, or of each prompt of a list, with seeds that count up from `seed`.

        negative_prompt: one for all, or a list with one for each prompt; None is none.
        image: what to start from: a PIL image, a path, a numpy array or a torch tensor, see `image_inputs.as_image`.
        mask: likewise, white where to draw anew, black where to keep, see `mask.py`.
        width, height: pixels, multiples of 8; if None, the image's, or the model's own without one.
        on_step: called as on_step(steps done, steps in all, x0), x0 the scaled latents (B, 4, h, w) as the model now
        thinks they will be; what it raises stops the drawing.
        more: the other fields of `GenerationSettings`, such as schedule="karras" or hires_scale=2, and batch_size: how many
        pictures at once (on a CPU one, which makes each the same bits as alone; on a GPU all of them).
        Raises UserError, one sentence, for whatever cannot be drawn.
        """
        batch_size = more.pop("batch_size", None)
        asked = dict(strength=strength, steps=steps, guidance_scale=guidance_scale)
        asked |= dict(sampler=sampler, seed=seed, width=width, height=height, num_images=num_images)
        asked |= dict(clip_skip=clip_skip) | more
        if unknown := asked.keys() - GenerationSettings.__dataclass_fields__.keys():
            raise UserError(f"there is no setting called {min(unknown)!r}.")
        prompts, negatives = list_prompts(prompt, negative_prompt)
        first = GenerationSettings(**asked)
        image, mask = (None if one is None else as_image(one, name) for one, name in ((image, "image"), (mask, "mask")))
        many = [
            replace(first, prompt=one, negative_prompt=negative, seed=(first.seed + i * num_images) % (MAX_SEED + 1))
            for i, (one, negative) in enumerate(zip(prompts, negatives))
        ]
        made = [self.generate(settings, image, mask, on_step, batch_size) for settings in many]
        return Pictures(
            images=[picture for part in made for picture in part.images],
            seeds=[seed for part in made for seed in part.seeds],
            infotexts=[text for part in made for text in part.infotexts],
            latents=torch.cat([part.latents for part in made]) if made else torch.zeros(0),
            notes=list(dict.fromkeys(note for part in made for note in part.notes)),
            reports=[report for part in made for report in part.reports],
        )

    @torch.no_grad()
    def generate(
        self,
        settings: GenerationSettings,
        image: ImageLike | None = None,
        mask: ImageLike | None = None,
        on_step: OnStep | None = None,
        batch_size: int | None = None,
    ) -> Pictures:
        """As a call, with one `GenerationSettings`."""
        image, mask = (None if one is None else as_image(one, name) for one, name in ((image, "image"), (mask, "mask")))
        settings = self.resolve_size(settings, image)
        if mask is not None and image is None:
            raise UserError("a mask was given without a picture: give the picture that it belongs to as well.")
        if image is not None and settings.hires_scale > 1:
            raise UserError("a second, larger pass is for pictures from text: leave out hires_scale or the picture.")
        self.optimize()
        batch_size = batch_size or (1 if self.device.type == "cpu" else settings.num_images)
        rows = [slice(i, i + batch_size) for i in range(0, settings.num_images, batch_size)]
        walks = sigma_lists(settings, from_image=image is not None)
        on_each = Progress(on_step, sum(len(sigmas) - 1 for sigmas in walks) * len(rows))

        start = start_from(self.unet, self.vae, image, mask, settings.width, settings.height)
        latents, images = [], []
        edges = seamless(self.unet, self.vae) if settings.tiling else nullcontext()
        with edges, adapters_named_in(self.adapters, settings.prompt, settings.negative_prompt) as named:
            contexts = self.encode_prompts(settings.replace(prompt=named.prompt, negative_prompt=named.negative_prompt))
            for row in rows:
                latents.append(self.sample_latents(settings, row, contexts, start, walks, on_each))
                images += from_tensor(start.paste(self.decode(latents[-1])))
        return Pictures(
            images=images,
            seeds=settings.seeds(),
            infotexts=self.infotexts(settings, image is not None),
            latents=torch.cat(latents),
            notes=list(dict.fromkeys([*start.notes, *named.notes])),
            reports=named.reports,
        )

    def sample_latents(
        self,
        settings: GenerationSettings,
        row: slice,
        contexts: tuple[Tensor, Tensor],
        start: Start,
        walks: list[list[float]],
        on_each: Callable[[Tensor], None],
    ) -> Tensor:
        """The final latents (B, 4, h, w), scaled, of the B pictures in `row`: one walk, or two with `hires_scale`."""
        shape = (4, settings.height // self.vae.downsample, settings.width // self.vae.downsample)
        seeds, variations = settings.seeds()[row], settings.variation_seeds()[row]
        noise = Noise(seeds, shape, self.device, variations, settings.variation_strength)
        latent = walk(self.unet, settings, walks[0], contexts, start, noise, on_each)
        if len(walks) > 1:
            second = start_from(self.unet, self.vae, None, None, *settings.hires_size)
            second.known = self.upscale_latent(latent, settings)
            noise.shape = tuple(second.known.shape[1:])
            latent = walk(self.unet, settings, walks[1], contexts, second, noise, on_each)
        return latent

    def resolve_size(self, settings: GenerationSettings, image: Image.Image | None) -> GenerationSettings:
        """The settings with a width and height: as given, or the picture's cut to multiples of 8, or the model's."""
        width, height = [self.image_size] * 2 if image is None else [side // 8 * 8 for side in upright(image).size]
        return settings.replace(
            width=width if settings.width is None else settings.width,
            height=height if settings.height is None else settings.height,
        )

    def optimize(self) -> list[str]:
        """Puts on what `optimizations` asks for; says what is on. Takes a moment before the first picture only."""
        return optimize(self.unet, self.vae, self.optimizations, self.clip)

    def encode_prompts(self, settings: GenerationSettings) -> tuple[Tensor, Tensor]:
        """(uncond, cond), each (1, M, D), of equal length."""
        texts = [settings.negative_prompt, settings.prompt]
        uncond, cond = encode_prompts(self.tokenizer, self.clip, texts, settings.clip_skip).chunk(2)
        return uncond, cond

    def decode(self, latent: Tensor) -> Tensor:
        """Scaled latents (B, 4, h, w) to pictures (B, 3, H, W), in [-1, 1] but for overshoot, fp32."""
        if self.taesd is not None and self.decode_with_taesd:
            return self.decode_preview(latent)
        return decode_latent(self.vae, latent)

    def decode_preview(self, latent: Tensor) -> Tensor:
        """As `decode`, by TAESD."""
        weight = next(self.taesd.parameters())
        return self.taesd.decode(latent.to(weight.device, weight.dtype)).float()

    @torch.no_grad()
    def preview(self, latent: Tensor) -> list[Image.Image]:
        """Scaled latents (B, 4, h, w), such as `on_step` is given, as pictures: by TAESD where there is one."""
        return from_tensor(self.decode(latent) if self.taesd is None else self.decode_preview(latent))

    def upscale_latent(self, latent: Tensor, settings: GenerationSettings) -> Tensor:
        """The latent of the second walk's size: interpolated itself, or its picture enlarged and encoded again."""
        width, height = settings.hires_size
        if settings.hires_upscaler == "latent":
            size = (height // self.vae.downsample, width // self.vae.downsample)
            return F.interpolate(latent, size=size, mode="bilinear")
        pictures = [p.resize((width, height), Image.Resampling.LANCZOS) for p in from_tensor(self.decode(latent))]
        return torch.cat([encode_image(self.vae, to_tensor(picture)) for picture in pictures])

    def infotexts(self, settings: GenerationSettings, from_image: bool) -> list[str]:
        name, hashed = (self.path.stem, model_hash(self.path)) if self.path else ("", "")
        more = {} if self.dtype == torch.float32 else {"Precision": str(self.dtype).removeprefix("torch.")}
        if self.vae_path is not None:
            more |= {"VAE hash": model_hash(self.vae_path) or None, "VAE": self.vae_path.name}
        more |= {"Adapters": ", ".join(self.adapters.names())} if self.adapters.names() else {}
        more |= {"Approximations": ", ".join(inexact)} if (inexact := approximate_names(self.optimizations)) else {}
        return [settings.infotext(i, name, hashed, from_image, **more) for i in range(settings.num_images)]
