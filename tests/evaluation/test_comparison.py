"""Each column generates what its model generates alone, and leaves nothing behind; the script as it is run."""

import gc
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import fresh_copy
from evaluation.test_clip_score import Colours
from PIL import Image
from safetensors.torch import load_file, save_file

from sd.cli.args import parse_column
from sd.evaluation.clip_score import evaluate
from sd.evaluation.comparison import Column, Comparison, compare
from sd.pipeline.settings import GenerationSettings
from sd.pipeline.stable_diffusion import BUNDLED
from sd.utils.errors import UserError


def same(one: Image.Image, other: Image.Image) -> bool:
    return np.array_equal(np.asarray(one), np.asarray(other))


@pytest.fixture
def pipe(pipe):
    """The tokenizer is every test's, so no word may stay in it."""
    yield pipe
    pipe.unload()


@pytest.fixture
def files(tmp_path):
    """A LoRA and an embedding for the small pipeline of the tests."""
    generator = torch.Generator().manual_seed(0)
    key = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
    lora = {
        f"{key}.lora_down.weight": torch.randn(2, 64, generator=generator),
        f"{key}.lora_up.weight": torch.randn(64, 2, generator=generator),
    }
    save_file(lora, tmp_path / "bent.safetensors")
    save_file({"<rex>": torch.randn(2, 64, generator=generator)}, tmp_path / "word.safetensors")
    return str(tmp_path / "bent.safetensors"), str(tmp_path / "word.safetensors")


ASKED = [
    GenerationSettings(prompt=prompt, steps=2, seed=seed, num_images=2) for prompt, seed in (("a <rex>", 1), ("x", 5))
]


def test_a_column_generates_what_its_model_generates_alone(pipe, files):
    lora, word = files
    before = {key: tensor.clone() for key, tensor in pipe.unet.state_dict().items()}
    columns = [Column(), Column(loras=((lora, 0.5),)), Column(embeddings=((word, None),))]
    told = []
    done = compare(lambda ckpt: pipe, columns, ASKED, word="<rex>", class_word="dog", on_progress=told.append)
    assert done.rows == ["a <rex> (seed 1)", "a <rex> (seed 2)", "x (seed 5)", "x (seed 6)"]
    assert told == pytest.approx([k / 24 for k in range(1, 25)])  # 3 columns of 2 prompts of 2 seeds of 2 steps
    assert pipe.adapters.names() == []
    assert all(torch.equal(tensor, before[key]) for key, tensor in pipe.unet.state_dict().items())

    alone = [*pipe("a dog", steps=2, seed=1, num_images=2).images, *pipe("x", steps=2, seed=5, num_images=2).images]
    assert all(map(same, done.images[0], alone))
    pipe.load_lora(lora, 0.5)
    assert same(done.images[1][1], pipe("a <rex>", steps=2, seed=2).images[0])
    pipe.unload()
    pipe.load_embedding(word)
    assert same(done.images[2][0], pipe("a <rex>", steps=2, seed=1).images[0])
    assert same(done.images[2][3], alone[3])  # a prompt without the word
    assert [report.split(":")[0] for report in done.reports] == ["bent", "<rex>"]


def test_what_was_loaded_before_stays(pipe, files):
    lora, word = files
    pipe.load_embedding(word)
    compare(lambda ckpt: pipe, [Column(), Column(loras=((lora, 1.0),))], ASKED[1:])
    assert pipe.adapters.names() == ["<rex>"]


def test_one_checkpoint_at_a_time_and_each_once(pipe, files, tmp_path):
    other = str(tmp_path / "other.safetensors")
    pipe.save_pretrained(other)
    alive, asked = weakref.WeakSet(), []

    def load(ckpt):
        gc.collect()
        assert not alive
        made = fresh_copy(pipe)
        alive.add(made)
        asked.append(ckpt)
        return made

    columns = [Column(), Column(other), Column(loras=((files[0], 1.0),)), Column(other, loras=((files[0], 1.0),))]
    done = compare(load, columns, ASKED[1:])
    assert asked == [None, other]
    assert same(done.images[0][0], done.images[1][0])  # the same weights, in their own columns
    assert same(done.images[2][0], done.images[3][0])
    assert not same(done.images[0][0], done.images[2][0])


def test_scores_stand_under_each_column(pipe, files, photo):
    columns = [Column(), Column(loras=((files[0], 1.0),))]
    settings = [GenerationSettings(prompt="<rex>", steps=1, seed=1, num_images=2)]
    done = compare(lambda ckpt: pipe, columns, settings, Colours(), [photo], "<rex>", "grey")
    for found, images in zip(done.evaluations, done.images):
        assert found == evaluate(Colours(), images, [photo], ["grey", "grey"])
    assert "scored by colours" in str(done)
    assert f"  bent at 1: CLIP-T {done.evaluations[1].clip_t}, CLIP-I {done.evaluations[1].clip_i}" in str(done)
    without = Comparison(columns, done.rows, done.images)
    assert "no scores" in str(without)
    assert without.sheet().width == done.sheet().width
    assert without.sheet().height < done.sheet().height


