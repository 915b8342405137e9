"""CLIP-I and CLIP-T against sums written out, images against transformers, the script as it is run."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import CLIPImageProcessor
from transformers.image_utils import PILImageResampling

from sd.evaluation.clip_score import (
    LazyImages,
    clip_i,
    evaluate,
    load_clip,
    nearest_references,
    preprocess_image,
    prompts_by_path,
    without_placeholder,
)
from sd.evaluation.memorization import pixel_similarity
from sd.utils.errors import UserError
from sd.utils.files import save_png
from sd.utils.images import to_tensor
from sd.vision.clip_vision import PIXEL_MEAN, PIXEL_STD

COLOURS = {"red": (1.0, 0.1, 0.1), "green": (0.1, 1.0, 0.1), "blue": (0.1, 0.1, 1.0), "grey": (0.5, 0.5, 0.5)}


class Colours:
    """A scorer whose space is the mean colour: what it says can be worked out by hand."""

    name = "colours"

    def embed_images(self, images):
        means = torch.stack([to_tensor(image).mean(dim=(0, 2, 3)) for image in images])
        return F.normalize((means + 1) / 2, dim=1)

    def embed_texts(self, texts):
        return F.normalize(torch.tensor([COLOURS[text] for text in texts]), dim=1)


def plain(colour: str, size=(40, 40)) -> Image.Image:
    return Image.new("RGB", size, tuple(round(255 * part) for part in COLOURS[colour]))


def cosine(one: str, other: str) -> float:
    a, b = np.array(COLOURS[one]), np.array(COLOURS[other])
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


ROUNDING = 0.003  # of a colour to 8 bits, which turns its direction by a third of a percent at most


def test_clip_i_is_the_mean_of_all_pairs():
    made, references = ["red", "blue"], ["red", "green", "grey"]
    by_hand = np.mean([cosine(one, other) for one in made for other in references])
    found = clip_i(Colours(), list(map(plain, made)), list(map(plain, references)))
    assert found == pytest.approx(by_hand, abs=ROUNDING)


def test_clip_t_is_the_mean_of_each_with_its_own_prompt():
    made, prompts = ["red", "blue"], ["red", "grey"]
    by_hand = np.mean([cosine(one, other) for one, other in zip(made, prompts)])
    found = evaluate(Colours(), list(map(plain, made)), prompts=prompts)
    assert found.clip_t.value == pytest.approx(by_hand, abs=ROUNDING)


def test_everything_at_once_is_the_same(photo):
    made, references = [plain("red"), plain("blue"), photo], [plain("green"), photo]
    prompts = ["red", "grey", "green"]
    found = evaluate(Colours(), made, references, prompts)
    assert found.clip_i.value == pytest.approx(clip_i(Colours(), made, references))
    cosines = Colours().embed_images(made) @ Colours().embed_texts(prompts).T
    assert found.clip_t.value == pytest.approx(cosines.diag().mean().item())
    assert found.clip_t.count == found.clip_i.count == 3
    cosines = Colours().embed_images(made) @ Colours().embed_images(references).T
    assert found.copies == nearest_references(pixel_similarity(made, references), cosines)
    assert [copy.copied for copy in found.copies] == [False, False, True]
    assert (found.copies[2].nearest, found.backbone) == (1, "colours")
    assert found.copies[2].features == pytest.approx(1)


def test_what_is_not_given_is_not_measured(photo):
    found = evaluate(Colours(), [photo])
    assert (found.clip_i, found.clip_t, found.copies) == (None, None, [])
    with pytest.raises(UserError, match="1 prompts for 2 images"):
        evaluate(Colours(), [photo, photo], prompts=["red"])
    with pytest.raises(UserError, match="no generated images"):
        evaluate(Colours(), [], prompts=[])


@pytest.mark.parametrize("size", [(90, 60), (61, 94), (32, 32), (20, 16), (300, 41)])
def test_images_are_shown_as_transformers_shows_them(size):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (size[1], size[0], 3), generator=generator, dtype=torch.uint8)
    image = Image.fromarray(pixels.numpy())
    processor = CLIPImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, resample=PILImageResampling.BICUBIC
    )
    theirs = torch.as_tensor(np.array(processor(image, return_tensors="np")["pixel_values"]))
    # The same 8-bit pixels; what is left is the order of two subtractions in fp32.
    assert (preprocess_image(image, 32) - theirs).abs().max() < 1e-5


def test_images_are_shown_as_openai_shows_them():
    """The middle of an odd remainder, 3 pixels of which 2 go to the left: OpenAI rounds, transformers cuts."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 35, 3), dtype=np.uint8))
    cut = np.asarray(image)[:, 2:34] / 255
    by_hand = torch.from_numpy((cut - PIXEL_MEAN) / PIXEL_STD).permute(2, 0, 1)[None]
    assert (preprocess_image(image, 32) - by_hand).abs().max() < 1e-5  # fp32 beside fp64


