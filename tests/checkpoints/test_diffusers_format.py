"""Folders in diffusers' layout: theirs read by us, ours by them, the same numbers out of both."""

import json
import shutil

import diffusers
import pytest
import safetensors.torch
import torch
import transformers
from make_full_checkpoint import SMALL, random_weights

from sd.checkpoints.checkpoint import PREFIXES, load_models, save_checkpoint
from sd.checkpoints.config import fill_defaults
from sd.tokenizer import Tokenizer
from sd.utils.errors import UserError

SIZES = SMALL | {"clip": {"width": 64, "layers": 2, "heads": 4}, "image_size": 64}
PARTS = ("unet", "vae", "text_encoder")


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    """Our small model, from a .safetensors, and the folder that `save` made of it."""
    root = tmp_path_factory.mktemp("folders")
    metadata = {"sd_sizes": json.dumps(SIZES)}
    safetensors.torch.save_file(random_weights(SIZES), root / "model.safetensors", metadata)
    models = load_models(root / "model.safetensors")
    assert save_checkpoint(root / "ours", *models[:3], models[3].config) == "diffusers"
    return root / "ours", models


@pytest.fixture(scope="module")
def theirs(ours):
    return diffusers.StableDiffusionPipeline.from_pretrained(ours[0], local_files_only=True)


@torch.no_grad()
def test_diffusers_and_transformers_load_our_folder_and_compute_the_same(ours, theirs):
    clip, vae, unet, _ = ours[1]
    generator = torch.Generator().manual_seed(0)
    x, image = torch.randn(2, 4, 8, 8, generator=generator), torch.rand(1, 3, 32, 32, generator=generator) * 2 - 1
    t, prompts = torch.tensor([3, 700]), ["a red apple, isn't it", "naïve ☃ 12 " * 30]
    tokens = Tokenizer()(prompts)
    theirs_tokens = theirs.tokenizer(prompts, padding="max_length", truncation=True, max_length=77).input_ids
    assert tokens.tolist() == theirs_tokens
    context = clip(tokens)
    # Sums in another order, fp32: a few units in the last place (1e-7) over a few dozen layers.
    close = {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(theirs.text_encoder(tokens).last_hidden_state, context, **close)
    torch.testing.assert_close(theirs.unet(x, t, context).sample, unet(x, t, context), **close)
    torch.testing.assert_close(theirs.vae.encode(image).latent_dist.mean, vae.encode(image)[0], **close)
    torch.testing.assert_close(theirs.vae.decode(x).sample, vae.decode(x), **close)
    assert theirs.vae.config.scaling_factor == 0.18215
    assert theirs.vae_scale_factor == vae.downsample
    assert theirs.scheduler.config.prediction_type == "epsilon"
    torch.testing.assert_close(theirs.scheduler.betas[[0, -1]], torch.tensor([0.00085, 0.012]))


def test_their_pipeline_generates_from_our_folder(theirs):
    theirs.set_progress_bar_config(disable=True)
    image = theirs("a red apple", num_inference_steps=2, height=64, width=64).images[0]
    assert image.size == (64, 64)


def same_weights(path, models):
    *networks, checkpoint = load_models(path)
    for network, expected in zip(networks, models):
        found, expected = network.state_dict(), expected.state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key].to(found[key].dtype)) for key in found)
    return checkpoint


WAYS = {
    "safetensors": {},
    "bin": {"safe_serialization": False},
    "fp16 variant": {"variant": "fp16"},
    "fp16 variant, bin": {"variant": "fp16", "safe_serialization": False},
    "shards": {"max_shard_size": "1MB"},
    "shards of a variant": {"max_shard_size": "1MB", "variant": "fp16"},
}


