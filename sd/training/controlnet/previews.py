"""A sheet of preview images: the condition image, and what the model generates without and with the ControlNet."""

from pathlib import Path

from PIL import Image

from sd.pipeline.stable_diffusion import StableDiffusion
from sd.training.controlnet.conditions import make_condition
from sd.training.controlnet.recipe import ControlRecipe
from sd.training.controlnet.sources import Source
from sd.utils.image_grid import contact_sheet

COLUMNS = ["condition", "without", "with the ControlNet"]


class PreviewSheet:
    """Generates the same previews at each save, from the same seeds; what needs no ControlNet is generated once."""

    def __init__(self, pipe: StableDiffusion, source: Source, recipe: ControlRecipe):
        self.pipe, self.recipe = pipe, recipe
        examples = source.examples(recipe.previews)
        kinds = recipe.conditions
        self.captions = [caption for _, caption in examples]
        self.conditions = [
            Image.fromarray(make_condition(image, kinds[k % len(kinds)], k)) for k, (image, _) in enumerate(examples)
        ]
        self.without: list[Image.Image] = []

    def __len__(self) -> int:
        return len(self.captions)

    def save(self, controlnet: Path, target: Path) -> None:
        """Write the sheet of a ControlNet's file."""
        self.generate_baseline()
        rows = [
            [self.conditions[k], self.without[k], self.generate(k, control=str(controlnet))] for k in range(len(self))
        ]
        self.pipe.controlnets.loaded.clear()  # its memory is the training's
        contact_sheet(rows, self.captions, COLUMNS).save(target)

    def generate_baseline(self) -> None:
        """Generate the images without a ControlNet: before the first step, so that a bad caption costs no training."""
        self.without = self.without or [self.generate(k) for k in range(len(self))]

    def generate(self, k: int, control: str = "") -> Image.Image:
        """Return the k-th preview. control: the file of a ControlNet; "" for none."""
        recipe = self.recipe
        output = self.pipe(
            self.captions[k],
            seed=recipe.seed + k,
            steps=recipe.preview_steps,
            guidance_scale=recipe.guidance_scale,
            sampler="dpmpp_2m",
            width=recipe.size,
            height=recipe.size,
            control=control,
            control_image=self.conditions[k] if control else None,
        )
        return output.images[0]
