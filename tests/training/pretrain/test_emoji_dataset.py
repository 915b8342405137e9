"""The dataset: what the list of names holds out, and correct rendering, from packages made here."""

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from sd.training.pretrain import emoji_dataset as emoji
from sd.training.pretrain.dataset import EmojiDataset, with_article

SMALL = [name for name in emoji.read_names() if name.world == "small"]
SMALL_STYLES = [style for style in emoji.SMALL_WORLD if style != emoji.HELD_OUT_STYLE]


def test_names_are_unique_and_hold_out_what_was_agreed():
    names = emoji.read_names()
    assert len({name.name for name in names}) == len({name.emoji for name in names}) == len(names)
    assert sum(name.held_out == "name" for name in names) == 30
    pairs = [(name, style) for name in SMALL for style in SMALL_STYLES if name.held_out != "name"]
    drawn = [(name, style) for name, style in pairs if style != "fxemoji" or name.fxemoji != "-"]
    held_out = [name for name, style in drawn if name.split(style) == "pair"]
    assert len(held_out) == pytest.approx(0.1 * len(drawn), abs=1)


def test_a_held_out_pair_is_seen_in_another_style():
    for name in emoji.read_names():
        assert name.held_out in ("-", "name", *emoji.TRAINED_STYLES)
        if name.held_out in emoji.TRAINED_STYLES:
            assert "train" in {name.split(style) for style in SMALL_STYLES}
            assert name.split(name.held_out) == "pair"
        assert name.split(emoji.HELD_OUT_STYLE) == "style"


@pytest.mark.parametrize(
    "word", ["red apple", "cat", "dog", "rocket", "sun", "tree", "house", "red heart", "pizza", "car"]
)
def test_what_a_newcomer_types_is_in_the_small_world(word):
    (name,) = [name for name in SMALL if name.name == word]
    assert name.held_out != "name"


def test_articles():
    said = [with_article(name) for name in ("red apple", "owl", "grapes", "dress", "fire")]
    assert said == ["a red apple", "an owl", "grapes", "a dress", "fire"]


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Two tiny packages: one of SVG with the icon "owl" in the left half of a 20 x 10 box, one of WebP."""
    pytest.importorskip("resvg_py")
    row = emoji.Name("🦉", "owl", "small", "svg emoji", "-", ["night bird"])
    monkeypatch.setattr(emoji, "read_names", lambda: [row, emoji.Name("🐌", "snail", "small", "-", "-", [])])
    monkeypatch.setattr(emoji, "STYLES", {"svg emoji": ("@a/svg", "1.0.0"), "webp emoji": ("@a/webp", "2.0.0")})
    monkeypatch.setattr(emoji, "SMALL_WORLD", ("svg emoji",))
    body = '<path fill="#ff0000" d="M0 0h10v20H0z"/>'
    icons = {"icons": {"owl": {"body": body}}, "width": 20, "height": 20}
    webp = io.BytesIO()
    Image.new("RGBA", (32, 32), (0, 0, 255, 128)).save(webp, "webp", lossless=True)
    contents = {
        "a-svg-1.0.0.tgz": {"icons.json": json.dumps(icons).encode(), "chars.json": b'{"1f989": "owl"}'},
        "a-webp-2.0.0.tgz": {"assets/1f989-fe0f.webp": webp.getvalue()},
    }
    (tmp_path / "packages").mkdir()
    for name, files in contents.items():
        with tarfile.open(tmp_path / "packages" / name, "w:gz") as tar:
            for path, data in files.items():
                member = tarfile.TarInfo(f"package/{path}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return tmp_path


def test_preparation_renders_on_white_and_writes_the_split(packages):
    assert emoji.prepare_dataset(packages, say=lambda line: None) == 2  # neither package has a snail
    svg = np.asarray(Image.open(packages / "pictures/svg-emoji/owl.png")).astype(int)
    assert svg.shape == (emoji.SIZE, emoji.SIZE, 3)
    assert (svg[:, :63] == [255, 0, 0]).all()
    assert (svg[:, 65:] == 255).all()
    webp = np.asarray(Image.open(packages / "pictures/webp-emoji/owl.png")).astype(int)
    assert abs(webp - [127, 127, 255]).max() <= 1  # half transparent blue on white; resampling may round by one
    held, trained = EmojiDataset(packages, ("pair",)), EmojiDataset(packages)
    assert (held.emoji[0].style, trained.emoji[0].style) == ("svg emoji", "webp emoji")
    assert "a night bird, webp emoji" in trained.emoji[0].captions
    assert "an owl" in trained.emoji[0].plain_captions
    assert trained.images().shape == (1, 3, emoji.SIZE, emoji.SIZE)
    assert emoji.prepare_dataset(packages, small=True, say=lambda line: None) == 1  # the style of the small world


def test_a_set_without_a_list_of_characters_is_found_by_its_sisters_list(packages, monkeypatch):
    sister = {"fluent flat emoji": ("@a/svg", "1.0.0"), "fluent emoji": ("@b/svg", "1.0.0")}
    monkeypatch.setattr(emoji, "STYLES", sister)
    contents = packages / "packages"
    with tarfile.open(contents / "a-svg-1.0.0.tgz") as old, tarfile.open(contents / "b-svg-1.0.0.tgz", "w:gz") as new:
        new.addfile(old.getmember("package/icons.json"), old.extractfile("package/icons.json"))
        empty = tarfile.TarInfo("package/chars.json")
        empty.size = 2
        new.addfile(empty, io.BytesIO(b"{}"))
    assert emoji.prepare_dataset(packages, say=lambda line: None) == 2
    assert (packages / "pictures/fluent-emoji/owl.png").exists()


def test_a_package_that_cannot_be_downloaded_is_a_user_error(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(emoji.UserError, match="could not be downloaded: install npm"):
        emoji.download_package("@a/missing", "1.0.0", tmp_path)