@pytest.mark.parametrize("way", WAYS)
def test_folders_that_diffusers_saved(tmp_path, ours, theirs, way):
    theirs.save_pretrained(tmp_path / "theirs", **WAYS[way])
    written = {path.name for path in (tmp_path / "theirs").glob("*/*")}
    assert any("fp16" in name for name in written) == ("variant" in way)
    assert any(name.endswith(".bin") for name in written) == ("bin" in way)
    assert any("00001-of-" in name for name in written) == ("shards" in way)
    checkpoint = same_weights(tmp_path / "theirs", ours[1])
    assert checkpoint.kind == "diffusers"
    assert checkpoint.config == fill_defaults(SIZES, "here")


def test_whole_precision_goes_before_its_fp16_variant(tmp_path, ours, theirs):
    theirs.save_pretrained(tmp_path / "both")
    for part in PARTS:
        for file in list((tmp_path / "both" / part).glob("*.safetensors")):
            half = {key: tensor.half() for key, tensor in safetensors.torch.load_file(file).items()}
            safetensors.torch.save_file(half, file.with_suffix(".fp16.safetensors"))
    assert load_models(tmp_path / "both")[2].out[2].weight.dtype == torch.float32
    for file in (tmp_path / "both").glob("*/*.safetensors"):
        if "fp16" not in file.name:
            file.unlink()
    assert load_models(tmp_path / "both")[2].out[2].weight.dtype == torch.float16


@pytest.mark.parametrize("prefix", ["", "text_model."])
def test_text_encoders_of_either_spelling(tmp_path, ours, prefix):
    shutil.copytree(ours[0], tmp_path / "folder")
    file = tmp_path / "folder" / "text_encoder" / "model.safetensors"
    state = {
        prefix + key.removeprefix("text_model."): value for key, value in safetensors.torch.load_file(file).items()
    }
    safetensors.torch.save_file(state | {prefix + "embeddings.position_ids": torch.arange(77)[None]}, file)
    assert same_weights(tmp_path / "folder", ours[1]).ignored == ["embeddings.position_ids"]


def test_vae_of_2022_with_query_key_value(tmp_path, ours):
    shutil.copytree(ours[0], tmp_path / "folder")
    file = tmp_path / "folder" / "vae" / "diffusion_pytorch_model.safetensors"
    state = safetensors.torch.load_file(file)
    for now, before in {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}.items():
        state = {key.replace(f".{now}.", f".{before}."): tensor for key, tensor in state.items()}
    assert any(".proj_attn." in key for key in state)
    safetensors.torch.save_file(state, file)
    same_weights(tmp_path / "folder", ours[1])


def test_the_inpainting_unet_is_for_the_inpainting_pipeline(tmp_path):
    sizes = SIZES | {"unet": SIZES["unet"] | {"in_channels": 9}}
    safetensors.torch.save_file(random_weights(sizes), tmp_path / "a", {"sd_sizes": json.dumps(sizes)})
    clip, vae, unet, checkpoint = load_models(tmp_path / "a")
    save_checkpoint(tmp_path / "folder", clip, vae, unet, checkpoint.config)
    pipe = diffusers.AutoPipelineForInpainting.from_pretrained(tmp_path / "folder", local_files_only=True)
    assert pipe.unet.config.in_channels == 9
    assert type(pipe).__name__ == "StableDiffusionInpaintPipeline"
    assert load_models(tmp_path / "folder")[3].config == fill_defaults(sizes, "here")


def test_v1_5_configs_are_what_was_published():
    """The arguments that v1-5's own configs give, and what is left to defaults there is left to them here."""
    from sd.checkpoints.diffusers_format import clip_config, unet_config, vae_config

    sizes = fill_defaults({}, "here")
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel.from_config(unet_config(sizes))
        vae = diffusers.AutoencoderKL.from_config(vae_config(sizes))
        clip = transformers.CLIPTextModel(transformers.CLIPTextConfig(**clip_config(sizes)))
    assert sum(p.numel() for p in unet.parameters()) == 859_520_964
    assert sum(p.numel() for p in vae.parameters()) == 83_653_863
    assert sum(p.numel() for p in clip.parameters()) == 123_060_480
    assert unet.config.sample_size == 64
    # Here diffusers' defaults are the published values, but for the four that say the architecture.
    published = {"cross_attention_dim": 768, "attention_head_dim": 8, "block_out_channels": [320, 640, 1280, 1280]}
    assert {key: unet.config[key] for key in published} == published


