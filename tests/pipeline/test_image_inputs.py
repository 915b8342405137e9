"""Images and prompts as Python code gives them."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from sd.pipeline.image_inputs import as_image
from sd.pipeline.settings import GenerationSettings
from sd.pipeline.stable_diffusion import StableDiffusion
from sd.utils.errors import UserError
from sd.utils.images import to_rgb

PIXELS = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
UNIT = PIXELS / 255
TENSOR = torch.from_numpy(PIXELS).permute(2, 0, 1)  # (3, H, W)
FORMS = {
    "PIL": Image.fromarray(PIXELS),
    "a list of one": [Image.fromarray(PIXELS)],
    "whole numbers": PIXELS,
    "fractions": UNIT,
    "half precision": torch.from_numpy(UNIT).half().permute(2, 0, 1),
    "bfloat16 fractions": None,
    "a batch of one": UNIT[None],
    "16 bits": PIXELS.astype(np.uint16) * 257,
    "floats up to 255": PIXELS.astype(np.float32),
    "channels first": np.moveaxis(UNIT, -1, 0),
    "tensor": TENSOR,
    "tensor of fractions": TENSOR.float() / 255,
    "tensor batch": TENSOR[None].float() / 255,
    "tensor from -1 to 1": TENSOR[None].float() / 127.5 - 1,
    "tensor with channels last": torch.from_numpy(PIXELS),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_an_image_gives_its_pixels(form):
    value = TENSOR.float().div(255).bfloat16() if form == "bfloat16 fractions" else FORMS[form]
    made = np.asarray(to_rgb(as_image(value))).astype(int)
    # Half precision has 11 significant bits and bfloat16 8: up to 255 * 2^-9 = 0.5, rounded to a whole step.
    assert np.abs(made - PIXELS).max() <= (1 if form.startswith(("half", "bfloat16")) else 0)


def test_paths_and_open_files(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    for value in (tmp_path / "a.png", str(tmp_path / "a.png"), data, io.BytesIO(data)):
        assert np.array_equal(np.asarray(as_image(value)), PIXELS)


@pytest.mark.parametrize(
    "value", [PIXELS[..., 0], PIXELS[..., :1], torch.from_numpy(PIXELS[..., 0])[None], UNIT[..., 0]]
)
def test_gray_and_masks(value):
    assert np.array_equal(np.asarray(as_image(value)), PIXELS[..., 0])


def test_truth_values_are_black_and_white():
    assert np.asarray(as_image(np.array([[True, False]]))).tolist() == [[255, 0]]
    assert np.asarray(as_image(torch.tensor([[True, False]]))).tolist() == [[255, 0]]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("nothing.png", "nothing.png"),
        (7, "int"),
        ({"image": 1}, "dict"),
        ([], "a list of 0"),
        ([PIXELS, PIXELS], "a list of 2"),
        (np.zeros((2, 16, 16, 3)), "shape"),
        (np.zeros((16, 16, 7)), "shape"),
        (np.zeros((0, 16, 3)), "shape"),
        (np.zeros(16), "shape"),
        (np.full((8, 8), np.nan), "finite"),
        (np.full((8, 8), "a"), "type"),
        (np.zeros((8, 8), complex), "type"),
        (b"no image", "cannot be opened as an image"),
        ("", "the path of an image is empty"),
        (Image.new("RGB", (0, 0)), "is 0x0: give an image that has pixels"),
        (Image.new("L", (0, 5)), "is 0x5: give an image that has pixels"),
    ],
)
def test_what_is_no_image_is_one_sentence(pipe, value, said):
    for given in ({"image": value}, {"image": PIXELS, "mask": value}):
        with pytest.raises(UserError, match=said):
            pipe("x", steps=1, **given)


@pytest.mark.parametrize("name", ["control_images", "region_masks"])
def test_lists_of_images_are_read_likewise_where_settings_are_given(pipe, name):
    """As by the scripts and the web UI, which call `generate`."""
    settings = GenerationSettings("a ADDCOL b", steps=1, control="reference_only")
    images = {"control_images": [Image.new("L", (8, 8))], name: [Image.new("L", (0, 8))] * 2}
    with pytest.raises(UserError, match=f"the {name.replace('_', ' ')[:-1]} is 0x8"):
        pipe.generate(settings, **images)


def test_the_pipeline_takes_them(pipe, tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    mask = np.zeros((16, 24))
    mask[:, :8] = 1
    asked = dict(steps=1, seed=1, strength=0.5)
    first = pipe("x", image=Image.fromarray(PIXELS), mask=mask, **asked).images[0]
    for image in (tmp_path / "a.png", UNIT, TENSOR.float() / 255):
        again = pipe("x", image=image, mask=torch.from_numpy(mask)[None], **asked).images[0]
        assert again.tobytes() == first.tobytes()


def test_a_note_says_that_an_animation_is_used_in_part(pipe, tmp_path):
    frames = [Image.fromarray(PIXELS), Image.fromarray(255 - PIXELS)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    said = "The file of the {} has several frames or pages, of which only the first is used."
    asked = dict(prompt="x", steps=1, strength=0.5)
    assert pipe(image=tmp_path / "a.gif", **asked).notes == [said.format("init image")]
    assert pipe(image=PIXELS, mask=tmp_path / "a.gif", **asked).notes[0] == said.format("mask")
    assert pipe(image=tmp_path / "a.gif", mask=np.eye(16, 24), mask_blur=1, **asked).notes == [
        said.format("init image")
    ]
    assert pipe(image=PIXELS, **asked).notes == []


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"steps": "3"}, "^steps must be a whole number from 1 to 1000, not '3'.$"),
        ({"steps": np.int64(3)}, r"^steps must be a whole number from 1 to 1000, not np.int64\(3\).$"),
        ({"guidance_scale": "7"}, "^guidance_scale must be a number from 0 to 100, not '7'.$"),
        ({"width": np.int32(64)}, r"^width must be a whole number, not np.int32\(64\).$"),
        ({"prompt": []}, "the list of prompts is empty: give at least one prompt"),
        ({"negative_prompt": 5}, "the negative prompt is 5: give a text"),
        *(
            ({"batch_size": size}, f"^batch_size must be a whole number from 1 to .*, not {size!r}.$")
            for size in (0, -1, "2", 1.5)
        ),
    ],
)
def test_a_value_of_another_type_is_shown_as_it_was_given(pipe, given, said):
    with pytest.raises(UserError, match=said):
        pipe(**{"prompt": "x", "steps": 1} | given)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda pipe: StableDiffusion.from_pretrained(3), "the checkpoint is 3: give its name or its path"),
        (lambda pipe: StableDiffusion.from_pretrained(device="gpu"), "there is no device 'gpu'"),
        (lambda pipe: StableDiffusion.from_pretrained(device=[]), "there is no device"),
        (lambda pipe: StableDiffusion.from_pretrained(device="cpu", dtype="fp16"), "the dtype is 'fp16'"),
        (lambda pipe: pipe.load_lora(3), "the LoRA is 3: give its name or its path"),
        (lambda pipe: pipe.load_embedding(3), "the embedding is 3: give its name or its path"),
        (lambda pipe: pipe.set_optimizations("exact"), "the optimizations are 'exact': give a list of names"),
        (lambda pipe: pipe.set_optimizations(3), "the optimizations are 3: give a list of names"),
        (lambda pipe: pipe.set_optimizations([3]), r"the optimizations are \[3\]: give a list of names"),
    ],
)
def test_what_is_no_name_is_refused_at_once(pipe, call, said):
    with pytest.raises(UserError, match=said):
        call(pipe)
    assert pipe.optimizations is None


@pytest.mark.parametrize("prompt", [None, 7, [None], ["a", 7], {"a": 1}])
def test_a_prompt_that_is_no_text_is_one_sentence(pipe, prompt):
    with pytest.raises(UserError, match="prompt is"):
        pipe(prompt, steps=1)


def test_lists_of_prompts_and_of_negative_prompts(pipe):
    both = pipe(["a", "b"], ["c", "d"], steps=1, seed=1)
    alone = pipe("b", "d", steps=1, seed=2)
    assert both.seeds == [1, 2]
    assert both.images[1].tobytes() == alone.images[0].tobytes()
    assert pipe("a", None, steps=1, seed=1).images[0].tobytes() == pipe("a", steps=1, seed=1).images[0].tobytes()
    with pytest.raises(UserError, match="2 prompts and 1 negative"):
        pipe(["a", "b"], ["c"], steps=1)