@pytest.mark.parametrize(
    ("prompt", "word", "class_word", "read"),
    [
        ("a photo of <rex> in the snow", "<rex>", "dog", "a photo of dog in the snow"),
        ("a <rex> dog", "<rex>", "dog", "a dog"),
        ("a sks dog, sks", "sks", "dog", "a dog, dog"),
        ("a sks doghouse", "sks", "dog", "a dog doghouse"),
        ("asks sks, sks1", "sks", "dog", "asks dog, sks1"),
        ("a photo of <rex>", "<rex>", "", "a photo of"),
        ("a ((<rex>:1.3)) [x] <lora:rex:0.8> BREAK y", "<rex>", "toy", "a toy x y"),
        ("<rex> a\\1", "<rex>", "\\1", "\\1 a1"),
        ("  a   cat ", None, "dog", "a cat"),
        ("R2-D2 and C-3PO", "C-3PO", "robot", "R2-D2 and robot"),
    ],
)
def test_without_placeholder(prompt, word, class_word, read):
    assert without_placeholder(prompt, word, class_word) == read


def test_the_bundled_clip_scores_when_nothing_else_is_given(photo):
    scorer = load_clip(device="cpu")
    assert "bundled" in scorer.name
    images, texts = scorer.embed_images([photo] * 17), scorer.embed_texts(["a red apple", "a " * 200])
    assert (images.shape, texts.shape) == ((17, 192), (2, 192))
    for rows in (images, texts):
        assert torch.allclose(rows.norm(dim=1), torch.ones(len(rows)))
    assert torch.allclose(images[0], images[16], atol=1e-6)  # the last is in a batch of its own


def test_prompts_are_in_the_images_or_in_a_file(tmp_path, photo):
    text = "a <rex>\nSteps: 20, Sampler: Euler, CFG scale: 7, Seed: 42, Size: 64x64"
    paths = [save_png(photo, tmp_path, text), save_png(photo, tmp_path, text.replace("rex", "cat"))]
    assert list(prompts_by_path(paths).values()) == ["a <rex>", "a <cat>"]
    lines = tmp_path / "lines.txt"
    for written, read in (("one\n\ntwo\n", ["one", "two"]), ("all", ["all", "all"])):
        lines.write_text(written)
        assert list(prompts_by_path(paths, lines).values()) == read
    lines.write_text("one\ntwo\nthree")
    with pytest.raises(UserError, match="3 prompts for 2 images"):
        prompts_by_path(paths, lines)
    with pytest.raises(UserError, match="cannot read prompts"):
        prompts_by_path(paths, tmp_path)
    with pytest.raises(UserError, match="no settings"):
        prompts_by_path([save_png(photo, tmp_path)])


def test_opened_images_are_read_when_they_are_looked_at(tmp_path, photo):
    opened = LazyImages([save_png(photo, tmp_path), tmp_path / "nothing.png"])
    assert len(opened) == 2
    assert np.array_equal(np.asarray(opened[0]), np.asarray(photo))
    with pytest.raises(UserError, match="nothing"):
        opened[1]


@pytest.fixture
def folders(tmp_path, photo):
    """Two images with their prompts and a sheet beside them, and a reference that one of them repeats."""
    text = "a <rex>\nSteps: 20, Sampler: Euler, CFG scale: 7, Seed: 42, Size: 64x64"
    made, references = tmp_path / "made", tmp_path / "references"
    save_png(photo, made, text)
    save_png(photo.rotate(90), made, text)
    save_png(photo, made, prefix="grid-")
    references.mkdir()
    photo.save(references / "trained.png")
    return made, references


def test_the_script(run, folders):
    made, references = folders
    flags = ["--generated", made, "--references", references, "--word", "<rex>", "--class-word", "dog"]
    code, out, err = run("evaluate.py", *flags)
    assert code == 0, err
    assert "backbone  the bundled CLIP" in out
    assert "±" in out.partition("CLIP-T")[2].splitlines()[0]
    assert "of 2 images to 1 references" in out
    assert "copies    1 of 2" in out
    assert "00000.png repeats trained.png: 1.00" in out


def test_the_script_counts_a_broken_images_prompt_as_well(run, folders):
    made, references = folders
    (made / "00000.png").write_bytes(b"no picture")
    Path("prompts.txt").write_text("a dog\na cat\n")
    code, out, err = run("evaluate.py", "--generated", made, "--references", references, "--prompts", "prompts.txt")
    assert code == 0, err
    assert "skipped" in out
    assert "of 1 images to their prompts" in out
    Path("prompts.txt").write_text("a dog\na cat\na bird\n")
    code, _, err = run("evaluate.py", "--generated", made, "--prompts", "prompts.txt")
    assert (code, err.count("\n")) == (2, 1)
    assert "3 prompts for 2 images" in err


def test_the_script_without_prompts(run, folders):
    _, references = folders
    code, out, err = run("evaluate.py", "--generated", references)
    assert code == 0, err
    assert "there is no CLIP-T" in out
    assert "not measured" in out


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--generated", "nothing"], "nothing"),
        (["--generated", "made", "--references", "nothing"], "nothing"),
        (["--generated", "made", "--clip", "nothing.pt"], "nothing.pt"),
        (["--generated", "made", "--clip", "made/00000.png"], "neither a torch file"),
        (["--generated", "made", "--prompts", "nothing.txt"], "nothing.txt"),
    ],
)
def test_mistakes_are_one_sentence_and_exit_code_2(run, folders, flags, said):
    code, _, err = run("evaluate.py", *flags)
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith("error: ")
    assert said in err