def changed_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_other_folders_are_refused_by_name(tmp_path, ours):
    def refused(message, change):
        folder = tmp_path / "folder"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(ours[0], folder)
        change(folder)
        with pytest.raises(UserError) as caught:
            load_models(folder)
        assert message in str(caught.value)

    index, unet = "model_index.json", "unet/config.json"
    refused("no model_index.json", lambda at: (at / index).unlink())
    refused("StableDiffusionXLPipeline", lambda at: changed_json(at / index, _class_name="StableDiffusionXLPipeline"))
    refused("FluxPipeline", lambda at: changed_json(at / index, _class_name="FluxPipeline"))
    refused("StableDiffusion3Pipeline", lambda at: changed_json(at / index, _class_name="StableDiffusion3Pipeline"))
    refused("Stable Diffusion 2", lambda at: changed_json(at / unet, cross_attention_dim=1024))
    refused("Stable Diffusion 2", lambda at: changed_json(at / unet, use_linear_projection=True))
    scheduler = "scheduler/scheduler_config.json"
    refused("predicts sample", lambda at: changed_json(at / scheduler, prediction_type="sample"))
    refused("file not found", lambda at: (at / unet).unlink())
    refused("does not contain valid JSON", lambda at: (at / unet).write_text("{"))
    refused("is not a valid config file", lambda at: (at / unet).write_text("[]"))
    refused("are incomplete", lambda at: (at / unet).write_text("{}"))
    refused("are incomplete", lambda at: changed_json(at / unet, block_out_channels=[]))
    refused("instead of", lambda at: changed_json(at / unet, cross_attention_dim=96))
    refused("lacks", lambda at: changed_json(at / unet, layers_per_block=2))
    refused("holds no weights", lambda at: shutil.rmtree(at / "vae") or write_config(ours[0], at, "vae"))
    refused("web page", lambda at: (at / "vae" / "diffusion_pytorch_model.safetensors").write_text("<html>404</html>"))


def write_config(source, target, part):
    (target / part).mkdir()
    shutil.copy(source / part / "config.json", target / part)


def test_a_folder_replaces_one_of_its_own_kind_only(tmp_path, ours):
    clip, vae, unet, checkpoint = ours[1]
    target = tmp_path / "folder"
    shutil.copytree(ours[0], target)
    (target / "unet" / "config.json").write_text("broken")
    save_checkpoint(target, clip, vae, unet, checkpoint.config)
    same_weights(target, ours[1])
    (target / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"other things in it \(notes.txt\)"):
        save_checkpoint(target, clip, vae, unet, checkpoint.config)
    assert (target / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("missing", PREFIXES)
def test_parts_that_do_not_fit_their_sizes_are_not_written(tmp_path, ours, missing):
    clip, vae, unet, checkpoint = ours[1]
    wrong = checkpoint.config | {missing: {}}
    with pytest.raises(UserError, match=r"lacks|instead of"):
        save_checkpoint(tmp_path / "folder", clip, vae, unet, wrong)
    assert not (tmp_path / "folder").exists()


# As other programs write them


def copied(ours, tmp_path, change):
    folder = tmp_path / "folder"
    shutil.copytree(ours[0], folder)
    change(folder)
    return folder


def rename(variant):
    def change(folder):
        for file in list(folder.glob("*/*.safetensors")):
            file.rename(file.with_suffix(f".{variant}.safetensors"))

    return change


def nest_the_text_config(folder):
    path = folder / "text_encoder" / "config.json"
    config = json.loads(path.read_text())
    usual = transformers.CLIPTextConfig()
    config = {key: value for key, value in config.items() if getattr(usual, key, None) != value}
    path.write_text(json.dumps({"model_type": "clip", "text_config": config, "vision_config": {}}))


def add_boms(folder):
    for path in [folder / "model_index.json", *folder.glob("*/*config.json")]:
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())