@pytest.mark.parametrize("spoilt", ["missing", "no LoRA", "no checkpoint"])
def test_a_mistake_costs_no_generation(pipe, files, tmp_path, spoilt):
    path = str(tmp_path / "spoilt.safetensors")
    if spoilt != "missing":
        save_file({"a": torch.zeros(1)}, path)
    wrong = Column(path) if spoilt == "no checkpoint" else Column(loras=((path, 1.0),))
    told = []
    with pytest.raises(UserError, match="spoilt"):
        compare(lambda ckpt: pipe, [Column(), wrong], ASKED, on_progress=told.append)
    assert told == []
    assert pipe.adapters.names() == []


def test_a_checkpoint_without_a_vae_is_compared_with_the_vae_given_beside_it(pipe, tmp_path):
    whole, bare = tmp_path / "whole.safetensors", tmp_path / "bare.safetensors"
    pipe.save_pretrained(whole)
    save_file({key: one for key, one in load_file(whole).items() if not key.startswith("first_stage_model.")}, bare)
    columns = [Column(), Column(str(bare))]
    with pytest.raises(UserError, match="VAE"):
        compare(lambda ckpt: pipe, columns, ASKED[1:])
    done = compare(lambda ckpt: pipe, columns, ASKED[1:], vae=str(whole))
    assert same(done.images[0][0], done.images[1][0])


@pytest.mark.parametrize(
    ("text", "column", "label"),
    [
        ("lora=a/dog.safetensors", Column(loras=(("a/dog.safetensors", 1.0),)), "dog at 1"),
        ("lora=dog.pt:0.8", Column(loras=(("dog.pt", 0.8),)), "dog at 0.8"),
        ("embedding=rex.pt", Column(embeddings=(("rex.pt", None),)), "rex"),
        ("embedding=rex.pt:<rex>", Column(embeddings=(("rex.pt", "<rex>"),)), "<rex>"),
        ("ckpt=x.ckpt + lora=y.pt:-1", Column("x.ckpt", loras=(("y.pt", -1.0),)), "x + y at -1"),
    ],
)
def test_columns_as_people_write_them(text, column, label):
    assert parse_column(text) == column
    assert column.label == label


@pytest.mark.parametrize("text", ["", "dog.pt", "lora=", "model=x", "ckpt=a + ckpt=b", "lora=x:strong"])
def test_what_is_no_column_is_one_sentence(text):
    with pytest.raises(UserError, match="use "):
        parse_column(text)


def test_the_script_with_the_bundled_model(run, photo):
    save_file({"<bent>": torch.randn(192, generator=torch.Generator().manual_seed(0))}, "bent.safetensors")
    Path("references").mkdir()
    photo.save("references/one.png")
    flags = ["--with", "embedding=bent.safetensors", "--with", f"ckpt={BUNDLED}", "--ckpt", BUNDLED, "--steps", 2]
    flags += ["--word", "<bent>", "--class-word", "apple", "--references", "references", "--num-images", 2]
    code, out, err = run("compare.py", "a <bent> on grass", *flags)
    assert code == 0, err
    assert "scored by the bundled CLIP" in out
    scored = [line.split(":")[0].strip() for line in out.splitlines() if "CLIP-T" in line and "CLIP-I" in line]
    assert scored == ["base", "bent", "emoji"]
    assert out.splitlines()[-1] == "outputs/compare-00000.png  3 columns, 2 rows"
    sheet = Image.open("outputs/compare-00000.png")
    assert sheet.width > 3 * 128
    assert sheet.height > 2 * 128


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "--with"),
        (["--with", "dog.pt"], "no column"),
        (["--with", "lora=nothing.pt"], "nothing.pt"),
        (["--with", "ckpt=nothing.ckpt"], "nothing.ckpt"),
        (["--with", "lora=x.pt", "--clip", "nothing.pt"], "nothing.pt"),
        (["--with", "lora=x.pt", "--references", "nothing"], "nothing"),
        (["--with", "lora=x.pt", "--steps", 0], "steps"),
    ],
)
def test_mistakes_are_one_sentence_and_exit_code_2(run, flags, said):
    code, _, err = run("compare.py", "a cat", "--ckpt", BUNDLED, *flags)
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith("error: ")
    assert said in err
