"""StableDiffusion, which joins all parts: a prompt in, images out.

    prompt    -> weighting.encode_prompts              -> context
    noise     -> sampling_loop.sample, along sigmas    -> latent    (each step: denoiser -> U-Net)
    latent    -> vae.decode                            -> image

img2img, inpainting and a second pass at a higher resolution change the start of the loop or wrap the denoiser; the rest
stays as it is.
"""

import sys
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from sd.adapters.adapter_calls import AdapterCalls
from sd.adapters.manager import Adapters
from sd.checkpoints.checkpoint import check_latents, load_models, save_checkpoint
from sd.checkpoints.config import fill_defaults
from sd.checkpoints.discovery import BUNDLED, locate, separate_vae
from sd.checkpoints.hashing import model_hash
from sd.checkpoints.predictions import Prediction, prediction_of
from sd.clip import CLIPTextModel
from sd.optimization.registry import approximate_names, optimize
from sd.pipeline.circular_padding import circular_padding
from sd.pipeline.image_inputs import ImageLike, as_image_list, as_images
from sd.pipeline.init_image import InitImage, prepare_init_image
from sd.pipeline.inputs.control import AnyInput, ControlNets, control_inputs, controls_for, idle_notes, input_notes
from sd.pipeline.inputs.few_steps import few_step_notes
from sd.pipeline.inputs.masked import prepare_masked
from sd.pipeline.inputs.outpaint import as_asked, extend_image
from sd.pipeline.inputs.regions import region_notes, region_weights
from sd.pipeline.inputs.second_pass import upscale_latent
from sd.pipeline.inputs.sizes import check_inputs, check_named_models, resolve_size, settings_notes, width_and_height
from sd.pipeline.latents import decode_latent
from sd.pipeline.mask import stretch_notes
from sd.pipeline.metadata.settings_infotext import to_infotext
from sd.pipeline.noise import SeededNoise
from sd.pipeline.options import check_whole
from sd.pipeline.output import GenerationOutput
from sd.pipeline.sampling.conditioning import Conditioning, encode_conditioning
from sd.pipeline.sampling.regional_loras import encode_with_loras
from sd.pipeline.sampling.v_prediction import schedule_of
from sd.pipeline.sampling_loop import OnStep, Progress, sample, schedule_for_model, sigmas_for_passes
from sd.pipeline.settings import MAX_IMAGES, MAX_SEED, OPTIONS, GenerationSettings, list_prompts
from sd.pipeline.taesd import TAESD, load_taesd
from sd.pipeline.trace import Trace
from sd.prompts.prompt_adapters import keep_prompt_loras, load_prompt_adapters, release_others
from sd.prompts.weighting import encode_prompts
from sd.tokenizer import Tokenizer
from sd.unet import UNetModel
from sd.utils.device import default_dtype, device_of
from sd.utils.errors import UserError
from sd.utils.images import first_frame_notes, from_tensor
from sd.vae import AutoencoderKL

FIELDS = {row.name for row in OPTIONS}


