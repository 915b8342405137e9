"""Models by name: what is in the folders, and nothing else."""

import os

import pytest
import torch
from safetensors.torch import save_file

from sd.adapters.embedding_files import save_embedding
from sd.pipeline.stable_diffusion import BUNDLED
from sd.utils.errors import UserError
from sd.web.jobs.model_index import Models

BAD_NAMES = [
    "../x",
    "..",
    ".",
    "",
    "/etc/passwd",
    "a/b",
    "a\\b",
    "a\0b",
    "../../outside",
    "outside.safetensors",
]


@pytest.fixture
def models(tmp_path):
    """Each folder with `mine`, and a file outside of them."""
    folders = [tmp_path / "weights", tmp_path / "weights" / "loras", tmp_path / "weights" / "embeddings"]
    save_file({"x": torch.zeros(1)}, tmp_path / "outside.safetensors")
    for folder in folders:
        folder.mkdir()
        save_file({"x": torch.zeros(1)}, folder / "mine.safetensors")
    return Models(*folders)


@pytest.mark.parametrize("kind", ["checkpoint", "LoRA", "embedding"])
def test_names_are_those_of_the_folder(models, kind):
    names = {"checkpoint": ["emoji", "mine"], "LoRA": ["mine", "emoji-turbo"], "embedding": ["mine"]}
    assert list(models.names(kind)) == names[kind]
    assert models.find(kind, "mine") == models.folders[kind] / "mine.safetensors"


@pytest.mark.parametrize("kind", ["checkpoint", "LoRA", "embedding"])
@pytest.mark.parametrize("name", BAD_NAMES)
def test_nothing_else_is_found(models, kind, name):
    with pytest.raises(UserError):
        models.find(kind, name)


def test_what_the_owner_links_into_the_folder_is_found(models, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    save_file({"x": torch.zeros(1)}, tmp_path / "elsewhere" / "theirs.safetensors")
    os.symlink(tmp_path / "elsewhere", models.folders["LoRA"] / "more")
    os.symlink(tmp_path / "outside.safetensors", models.folders["LoRA"] / "link.safetensors")
    os.symlink(models.folders["LoRA"], models.folders["LoRA"] / "round and round")
    assert models.find("LoRA", "theirs") == models.folders["LoRA"] / "more" / "theirs.safetensors"
    assert models.find("LoRA", "link") == models.folders["LoRA"] / "link.safetensors"
    assert list(models.names("LoRA")) == ["link", "mine", "theirs", "emoji-turbo"]


def test_a_folder_that_is_itself_a_link_is_fine(models, tmp_path):
    os.symlink(models.folders["LoRA"], tmp_path / "linked")
    assert list(Models(loras=tmp_path / "linked").names("LoRA")) == ["mine", "emoji-turbo"]


def test_the_sentence_names_what_is_near_and_no_place(models, tmp_path):
    with pytest.raises(UserError) as error:
        models.find("LoRA", "mime")
    assert str(error.value) == "there is no LoRA named mime; did you mean mine?"


@pytest.mark.parametrize("spelling", ["mine", "mine.safetensors", "mine.safetensors [0123456789]", "mine [0123456789]"])
def test_checkpoints_as_the_webui_writes_them(models, spelling):
    assert models.checkpoint(spelling).name == "mine.safetensors"


def test_the_checkpoint_unless_told(models, tmp_path):
    assert models.checkpoint() == BUNDLED, "what `mine` holds does not show"
    assert Models(tmp_path / "nothing").checkpoint() == BUNDLED


def test_refreshing_finds_what_is_new(models):
    models.names("LoRA")
    save_file({"x": torch.zeros(1)}, models.folders["LoRA"] / "new.safetensors")
    models.refresh()
    assert "new" in models.names("LoRA")


def test_loras_of_a_prompt(models):
    models.check_tags("an apple <lora:mine:0.5>")
    for prompt in ("<lora:theirs:1>", "<lora:../../outside:1>", "<lora:mine:much>"):
        with pytest.raises(UserError):
            models.check_tags(prompt)


def test_embeddings_are_described(models):
    save_embedding(models.folders["embedding"] / "word.safetensors", "<w>", torch.ones(3, 64))
    save_embedding(models.folders["embedding"] / "old.pt", "old", torch.ones(2, 768))
    (models.folders["embedding"] / "mine.safetensors").write_bytes(b"no embedding")
    described = models.describe_embeddings()
    facts = {name: (about["vectors"], about["shape"]) for name, about in described["loaded"].items()}
    assert facts == {"old": (2, 768), "word": (3, 64)}
    assert list(described["skipped"]) == ["mine"]
