"""Every script that generates, as a person runs it, with the bundled model."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from foreign_images import GRAPH, png_with
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import save_file

from sd.pipeline.infotext import parse_infotext, read_infotext
from sd.pipeline.stable_diffusion import BUNDLED

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def generate(run):
    """As `run`, with the bundled model and few steps."""
    return lambda script, *flags: run(script, *flags, "--ckpt", BUNDLED, "--steps", 2)


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def test_txt2img_as_a_program(tmp_path):
    command = [sys.executable, ROOT / "scripts" / "txt2img.py", "a red apple", "--steps", "2", "--seed", "5"]
    done = subprocess.run(command + ["--ckpt", BUNDLED], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("outputs/00000.png  seed 5  ")
    assert Image.open(tmp_path / "outputs" / "00000.png").size == (128, 128)


def test_txt2img_numbers_its_images_and_writes_their_settings(generate, tmp_path):
    code, out, _ = generate("txt2img.py", "--prompt", "a red apple", "--n_samples", 2, "--n_iter", 2, "--seed", 7)
    assert code == 0
    assert [line.split()[2] for line in out.splitlines() if "seed" in line] == ["7", "8", "9", "10"]
    assert sorted(p.name for p in Path("outputs").iterdir()) == [*(f"0000{i}.png" for i in range(4)), "grid-00000.png"]
    settings = parse_infotext(read_infotext("outputs/00003.png"))
    assert settings["Prompt"] == "a red apple"
    assert settings["Seed"] == "10"
    assert settings["Model"] == "emoji"
    assert len(settings["Model hash"]) == 10


def test_a_reference_image_works_with_the_bundled_model(generate, photo):
    photo.save("reference.png")
    flags = ("a red apple", "--seed", 5, "--control", "reference_only:a=0.8", "--control-image", "reference.png")
    code, _, err = generate("txt2img.py", *flags)
    assert code == 0, err
    assert "Module: reference_only, Model: None, Weight: 1" in read_infotext("outputs/00000.png")
    assert generate("txt2img.py", "a red apple", "--seed", 5)[0] == 0
    assert not np.array_equal(pixels("outputs/00000.png"), pixels("outputs/00001.png"))
    code, _, err = generate("txt2img.py", "a red apple", "--control", "reference_only")
    assert (code, "needs an image" in err) == (2, True)


def test_from_png_generates_the_same_pixels_again(run, generate):
    hires = ["--hires-scale", 1.5, "--tiling", "--clip-skip", 2, "--variation-strength", 0.3]
    first = [*("a (red:1.3) apple", "--negative-prompt", "x"), *("--n_samples", 2, "--sampler", "euler_a"), *hires]
    assert generate("txt2img.py", *first)[0] == 0
    code, _, err = run("txt2img.py", "--from-png", "outputs/00001.png", "--outdir", "again", "--ckpt", BUNDLED)
    assert code == 0, err
    assert np.array_equal(pixels("again/00000.png"), pixels("outputs/00001.png"))
    assert read_infotext("again/00000.png") == read_infotext("outputs/00001.png")


def test_from_file_generates_each_line(generate):
    Path("prompts.txt").write_text("a cat\n\na dög\n", encoding="utf-8")
    code, out, _ = generate("txt2img.py", "--from-file", "prompts.txt", "--seed", 1, "--skip-grid")
    assert code == 0
    assert len(out.splitlines()) == 2
    assert parse_infotext(read_infotext("outputs/00001.png"))["Prompt"] == "a dög"


def test_compvis_spellings(generate):
    flags = ["--plms", "--scale", 3, "--H", 64, "--W", 96, "--seed", 3, "--precision", "full", "--outdir", "there"]
    assert generate("txt2img.py", "a cat", *flags)[0] == 0
    settings = parse_infotext(read_infotext("there/00000.png"))
    assert (settings["Sampler"], settings["CFG scale"]) == ("PLMS", "3")
    assert Image.open("there/00000.png").size == (96, 64)


def test_bf16_is_written_and_read_again(run, generate):
    assert generate("txt2img.py", "a cat", "--precision", "bf16")[0] == 0
    assert parse_infotext(read_infotext("outputs/00000.png"))["Precision"] == "bfloat16"
    run("txt2img.py", "--from-png", "outputs/00000.png", "--outdir", "again", "--ckpt", BUNDLED)
    assert np.array_equal(pixels("again/00000.png"), pixels("outputs/00000.png"))


def test_img2img_and_its_settings_cannot_be_generated_from_text(run, generate, photo):
    photo.save("photo.png")
    code, _, err = generate("img2img.py", "a cat", "--init-img", "photo.png", "--strength", 0.5, "--seed", 1)
    assert code == 0, err
    assert Image.open("outputs/00000.png").size == photo.size
    code, _, err = run("txt2img.py", "--from-png", "outputs/00000.png")
    assert code == 2
    assert "img2img.py" in err


def test_img2img_brings_a_big_photo_to_the_models_size(generate, photo):
    photo.resize((1000, 500)).save("photo.png")
    code, out, _ = generate("img2img.py", "a cat", "--init-img", "photo.png")
    assert code == 0
    assert "1000x500" in out
    assert Image.open("outputs/00000.png").size == (176, 88)


def test_inpaint_keeps_what_is_black(generate, photo):
    photo.resize((128, 128)).save("photo.png")
    mask = Image.new("L", (128, 128), 0)
    mask.paste(255, (0, 0, 64, 128))
    mask.save("mask.png")
    code, _, err = generate("inpaint.py", "a cat", "--image", "photo.png", "--mask", "mask.png", "--seed", 1)
    assert code == 0, err
    assert np.array_equal(pixels("outputs/00000.png")[:, 64:], pixels("photo.png")[:, 64:])
    assert not np.array_equal(pixels("outputs/00000.png")[:, :64], pixels("photo.png")[:, :64])


def test_preview_is_written_while_generating(generate):
    assert generate("txt2img.py", "a cat", "--preview", "--n_samples", 3)[0] == 0
    assert Image.open("outputs/preview.png").size == (128, 128)


def test_from_png_says_what_else_was_there(run, generate):
    table = {"<bent>": torch.randn(192, generator=torch.Generator().manual_seed(0))}
    save_file(table, "bent.safetensors")
    code, out, err = generate("txt2img.py", "a <bent> cat", "--embedding", "bent.safetensors")
    assert code == 0, err
    assert out.startswith("<bent>: 1 vector")
    code, out, _ = run("txt2img.py", "--from-png", "outputs/00000.png", "--ckpt", BUNDLED, "--outdir", "again")
    assert code == 0
    assert "was generated with <bent>" in out
    assert not np.array_equal(pixels("again/00000.png"), pixels("outputs/00000.png"))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "prompt"),
        (["x", "--W", 0], "width"),
        (["x", "--H", -8], "height"),
        (["x", "--W", 100], "multiple of 8"),
        (["x", "--W", 10**7], "width"),
        (["x", "--ddim_steps", 0], "steps"),
        (["x", "--sampler", "magic"], "magic"),
        (["x", "--schedule", "magic"], "magic"),
        (["x", "--ckpt", "nothing.ckpt"], "nothing.ckpt"),
        (["x", "--outdir", "/dev/null/here"], "outdir"),
        (["apple " * 5000], "prompt"),
        (["x", "--device", "toaster"], "toaster"),
        (["--from-file", "nothing.txt"], "nothing.txt"),
        (["--from-png", "nothing.png"], "nothing.png"),
        (["x", "--taesd", "nothing.safetensors"], "nothing.safetensors"),
        (["x", "--n_iter", 0], "n-iter"),
    ],
)
def test_mistakes_are_one_sentence_and_exit_code_2(run, flags, said):
    code, out, err = run("txt2img.py", "--steps", 1, *flags)
    assert code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert said in err


@pytest.mark.parametrize(
    "flags",
    [
        ["--sampler", "euler_a", "--rng", "nv", "--ensd", 31337, "--eta", 0.5, "--compat", "webui"],
        ["--sampler", "dpmpp_sde", "--compat", "webui", "--hires-scale", 1.25, "--emphasis", "no_norm"],
        ["--sampler", "ddim", "--prediction", "v-zero-snr", "--guidance-rescale", 0.7],
    ],
    ids=lambda flags: flags[1],
)
def test_from_png_generates_the_same_pixels_in_anothers_manner(run, generate, flags):
    assert generate("txt2img.py", "a [(red:1.3)|blue] apple AND [a cat:a dog:1]:0.5", *flags, "--seed", 3)[0] == 0
    code, out, err = run("txt2img.py", "--from-png", "outputs/00000.png", "--outdir", "again", "--ckpt", BUNDLED)
    assert code == 0, err
    assert "note: The model was loaded" not in out  # the flag is taken from the file
    assert np.array_equal(pixels("again/00000.png"), pixels("outputs/00000.png"))
    assert read_infotext("again/00000.png") == read_infotext("outputs/00000.png")


def save_with(text, path="foreign.png"):
    info = PngInfo()
    info.add_text("parameters", text)
    Image.new("RGB", (64, 64)).save(path, pnginfo=info)


WEBUI = (
    "a red apple\nNegative prompt: blurry\nSteps: 2, Sampler: {sampler}, CFG scale: 7, Seed: 42, Size: 64x64, "
    "Model: v1-5-pruned-emaonly, {more}Version: v1.10.1"
)


@pytest.mark.parametrize(
    "more", ["Denoising strength: 0, ", "Hires resize: 96x96, Denoising strength: 0.5, ", "First pass size: 0x0, "]
)
def test_from_png_takes_what_is_not_from_another_image(run, more):
    save_with(WEBUI.format(sampler="Euler", more=more))
    for folder in ("one", "two"):
        code, out, err = run("txt2img.py", "--from-png", "foreign.png", "--ckpt", BUNDLED, "--outdir", folder)
        assert code == 0, err
        assert "note: foreign.png was generated by v1-5-pruned-emaonly, this is emoji." in out
    assert np.array_equal(pixels("one/00000.png"), pixels("two/00000.png"))


def test_from_png_gives_way_to_the_flags(run):
    save_with(WEBUI.format(sampler="DPM++ 2M Karras", more=""))
    flags = ["a dog", "--seed", 9, "--steps", 1, "--sampler", "euler", "--scale", 7.5, "--ckpt", BUNDLED, "--n_iter", 2]
    code, out, err = run("txt2img.py", "--from-png", "foreign.png", *flags)
    assert code == 0, err
    (said,) = [line for line in out.splitlines() if "override the file" in line]
    for part in ("prompt 'a dog'", "seed 9", "steps 1", "sampler 'euler'", "guidance scale 7.5"):
        assert part in said
    found = parse_infotext(read_infotext("outputs/00001.png"))
    assert (found["Prompt"], found["Seed"], found["Steps"]) == ("a dog", "10", "1")
    assert (found["Sampler"], found["Schedule type"], found["CFG scale"]) == ("Euler", "Karras", "7.5")
    assert (found["Negative prompt"], found["Size-1"]) == ("blurry", "64")


def test_a_flag_that_repeats_a_default_goes_before_the_file_too(run):
    save_with(WEBUI.format(sampler="Euler", more="Clip skip: 2, "))
    code, _, err = run(
        "txt2img.py", "--from-png", "foreign.png", "--clip-skip", 1, "--negative-prompt", "", "--ckpt", BUNDLED
    )
    assert code == 0, err
    found = parse_infotext(read_infotext("outputs/00000.png"))
    assert (found["Clip skip"], found["Negative prompt"]) == ("1", "")


def test_from_png_with_a_sampler_that_does_not_exist_here(run):
    save_with(WEBUI.format(sampler="DPM++ 3M", more=""))
    code, out, err = run("txt2img.py", "--from-png", "foreign.png", "--ckpt", BUNDLED)
    assert (code, out) == (2, "")
    assert "'DPM++ 3M' does not exist here: set --sampler, for example to dpmpp_2m." in err
    assert not Path("outputs/00000.png").exists()
    code, _, err = run("txt2img.py", "--from-png", "foreign.png", "--ckpt", BUNDLED, "--sampler", "euler")
    assert code == 0, err


def test_from_png_with_new_prompts(run):
    save_with(WEBUI.format(sampler="Euler", more=""))
    Path("prompts.txt").write_text("a cat\na __animal__\n")
    code, _, err = run("txt2img.py", "--from-png", "foreign.png", "--from-file", "prompts.txt", "--ckpt", BUNDLED)
    assert code == 0, err
    first, second = (parse_infotext(read_infotext(f"outputs/0000{i}.png")) for i in range(2))
    assert (first["Prompt"], first["Seed"], second["Seed"]) == ("a cat", "42", "43")
    assert second["Template"] == "a __animal__"


def test_from_png_an_image_of_another_program(run):
    png = png_with({"prompt": GRAPH})
    Path("comfy.png").write_bytes(png.getvalue())
    code, out, err = run("txt2img.py", "--from-png", "comfy.png", "a red apple", "--ckpt", BUNDLED)
    assert code == 0, err
    assert "seed 9223372036854775813" in out


@pytest.mark.parametrize("kind", ["black", "gray", "nothing"])
def test_inpaint_with_an_empty_mask_is_refused(generate, photo, kind):
    photo.save("photo.png")
    masks = {"black": ("L", 0), "gray": ("L", 90), "nothing": ("RGBA", (255, 255, 255, 0))}
    Image.new(masks[kind][0], photo.size, masks[kind][1]).save("mask.png")
    code, _, err = generate("inpaint.py", "a cat", "--image", "photo.png", "--mask", "mask.png")
    assert code == 2
    assert "the mask is empty" in err


def test_which_checkpoint_is_used_is_said_unless_it_is_the_bundled_one(run, tmp_path, monkeypatch):
    weights = tmp_path / "weights"
    weights.mkdir()
    monkeypatch.setattr("sd.cli.args.WEIGHTS", weights)
    flags = ["a red apple", "--steps", 1]
    code, out, _ = run("txt2img.py", *flags)
    assert (code, "checkpoint" in out) == (0, False)
    own = weights / "Dreamy.safetensors"
    shutil.copy(BUNDLED, own)
    shutil.copy(BUNDLED, weights / "my-dog.safetensors")
    code, out, _ = run("txt2img.py", *flags)
    assert (code, out.splitlines()[0]) == (0, f"checkpoint: {own}; --ckpt emoji uses the bundled model")
    code, out, _ = run("txt2img.py", *flags, "--ckpt", "dreamy.SAFETENSORS")
    assert (code, out.splitlines()[0]) == (0, f"checkpoint: {own}")
    code, out, _ = run("txt2img.py", *flags, "--ckpt", "emoji")
    assert (code, "checkpoint" in out) == (0, False)
