"""Checkpoints, VAEs, LoRAs and embeddings by name: what is found, what is chosen unless told, and what is said."""

import hashlib
import json
import os
import re
import shutil

import pytest
import torch
from make_full_checkpoint import SMALL, random_weights
from safetensors.torch import save_file

from sd.checkpoints import hashing as model_hash
from sd.checkpoints.discovery import BUNDLED, BUNDLED_ADDITIONS, SHIPPED, Models, locate, vae_beside
from sd.checkpoints.model_files import content_of
from sd.utils.errors import UserError

UNET, CLIP = "model.diffusion_model.input_blocks.0.0.weight", "cond_stage_model.transformer.text_model.x"
CONTENTS = {
    "checkpoint": {UNET: torch.zeros(1, 4, 3, 3), CLIP: torch.zeros(1)},
    "inpainting": {UNET: torch.zeros(1, 9, 3, 3), CLIP: torch.zeros(1)},
    "pix2pix": {UNET: torch.zeros(1, 8, 3, 3), CLIP: torch.zeros(1)},
    "LoRA": {"lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": torch.zeros(4, 8)},
    "embedding": {"<dog>": torch.zeros(2, 768)},
    "VAE": {"encoder.conv_in.weight": torch.zeros(1), "decoder.conv_in.weight": torch.zeros(1)},
    "ControlNet": {"control_model.input_blocks.0.0.weight": torch.zeros(1)},
    "TAESD": {"1.conv.0.weight": torch.zeros(1)},
    "upscaler": {"conv_first.weight": torch.zeros(1)},
    "SD2": {UNET: torch.zeros(1, 4, 3, 3), "cond_stage_model.model.ln_final.bias": torch.zeros(1)},
    "SDXL": {UNET: torch.zeros(1, 4, 3, 3), "conditioner.embedders.1.model.x": torch.zeros(1)},
}


@pytest.fixture(autouse=True)
def cache_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(model_hash, "CACHE", tmp_path / "cache" / "hashes.json")


@pytest.fixture
def models(tmp_path):
    weights = tmp_path / "weights"
    weights.mkdir()
    return Models(weights, weights / "loras", weights / "embeddings", weights / "vae")


def put(models, name, content="checkpoint", **metadata):
    """A file in weights/ with the few tensors that tell what it is."""
    path = models.folders["checkpoint"] / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() == ".safetensors":
        save_file(CONTENTS[content], path, metadata or None)
    else:
        torch.save({"state_dict": CONTENTS[content], **metadata}, path)
    models.refresh()
    return path


# By which names


SPELLINGS = {
    "dreamy.safetensors": ["dreamy", "Dreamy", "dreamy.safetensors", "DREAMY.SAFETENSORS", "dreamy [0123456789]"],
    "Loud.SAFETENSORS": ["loud", "Loud", "loud.safetensors"],
    "old.CKPT": ["old", "old.ckpt", "OLD"],
    "older.pt": ["older", "older.pt"],
    "v1.5.ema.ckpt": ["v1.5.ema", "v1.5.ema.ckpt"],
    "anime/girl.safetensors": ["girl", "anime/girl", "anime\\girl", "Anime\\Girl.safetensors [0123456789]"],
    "with [brackets].ckpt": ["with [brackets]"],
}


@pytest.mark.parametrize("file", SPELLINGS)
def test_names_in_every_spelling(models, file):
    path = put(models, file)
    for name in SPELLINGS[file]:
        assert models.find("checkpoint", name) == path, name


def test_to_the_letter_goes_before_any_case_and_near_before_far(models):
    exact, other = put(models, "Dog.safetensors"), put(models, "dog.safetensors")
    far = put(models, "sub/dog.safetensors")
    assert models.find("checkpoint", "Dog") == exact
    assert models.find("checkpoint", "dog") == other
    assert models.find("checkpoint", "sub/dog") == far
    assert models.find("checkpoint", "sub/DOG") == far


def test_two_files_of_one_name_can_both_be_chosen(models):
    ckpt, safe = put(models, "dog.ckpt"), put(models, "dog.safetensors")
    assert models.names("checkpoint") == {"emoji": BUNDLED, "dog": safe, "dog.ckpt": ckpt}
    assert models.find("checkpoint", "dog.ckpt") == ckpt