def add_a_safety_checker(folder):
    (folder / "safety_checker").mkdir()
    (folder / "safety_checker" / "model.safetensors").write_bytes(b"not read")


def add_to_the_text_encoder(folder):
    file = folder / "text_encoder" / "model.safetensors"
    more = {"text_projection.weight": torch.zeros(2), "vision_model.post_layernorm.bias": torch.zeros(2)}
    safetensors.torch.save_file(safetensors.torch.load_file(file) | more, file)


UNET, SCHEDULER = "unet/config.json", "scheduler/scheduler_config.json"
FOLDERS_OF_OTHERS = {
    "bf16 alone": rename("bf16"),
    "fp16 alone": rename("fp16"),
    "non_ema alone": rename("non_ema"),
    "heads as a list": lambda at: changed_json(at / UNET, attention_head_dim=[8, 8]),
    "numbers as lists": lambda at: changed_json(at / UNET, layers_per_block=[1, 1], cross_attention_dim=[64, 64]),
    "sample_size as a list": lambda at: changed_json(at / UNET, sample_size=[32, 32]),
    "a nested text_config": nest_the_text_config,
    "byte order marks": add_boms,
    "a safety checker": add_a_safety_checker,
    "no scheduler": lambda at: shutil.rmtree(at / "scheduler"),
    "more than a text encoder": add_to_the_text_encoder,
}


@pytest.mark.parametrize("what", FOLDERS_OF_OTHERS)
def test_folders_as_other_programs_write_them(tmp_path, ours, what):
    folder = copied(ours, tmp_path, FOLDERS_OF_OTHERS[what])
    for path in (folder, folder / "model_index.json"):
        checkpoint = same_weights(path, ours[1])
        assert checkpoint.path == folder
        assert checkpoint.config["unet"] == fill_defaults(SIZES, "here")["unet"]
        assert checkpoint.config["clip"] == fill_defaults(SIZES, "here")["clip"]
    if what == "more than a text encoder":
        assert checkpoint.ignored == ["text_projection.weight", "text_encoder/vision_model.post_layernorm.bias"]
        assert len(checkpoint.warnings) == 1


def test_the_trained_weights_go_before_their_non_ema_variant(tmp_path, ours):
    def change(folder):
        for file in list(folder.glob("*/*.safetensors")):
            zeros = {key: torch.zeros_like(value) for key, value in safetensors.torch.load_file(file).items()}
            safetensors.torch.save_file(zeros, file.with_suffix(".non_ema.safetensors"))

    same_weights(copied(ours, tmp_path, change), ours[1])


REFUSED_FOLDERS = {
    "predicts sample": lambda at: changed_json(at / SCHEDULER, prediction_type="sample"),
    "different values for different levels": lambda at: changed_json(at / UNET, attention_head_dim=[5, 10]),
    "a text encoder with gelu": lambda at: changed_json(at / "text_encoder/config.json", hidden_act="gelu"),
    "but model.onnx": lambda at: (at / "vae/diffusion_pytorch_model.safetensors").rename(at / "vae/model.onnx"),
}


@pytest.mark.parametrize("said", REFUSED_FOLDERS)
def test_folders_whose_images_would_be_wrong(tmp_path, ours, said):
    with pytest.raises(UserError) as caught:
        load_models(copied(ours, tmp_path, REFUSED_FOLDERS[said]))
    assert said in str(caught.value)


def test_another_noise_schedule_is_said(tmp_path, ours):
    folder = copied(ours, tmp_path, lambda at: changed_json(at / SCHEDULER, beta_schedule="linear"))
    assert same_weights(folder, ours[1]).warnings == [
        "folder gives another noise schedule (beta_schedule linear) than v1's, which is used instead."
    ]
