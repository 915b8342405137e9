"""Units in the pipeline: their models are found by name and loaded, given their images, and made ready for a size."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL import Image
from torch import nn

from sd.checkpoints.discovery import Models, locate
from sd.checkpoints.families import IP_ADAPTER, T2I_ADAPTER
from sd.checkpoints.model_files import content_of
from sd.control.controlled_unet import AdapterControl, Control
from sd.control.controlnet_files import ControlNet, load_controlnet
from sd.control.interval import Interval, works_at
from sd.control.ip_adapter.files import IPAdapter, find_encoder, load_ip_adapter
from sd.control.ip_adapter.kept_encoder import KeptEncoder
from sd.control.preprocessors import PREPROCESSORS
from sd.control.t2i_adapter import T2IAdapter
from sd.control.t2i_adapter_files import load_t2i_adapter
from sd.control.units import NO_MODEL, ControlUnit, parse_units
from sd.pipeline.inputs.control_images import cut_region, hint_of, images_for, mask_of
from sd.pipeline.inputs.image_prompt import ImagePromptInput
from sd.pipeline.inputs.masked import MaskedInputs
from sd.pipeline.inputs.reference import ReferenceInput, reference_notes
from sd.pipeline.settings import GenerationSettings
from sd.schedule import NoiseSchedule
from sd.unet import UNetModel
from sd.utils.errors import UserError
from sd.utils.files import signature_of
from sd.vae import AutoencoderKL


class ControlNets:
    """The ControlNets that are loaded for a U-Net, and the image encoders of its IP-Adapters: those of the last call.

    config: the U-Net's, as in `sd.checkpoints.config`. vae, schedule: what references are encoded and noised with.
    """

    def __init__(self, unet: UNetModel, vae: AutoencoderKL, config: dict, schedule: NoiseSchedule):
        self.unet, self.vae, self.config, self.schedule = unet, vae, config, schedule
        self.loaded: dict[tuple, ControlNet | IPAdapter] = {}
        self.encoders: dict[tuple, KeptEncoder] = {}

    def load(self, units: Sequence[ControlUnit], models: Models) -> list[ControlNet | IPAdapter | None]:
        """Returns the ControlNet of each unit, by its name or path; None without one. Others are released first.

        One whose file has changed since, or whose encoder's has, is loaded again.
        """
        weight = self.unet.out[2].weight
        place = weight.device, weight.dtype
        found = find_models(units, models)
        keys = [(paths, signature_of(*(paths or ())), *place) for paths in found]
        self.loaded = {key: self.loaded[key] for key in keys if key in self.loaded}
        readers = {paths[1]: (paths[1], signature_of(paths[1]), *place) for paths in found if paths and paths[1]}
        self.encoders = {key: self.encoders.get(key) or KeptEncoder(key[0], self.unet) for key in readers.values()}
        for key in keys:
            if key[0] is not None and key not in self.loaded:
                path, encoder = key[0]
                self.loaded[key] = self.load_one(path, self.encoders[readers[encoder]] if encoder else None)
        return [self.loaded.get(key) for key in keys]

    def load_one(self, path: Path, encoder: KeptEncoder | None) -> ControlNet | IPAdapter:
        """encoder: of an IP-Adapter."""
        if encoder is not None:
            return load_ip_adapter(path, self.unet, self.config, encoder)
        load = load_t2i_adapter if content_of(path).what == T2I_ADAPTER else load_controlnet
        found = load(path, self.unet, self.config)
        if found.network.hint_downsample != self.vae.downsample:
            raise UserError(
                f"{path} is for latents of 1/{found.network.hint_downsample} of the image's size, and this "
                f"checkpoint's have 1/{self.vae.downsample}: use a ControlNet that was trained with it."
            )
        return found


def find_models(
    units: Sequence[ControlUnit], models: Models, by_path: bool = True
) -> list[tuple[Path, Path | None] | None]:
    """Returns the ControlNet of each unit and the image encoder of an IP-Adapter; None for a unit without a model.

    by_path: whether a name may be a path, which a request's must not be. Raises UserError for what is not there, and
    for values that are for another kind of model.
    """
    find = partial(locate, models=models) if by_path else models.find
    found: list[tuple[Path, Path | None] | None] = []
    for unit in units:
        if unit.model == NO_MODEL:
            found.append(None)
            continue
        path = find("ControlNet", unit.model)
        what = content_of(path).what
        encoder = find_encoder(path, unit.encoder, models, find) if what == IP_ADAPTER else None
        check_preprocessor(unit, what)
        found.append((path, encoder))
    return found


def check_preprocessor(unit: ControlUnit, what: str) -> None:
    """Raises UserError for a unit whose preprocessor or image encoder is for another kind of model. what: its kind."""
    one = PREPROCESSORS[unit.preprocessor]
    if one.for_masks and what in (T2I_ADAPTER, IP_ADAPTER):
        raise UserError(
            f"{unit.model} is {what}, and the preprocessor {unit.preprocessor} is for a ControlNet: choose another "
            "preprocessor."
        )
    if (one.for_ip_adapter or unit.encoder) and what != IP_ADAPTER:
        name = f"the preprocessor {unit.preprocessor}" if one.for_ip_adapter else "an encoder"
        raise UserError(f"{name} is for an IP-Adapter, and {unit.model} is {what}: leave it out.")


@dataclass
class ControlInput:
    """A ControlNet with its unit and its image. mask: white where to regenerate, for the inpainting ControlNet.

    is_blank: whether the preprocessor has last made a black image, as Canny does where it finds no edge.
    """

    unit: ControlUnit
    loaded: ControlNet
    image: Image.Image
    mask: Image.Image | None = None
    is_blank: bool = False

    @property
    def networks(self) -> list[nn.Module]:
        """Return what runs beside the U-Net."""
        return [self.loaded.network]

    def control_for(self, width: int, height: int) -> Control:
        """Returns it at work on an image of this size."""
        network, unit = self.loaded.network, self.unit
        weight = next(network.parameters())
        hint = hint_of(self.image, self.mask, unit, width, height)
        self.is_blank = unit.preprocessor != "none" and not hint.any()
        hint = hint.to(weight.device, weight.dtype)
        kind = AdapterControl if isinstance(network, T2IAdapter) else Control
        return kind(
            network,
            network.embed_hint(hint),
            unit.weight,
            unit.start,
            unit.end,
            unit.mode,
            self.loaded.global_pool,
        )


AnyInput = ControlInput | ReferenceInput | ImagePromptInput


def control_inputs(
    nets: ControlNets,
    text: str,
    models: Models,
    control_images: Sequence[Image.Image],
    masked: MaskedInputs,
) -> list[AnyInput]:
    """Returns the units of a text with their ControlNets and images; none for an empty text.

    control_images: one for each unit, or one for all; without any, the init image is used. Where a region of it alone
    is generated, they belong to the whole image, and a ControlNet reads the same region of them.
    Raises UserError where the images are not as many, and for a ControlNet that cannot be loaded.
    """
    units = parse_units(text)
    images = images_for(units, control_images, masked.image)
    whole = masked.whole if control_images else None
    mask = masked.mask if whole is None else masked.whole_mask
    masks = [mask_of(unit, one, mask) for unit, one in zip(units, images)]
    found: list[AnyInput] = []
    for unit, one, control_image, control_mask in zip(units, nets.load(units, models), images, masks):
        if one is None:
            found.append(ReferenceInput(unit, control_image, nets.vae, nets.schedule))
        elif isinstance(one, IPAdapter):
            found.append(ImagePromptInput(unit, one, control_image))
        elif whole is None:
            found.append(ControlInput(unit, one, control_image, control_mask))
        else:
            cut = partial(cut_region, resize=unit.resize, size=whole.size, region=masked.region)
            found.append(ControlInput(unit, one, cut(control_image), control_mask and cut(control_mask)))
    return found


def controls_for(controls: Sequence[AnyInput], width: int, height: int, second_pass: bool = False) -> list[Interval]:
    """Returns them at work on an image of this size. second_pass: whether it is the second, see `fidelity_of`."""
    return [
        one.control_for(width, height, second_pass)
        if isinstance(one, ReferenceInput)
        else one.control_for(width, height)
        for one in controls
    ]


def input_notes(controls: Sequence[AnyInput]) -> list[str]:
    """Returns a sentence for each preprocessor that has made a black image, and for each mode that changes nothing."""
    notes = [
        f"{one.unit.model} is an IP-Adapter, for which the mode changes nothing: use a weight, a start or an end."
        for one in controls
        if isinstance(one, ImagePromptInput) and one.unit.mode != "balanced"
    ]
    return notes + [
        f"The preprocessor {one.unit.preprocessor} found nothing in the image for {one.unit.model}, which saw a black "
        "image: use other thresholds or another image."
        for one in controls
        if one.is_blank
    ]


def idle_notes(controls: Sequence[AnyInput], passes: Sequence[Sequence[float]], schedule: NoiseSchedule) -> list[str]:
    """Returns a sentence for each unit between whose start and end there is no step. passes: the sigmas of each."""
    times = [schedule.t_of(sigma) for sigmas in passes for sigma in sigmas[:-1]]
    units = [one.unit for one in controls if one.unit.weight != 0]
    return [
        f"None of the {len(times)} steps lies between start {unit.start:g} and end {unit.end:g} of "
        f"{unit.preprocessor if unit.model == NO_MODEL else unit.model}, so it changes nothing: move them apart."
        for unit in units
        if times and not any(works_at(unit.start, unit.end, t) for t in times)
    ]


def needless_numbers(unit: ControlUnit) -> list[str]:
    """Returns a sentence on each number of a unit that its preprocessor does not read."""
    one = PREPROCESSORS[unit.preprocessor]
    given = [(name, value) for name, bounds, value in (("a", one.a, unit.a), ("b", one.b, unit.b)) if bounds is None]
    return [
        f"The preprocessor {unit.preprocessor} has no number {name}: {value:g} changes nothing."
        for name, value in given
        if value is not None
    ]


def control_notes(settings: GenerationSettings) -> list[str]:
    """Returns notes on what does not work with ControlNets or with tiled diffusion, or changes nothing."""
    units = parse_units(settings.control)
    notes = [note for unit in units for note in needless_numbers(unit)]
    notes += [note for unit in units if unit.model == NO_MODEL for note in reference_notes(unit)]
    if settings.step_cache != 1 and (settings.control or settings.tile_size):
        what = "tiled diffusion"
        if units:
            what = "a ControlNet" if any(unit.model != NO_MODEL for unit in units) else "a reference"
        notes.append(f"The step cache does not work with {what}: every step is computed completely.")
    return notes