def test_aliases_from_metadata(models):
    lora = put(models, "loras/000012.safetensors", "LoRA", ss_output_name="my-dog")
    checkpoint = put(models, "model.ckpt", ss_output_name="My-Dog")
    assert models.find("LoRA", "my-dog") == lora
    assert models.find("LoRA", "MY-DOG") == lora
    assert models.find("checkpoint", "my-dog") == checkpoint


def test_hashes_alone_find_a_checkpoint(models):
    path, other = put(models, "a.safetensors"), put(models, "b.ckpt")
    whole = hashlib.sha256(other.read_bytes()).hexdigest()
    big = models.folders["checkpoint"] / "big.ckpt"
    torch.save({"state_dict": CONTENTS["checkpoint"] | {"x": torch.rand(300_000)}}, big)
    models.refresh()
    old = hashlib.sha256(big.read_bytes()[0x100000:0x110000]).hexdigest()[:8]
    for name in (whole[:10], whole, f"renamed.ckpt [{whole[:10]}]", whole[:10].upper()):
        assert models.find("checkpoint", name) == other
    assert models.find("checkpoint", old) == big
    with pytest.raises(UserError):
        models.find("checkpoint", "0123456789")
    assert path in models.names("checkpoint").values()


def test_a_name_that_is_there_costs_no_hashing(models, monkeypatch):
    put(models, "deadbeef01.safetensors")
    monkeypatch.setattr(model_hash.hashlib, "sha256", None)
    assert models.find("checkpoint", "deadbeef01").stem == "deadbeef01"
    assert "deadbeef01" in models.names("checkpoint")


def test_hidden_and_unfinished_files_are_never_listed(models):
    for name in ("._dog.safetensors", ".dog.ckpt", ".cache/dog.safetensors"):
        put(models, name)
    put(models, "dog.safetensors").rename(models.folders["checkpoint"] / "dog.safetensors.part")
    assert list(models.names("checkpoint")) == ["emoji"]


def test_own_checkpoints_called_emoji_or_taesd(models):
    own = {name: put(models, name) for name in ("emoji.ckpt", "emoji-v2.safetensors", "taesd-mix.ckpt")}
    assert models.names("checkpoint") == {
        "emoji": BUNDLED,
        "emoji.ckpt": own["emoji.ckpt"],
        "emoji-v2": own["emoji-v2.safetensors"],
        "taesd-mix": own["taesd-mix.ckpt"],
    }
    assert models.find("checkpoint", "emoji") == models.find("checkpoint", "emoji.safetensors") == BUNDLED
    assert models.find("checkpoint", "emoji.ckpt") == own["emoji.ckpt"]


@pytest.mark.parametrize("name", ["../x", "..", ".", "", "/etc/passwd", "a/../b", "a\0b", "../../x [0123456789]"])
def test_names_are_never_paths(models, name):
    put(models, "x.safetensors")
    with pytest.raises(UserError):
        models.find("checkpoint", name)


def test_what_is_near_is_named(models):
    put(models, "Dreamy.safetensors")
    with pytest.raises(UserError, match=r"^there is no checkpoint named dreemy; did you mean Dreamy\?$"):
        models.find("checkpoint", "dreemy")


# By content


def test_another_kind_among_the_checkpoints_is_no_checkpoint(models):
    for kind in CONTENTS:
        put(models, f"a-{kind}.safetensors", kind)
        put(models, f"b-{kind}.ckpt", kind)
    kinds = {path.stem[2:] for name, path in models.names("checkpoint").items() if name != "emoji"}
    assert kinds == {"checkpoint", "inpainting"}
    for kind in ("LoRA", "VAE", "embedding"):
        found = set(models.names(kind).values()) - set(BUNDLED_ADDITIONS.values())
        assert {path.stem[2:] for path in found} == {kind}


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("LoRA", "x is a LoRA, not a checkpoint of Stable Diffusion 1.x: name it in the prompt, <lora:x:1>."),
        ("VAE", "x is a VAE alone, not a checkpoint of Stable Diffusion 1.x: choose it as the VAE of a checkpoint."),
        (
            "embedding",
            "x is a textual inversion embedding, not a checkpoint of Stable Diffusion 1.x: "
            "write its token in the prompt.",
        ),
        (
            "ControlNet",
            "x is a ControlNet, not a checkpoint of Stable Diffusion 1.x: name it with --control, or as the",
        ),
        ("SDXL", "x is Stable Diffusion XL, not a checkpoint of Stable Diffusion 1.x: choose another file."),
        ("pix2pix", "x is an instruct-pix2pix model, whose U-Net takes 8 channels, not a checkpoint"),
    ],
)
def test_a_file_of_another_kind_is_called_by_its_name(models, kind, said):
    put(models, "x.safetensors", kind)
    with pytest.raises(UserError) as caught:
        models.find("checkpoint", "x")
    assert str(caught.value).startswith(said)