class StableDiffusion(AdapterCalls):
    """The networks of one checkpoint, and how to generate images with them. Create one with `from_pretrained`.

    prediction: what the U-Net predicts, as the checkpoint is marked; chosen_prediction: as the user chose, or None.
    path, vae_path: the files of the checkpoint, and of the VAE where that is a separate one.
    notes: sentences from loading them. taesd, optimizations: see `enable_taesd` and `set_optimizations`.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        clip: CLIPTextModel,
        vae: AutoencoderKL,
        unet: UNetModel,
        sizes: dict[str, Any] | None = None,
        path: Path | None = None,
        vae_path: Path | None = None,
    ):
        self.tokenizer, self.clip, self.vae, self.unet = tokenizer, clip, vae, unet
        self.sizes = fill_defaults({} if sizes is None else sizes, "the pipeline")
        self.image_size: int = self.sizes["image_size"]  # pixels: what the model was trained at
        self.path, self.vae_path = path, vae_path
        self.notes: list[str] = []
        self.chosen_prediction: str | None = None
        self.adapters = Adapters(tokenizer, clip, unet)
        self.controlnets = ControlNets(unet, vae, self.sizes["unet"], schedule_of(self.prediction))
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
        prediction: str | None = None,
    ) -> "StableDiffusion":
        """Loads a .ckpt, a .safetensors or a diffusers folder, or its name in weights/; the bundled model if None.

        device: a GPU where there is one. dtype: fp16 on a GPU and fp32 on a CPU, where fp16 is slow and inexact.
        vae: the file, folder or name of a separate VAE; if None, NAME.vae.safetensors or NAME.vae.pt beside the
        checkpoint NAME, where there is one; "none": the checkpoint's own in any case.
        prediction: what the U-Net predicts, one of `predictions.PREDICTIONS` ("eps", "v" and others), for a checkpoint
        without the marks of it; None: as the checkpoint is marked, else the noise (eps).
        Raises UserError, in one sentence, for a file that is not a checkpoint of Stable Diffusion 1.x.
        """
        device = device if isinstance(device, torch.device) else device_of(device)
        if dtype is None:
            dtype = default_dtype(device)
        if not isinstance(dtype, torch.dtype):
            raise UserError(f"the dtype is {dtype!r}: give one of PyTorch's, such as torch.float16.")
        path = BUNDLED if path is None else locate("checkpoint", path)
        separate = separate_vae(vae, path, lambda text: locate("VAE", text))
        clip, autoencoder, unet, checkpoint = load_models(path, dtype, device, separate, prediction)
        check_latents(checkpoint)
        pipe = cls(Tokenizer(), clip, autoencoder, unet, checkpoint.config, path, separate)
        pipe.notes = list(checkpoint.warnings)
        pipe.chosen_prediction = prediction
        if separate is not None and str(separate) != str(vae):
            pipe.notes.append(f"the VAE is {separate}{'' if vae else ', which lies beside the checkpoint'}.")
        for note in pipe.notes:
            print(f"note: {note}", file=sys.stderr)
        return pipe

    def save_pretrained(self, path: str | Path) -> None:
        """Saves a .ckpt, a .safetensors, or, under any other name, a diffusers folder. Raises UserError if it cannot.

        LoRAs are saved in the weights after `fuse_lora`; a LoRA or an embedding that is only loaded is refused.
        """
        self.adapters.check_saving()
        save_checkpoint(path, self.clip, self.vae, self.unet, self.sizes)

    @property
    def device(self) -> torch.device:
        return self.unet.out[2].weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.unet.out[2].weight.dtype

    @property
    def prediction(self) -> Prediction:
        return prediction_of(self.sizes)

    def enable_taesd(self, path: str | Path, for_images: bool = True) -> None:
        """Loads TAESD, a tiny decoder, for the previews, and for the images unless `for_images` is False.

        path: see `taesd.load_taesd`. Raises UserError, and changes nothing, where it cannot be loaded.
        """
        self.taesd = load_taesd(path, self.device)
        self.decode_with_taesd = for_images

    def set_optimizations(self, names: Collection[str] | None) -> None:
        """Chooses the optimizations of `registry.OPTIMIZATIONS` by name; None: the exact ones that fit this machine.

        They are applied by the next image, or at once by `optimize`, which raises UserError for an unknown name. So
        does this for what is no list of names.
        """
        is_list = isinstance(names, Collection) and not isinstance(names, (str, bytes))
        if names is not None and not (is_list and all(isinstance(name, str) for name in names)):
            raise UserError(f"the optimizations are {names!r}: give a list of names, such as ['exact', 'int8'].")
        self.optimizations = names

    def optimize(self) -> list[str]:
        """Applies the chosen optimizations, and returns their names. Every call of the pipeline does so first."""
        return optimize(self.unet, self.vae, self.optimizations, self.clip)

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
        batch_size: int | None = None,
        schedule: str = "",
        guidance_rescale: float = 0.0,
        variation_seed: int | None = None,
        variation_strength: float = 0.0,
        hires_scale: float = 1.0,
        hires_strength: float = 0.7,
        hires_steps: int = 0,
        hires_upscaler: str = "latent",
        tiling: bool = False,
        rng: str = "cpu",
        ensd: int = 0,
        eta: float | None = None,
        compat: str = "none",
        emphasis: str = "original",
        comma_padding: int = 20,
        guidance_start: float = 0.0,
        guidance_end: float = 1.0,
        ngms: float = 0.0,
        step_cache: float = 1.0,
        token_merging: float = 0.0,
        region_ratios: str = "",
        region_base: float = 0.2,
        control: str = "",
        invert_mask: bool = False,
        mask_blur: int = 0,
        masked_content: str = "original",
        only_masked: bool = False,
        only_masked_padding: int = 32,
        soft_inpainting: bool = False,
        outpaint: int = 0,
        outpaint_sides: str = "left, right, up, down",
        tile_size: int = 0,
        tile_overlap: float = 0.25,
        control_image: ImageLike | Sequence[ImageLike] | None = None,
        region_mask: ImageLike | Sequence[ImageLike] | None = None,
    ) -> GenerationOutput:
        """Generates `num_images` images of a prompt, or of each prompt of a list, with seeds that count up from `seed`.

        negative_prompt: one for all, or a list with one for each prompt. image: the init image of img2img, see
        `image_inputs.as_image` for the types. mask: likewise, white where to regenerate, black where to keep. on_step:
        called as on_step(steps done, all steps, x0) with the scaled x0 (B, 4, h, w); an exception in it ends the call.
        batch_size: how many images at once; by default one on a CPU, where each has the same bits as alone, and all on
        a GPU. control_image: the image of the ControlNet in `control`, or a list with one for each; without it the init
        image is used. region_mask: a mask for each region of the prompt, white where it works; without them ADDCOL and
        ADDROW divide the image, see `sd.prompts.regions`. The others are the options of `GenerationSettings`. Raises
        UserError for what cannot be generated.
        """
        given = {name: value for name, value in locals().items() if name in FIELDS - {"prompt", "negative_prompt"}}
        prompts, negatives = list_prompts(prompt, negative_prompt)
        first = GenerationSettings(**given)
        image, mask = as_images(image, mask)
        control_images = as_image_list(control_image, "control image")
        region_masks = as_image_list(region_mask, "region mask")
        parts = []
        with self.keep_prompt_loras():
            for i, (one, negative) in enumerate(zip(prompts, negatives)):
                next_seed = (first.seeds()[0] + i * num_images) % (MAX_SEED + 1)
                settings = first.replace(prompt=one, negative_prompt=negative, seed=next_seed)
                parts.append(self.generate(settings, image, mask, on_step, batch_size, control_images, region_masks))
        return GenerationOutput.concatenate(parts)

    def keep_prompt_loras(self) -> AbstractContextManager[None]:
        """Returns a context for several calls of `generate`: the LoRAs that a prompt names stay until others are named.

        The images are those without it; the LoRAs are loaded once.
        """
        return keep_prompt_loras(self.adapters)

    @torch.no_grad()
    def generate(
        self,
        settings: GenerationSettings,
        image: ImageLike | None = None,
        mask: ImageLike | None = None,
        on_step: OnStep | None = None,
        batch_size: int | None = None,
        control_images: Sequence[Image.Image] = (),
        region_masks: Sequence[Image.Image] = (),
        trace: Trace | None = None,
    ) -> GenerationOutput:
        """Generates the images of one `GenerationSettings`; the other arguments are those of a call.

        trace: records the steps of the first image's first pass.
        """
        if batch_size is not None:
            check_whole("batch_size", batch_size, 1, MAX_IMAGES)
        image, mask = as_images(image, mask)
        control_images = as_image_list(control_images, "control image")
        region_masks = as_image_list(region_masks, "region mask")
        frames = first_frame_notes(
            init_image=[image], mask=[mask], control_image=control_images, region_mask=region_masks
        )
        frames += stretch_notes(mask, image)
        settings = self.resolve_size(settings, image)
        check_inputs(settings, image, mask)
        check_named_models(settings, self.adapters.models, len(control_images), len(region_masks), image is not None)
        asked, from_image = settings, image is not None
        settings, image, mask = extend_image(settings, image, mask)
        masked = prepare_masked(settings, image, mask)
        image, mask = masked.image, masked.mask
        controls = control_inputs(self.controlnets, settings.control, self.adapters.models, control_images, masked)
        release_others(self.adapters, settings.prompt)  # before their layers are optimized as all others are
        self.optimize()
        batch_size = batch_size or (1 if self.device.type == "cpu" else settings.num_images)
        rows = [slice(i, i + batch_size) for i in range(0, settings.num_images, batch_size)]
        settings, notes = schedule_for_model(settings, self.prediction)
        notes += [*frames, *settings_notes(asked), *region_notes(settings, region_masks, *width_and_height(settings))]
        passes = sigmas_for_passes(settings, from_image, self.prediction)
        notes += idle_notes(controls, passes, schedule_of(self.prediction))
        on_each = Progress(on_step, sum(len(sigmas) - 1 for sigmas in passes) * len(rows))

        size = width_and_height(settings)
        init = prepare_init_image(self.unet, self.vae, image, mask, *size, settings.soft_inpainting)
        init.tile = settings.tile_size // self.vae.downsample
        init.region_weights = region_weights(settings, region_masks, *size, self.vae.downsample)
        latents, images = [], []
        padded = [self.unet, self.vae, *(network for one in controls for network in one.networks)]
        padding = circular_padding(*padded) if settings.tiling else nullcontext()
        with padding, load_prompt_adapters(self.adapters, settings.prompt, settings.negative_prompt) as named:
            texts = settings.replace(prompt=named.prompt, negative_prompt=named.negative_prompt)
            named.notes += few_step_notes(self.adapters.loras(), settings.guidance_scale)
            loras = named.region_loras(self.adapters)
            encode = [partial(self.encode_prompts, texts, second_pass=i > 0) for i in range(len(passes))]
            contexts = [encode_with_loras(one, loras) for one in encode]
            init.controls = controls_for(controls, *size)
            if trace is not None:
                side = self.vae.downsample
                networks, latent_size = (self.tokenizer, self.clip, self.unet), (size[1] // side, size[0] // side)
                trace.prepare(networks, texts, contexts[0], passes[0], latent_size)
            for row in rows:
                first = trace if row.start == 0 else None
                latents.append(
                    self.sample_latents(settings, row, contexts, init, passes, on_each, controls, region_masks, first)
                )
                images += from_tensor(init.paste(self.decode(latents[-1])))
        return GenerationOutput(
            images=masked.finish(images),
            seeds=settings.seeds(),
            infotexts=self.infotexts(as_asked(settings, asked), from_image, len(region_masks)),
            latents=torch.cat(latents),
            notes=list(dict.fromkeys([*notes, *masked.notes, *init.notes, *named.notes, *input_notes(controls)])),
            reports=named.reports,
        )

    def sample_latents(
        self,
        settings: GenerationSettings,
        row: slice,
        contexts: list[Conditioning],
        init: InitImage,
        passes: list[list[float]],
        on_each: Callable[[Tensor], None],
        controls: Sequence[AnyInput] = (),
        region_masks: Sequence[Image.Image] = (),
        trace: Trace | None = None,
    ) -> Tensor:
        """Returns the final latents (B, 4, h, w), scaled, of the B images in `row`, after one pass or two."""
        width, height = width_and_height(settings)
        shape = (4, height // self.vae.downsample, width // self.vae.downsample)
        seeds, variation_seeds = settings.seeds()[row], settings.variation_seeds()[row]
        noise = SeededNoise(
            *(seeds, shape, self.device, variation_seeds, settings.variation_strength, settings.rng, settings.ensd),
            later="gpu" if settings.compat == "comfyui" else None,
        )
        latent = sample(self.unet, settings, passes[0], contexts[0], init, noise, on_each, self.prediction, trace)
        if len(passes) > 1:
            second = prepare_init_image(self.unet, self.vae, None, None, *settings.hires_size)
            second.tile = init.tile
            second.controls = controls_for(controls, *settings.hires_size, second_pass=True)
            second.region_weights = region_weights(settings, region_masks, *settings.hires_size, self.vae.downsample)
            second.init_latent = upscale_latent(self.vae, self.decode, latent, settings, self.adapters.models)
            noise.shape = tuple(second.init_latent.shape[1:])
            if settings.compat != "none":
                noise.restart(noise.shape)
            latent = sample(self.unet, settings, passes[1], contexts[1], second, noise, on_each, self.prediction)
        return latent

    def resolve_size(self, settings: GenerationSettings, image: Image.Image | None) -> GenerationSettings:
        """Returns the settings with a size: as given, else the image's, cut to multiples of 8, else the model's."""
        return resolve_size(settings, image, self.image_size)

    def encode_prompts(self, settings: GenerationSettings, second_pass: bool = False) -> Conditioning:
        """Returns the contexts of the prompts for one of the passes."""

        def encode(texts: list[str]) -> Tensor:
            given = (settings.clip_skip, settings.emphasis, settings.comma_padding)
            return encode_prompts(self.tokenizer, self.clip, texts, *given)

        return encode_conditioning(settings, encode, second_pass)

    def decode(self, latent: Tensor) -> Tensor:
        """Decodes scaled latents (B, 4, h, w) to images (B, 3, H, W), fp32, in [-1, 1] except for overshoot."""
        return self.decode_preview(latent) if self.decode_with_taesd else decode_latent(self.vae, latent)

    def decode_preview(self, latent: Tensor) -> Tensor:
        """Decodes like `decode`, by TAESD where it is enabled."""
        if self.taesd is None:
            return decode_latent(self.vae, latent)
        weight = next(self.taesd.parameters())
        return self.taesd.decode(latent.to(weight.device, weight.dtype)).float()

    @torch.no_grad()
    def preview(self, latent: Tensor) -> list[Image.Image]:
        """Returns scaled latents (B, 4, h, w), such as the x0 of `on_step`, as images, by TAESD where it is enabled."""
        return from_tensor(self.decode_preview(latent))

    def infotexts(self, settings: GenerationSettings, from_image: bool, region_masks: int = 0) -> list[str]:
        """Returns the infotext of each image. The settings must have a size. region_masks: how many there were."""
        name, hashed = (self.path.stem, model_hash(self.path)) if self.path else ("", "")
        more: dict[str, object] = {"Region masks": region_masks or None}
        if self.dtype != torch.float32:
            more["Precision"] = str(self.dtype).removeprefix("torch.")
        if self.vae_path is not None:
            more |= {"VAE hash": model_hash(self.vae_path) or None, "VAE": self.vae_path.name}
        if self.chosen_prediction is not None:
            more["Prediction"] = self.prediction.name
        kept = self.adapters.kept_names()  # which the prompt names
        if names := [name for name in self.adapters.names() if name not in kept]:
            more["Adapters"] = ", ".join(names)
        if inexact := approximate_names(self.optimizations):
            more["Approximations"] = ", ".join(inexact)
        return [to_infotext(settings, i, name, hashed, from_image, more) for i in range(settings.num_images)]