def test_a_checkpoint_asked_for_as_a_lora(models):
    put(models, "x.safetensors")
    with pytest.raises(UserError, match="x is a checkpoint, not a LoRA: choose it as the checkpoint"):
        models.find("LoRA", "x")


def test_a_hypernetwork_is_no_embedding(models):
    pair = ({"linear.0.weight": torch.zeros(4, 768)}, {"linear.0.weight": torch.zeros(4, 768)})
    torch.save({768: pair, 320: pair, "step": 3, "name": "x"}, models.folders["checkpoint"] / "x.pt")
    assert content_of(models.folders["checkpoint"] / "x.pt").what == "a hypernetwork"
    assert models.names("embedding") == {}


def test_an_image_beside_an_embedding_shows_it_and_one_alone_may_hold_one(models):
    put(models, "embeddings/dog.safetensors", "embedding")
    for name in ("dog.png", "dog.preview.png", "cat.png"):
        (models.folders["embedding"] / name).write_bytes(b"a picture")
    (models.folders["checkpoint"] / "holiday.png").write_bytes(b"a picture")
    models.refresh()
    assert sorted(models.names("embedding")) == ["cat", "dog"]


def test_a_changed_file_is_looked_at_again(models):
    path = put(models, "x.safetensors", "LoRA")
    assert content_of(path).kind == "LoRA"
    put(models, "x.safetensors", "checkpoint")
    assert content_of(path).kind == "checkpoint"


def diffusers_folder(path, index=(), **unet):
    (path / "unet").mkdir(parents=True)
    (path / "unet" / "config.json").write_text(json.dumps({"in_channels": 4} | unet))
    (path / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"} | dict(index)))
    return path


def test_diffusers_folders_are_one_model_each(models):
    weights = models.folders["checkpoint"]
    folder, below = diffusers_folder(weights / "dreamy"), diffusers_folder(weights / "sub" / "anime")
    diffusers_folder(weights / "xl", {"_class_name": "StableDiffusionXLPipeline"})
    put(models, "dreamy/unet/diffusion_pytorch_model.safetensors")
    assert models.names("checkpoint") == {"emoji": BUNDLED, "dreamy": folder, "anime": below}
    assert models.find("checkpoint", "sub/anime") == below


# Which one unless told


def test_the_default_is_a_checkpoint_by_its_content(models):
    for i, kind in enumerate(("LoRA", "VAE", "embedding", "ControlNet", "SD2", "SDXL", "pix2pix")):
        put(models, f"{i}.safetensors", kind)
    (models.folders["checkpoint"] / "damaged.safetensors").write_bytes(b"half a download")
    assert models.checkpoint() == BUNDLED
    mine = put(models, "mine.ckpt")
    assert models.checkpoint() == mine
    put(models, "a-inpainting.ckpt", "inpainting")
    assert models.checkpoint() == mine, "a model for inpainting only where there is no other"
    preferred = put(models, "v1-5-pruned-emaonly.safetensors")
    assert models.checkpoint() == preferred


@pytest.mark.parametrize("sign", ["sd_trained_from", "ss_training_comment", "ss_max_train_steps"])
def test_a_model_that_was_trained_here_is_never_the_default(models, sign):
    put(models, "my-dog.safetensors", **{sign: "emoji"})
    put(models, "my-cat.ckpt", **{sign: "emoji"})
    diffusers_folder(models.folders["checkpoint"] / "my-cow", {"_sd_trained_from": "emoji"})
    models.refresh()
    assert list(models.names("checkpoint")) == ["emoji", "my-cat", "my-cow", "my-dog"]
    assert models.checkpoint() == BUNDLED


def test_a_real_checkpoint_is_known_as_one(models):
    path = models.folders["checkpoint"] / "real.safetensors"
    save_file(random_weights(SMALL), path)
    assert content_of(path).kind == "checkpoint"
    assert models.checkpoint() == path


# VAEs


def test_a_vae_by_name_and_beside_its_checkpoint(models):
    checkpoint, other = put(models, "dreamy.ckpt"), put(models, "other.ckpt")
    beside = put(models, "dreamy.vae.pt", "VAE")
    kept, upper = put(models, "vae/kept.ckpt", "VAE"), put(models, "VAE/upper.safetensors", "VAE")
    for automatic in ("", "Automatic", None):
        assert models.vae(automatic, checkpoint) == beside
        assert models.vae(automatic, other) is None
    assert models.vae("None", checkpoint) is None
    assert models.vae("kept.ckpt", checkpoint) == kept
    assert models.vae("dreamy.vae", other) == beside
    assert models.vae("upper", other) == upper
    with pytest.raises(UserError, match="no VAE named nothing"):
        models.vae("nothing", checkpoint)
    beside.rename(beside.with_suffix(".safetensors"))
    assert vae_beside(checkpoint) == beside.with_suffix(".safetensors")


# Paths


def test_somebody_at_the_keyboard_may_give_a_path_or_a_name(models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "emoji").mkdir()
    inside, outside = put(models, "dreamy.safetensors"), tmp_path / "outside.ckpt"
    torch.save(CONTENTS["checkpoint"], outside)
    folder = diffusers_folder(tmp_path / "folder")
    assert locate("checkpoint", "dreamy", models) == inside
    assert locate("checkpoint", "emoji", models) == BUNDLED, "an unrelated folder of that name does not matter"
    assert locate("checkpoint", str(outside), models) == outside
    assert locate("checkpoint", folder / "model_index.json", models) == folder
    assert locate("checkpoint", folder, models) == folder
    with pytest.raises(UserError, match=r"file not found: nowhere/x\.ckpt"):
        locate("checkpoint", "nowhere/x.ckpt", models)
    with pytest.raises(UserError, match=r"there is no checkpoint named dreamy\.ckptt"):
        locate("checkpoint", "dreamy.ckptt", models)
    for name in (tmp_path / "none.png", tmp_path / "none", "../none"):  # which are no names
        with pytest.raises(UserError, match=f"file not found: {re.escape(str(name))}; check the path"):
            locate("checkpoint", name, models)


@pytest.mark.parametrize("kind", BUNDLED_ADDITIONS)
def test_what_belongs_to_the_bundled_model_is_found_from_any_folder(models, kind):
    path = BUNDLED_ADDITIONS[kind]
    assert models.names(kind) == {path.stem: path}
    assert Models(SHIPPED).names(kind)[path.stem] == path
    for name in (path.stem, path.name.title()):
        assert models.find(kind, name) == path
    assert path not in models.names("checkpoint").values()


@pytest.mark.parametrize("kind", BUNDLED_ADDITIONS)
def test_ones_own_file_comes_before_the_bundled_one_of_the_same_name(models, kind):
    path = BUNDLED_ADDITIONS[kind]
    own = models.folders[kind] / path.name
    own.parent.mkdir(exist_ok=True)
    shutil.copy(path, own)
    assert models.find(kind, path.stem) == own
    assert models.names(kind) == {path.stem: own, path.name: path}


@pytest.mark.parametrize("kind", ["ControlNet", "upscaler", "LoRA", "VAE", "embedding"])
def test_a_folder_of_files_is_no_model(models, tmp_path, kind):
    (tmp_path / "some").mkdir()
    with pytest.raises(UserError, match=f"some is a folder, and not one that is an? {kind}: name a file in it"):
        locate(kind, tmp_path / "some", models)


def test_a_name_without_similar_ones_is_answered_with_what_is_there(models):
    for number in range(10):
        put(models, f"model {number}.safetensors")
    with pytest.raises(
        UserError, match=r"there is no checkpoint named xyz; choose from emoji, model 0, .* and 3 more\."
    ):
        models.find("checkpoint", "xyz")
    with pytest.raises(UserError, match=r"there is no VAE named xyz: put it into \w+/vae/, which holds none yet\."):
        models.find("VAE", "xyz")


@pytest.mark.parametrize("name", ["", "  "])
def test_an_empty_name_is_said_to_be_empty(models, name):
    with pytest.raises(UserError, match="the name of the upscaler is empty"):
        locate("upscaler", name, models)


def test_a_broken_link_is_no_file(models):
    os.symlink("nowhere.safetensors", models.folders["checkpoint"] / "broken.safetensors")
    assert list(models.names("checkpoint")) == ["emoji"]
