"""A VAE by itself: every layout, in every way in, and what is refused."""

import json

import pytest
import safetensors.torch
import torch
from make_full_checkpoint import PREFIXES, SMALL, random_weights
from PIL import Image

from sd.checkpoints import diffusers_keys
from sd.checkpoints.checkpoint import apply_separate_vae, load_models
from sd.checkpoints.config import fill_defaults
from sd.checkpoints.diffusers_format import vae_config
from sd.checkpoints.discovery import BUNDLED
from sd.checkpoints.vae_files import read_vae
from sd.pipeline.infotext import parse_infotext
from sd.pipeline.stable_diffusion import StableDiffusion
from sd.utils.errors import UserError

U, V, C = PREFIXES["unet"], PREFIXES["vae"], PREFIXES["clip"]
OWN, OTHER = random_weights(SMALL), random_weights(SMALL, seed=1)
VAE = {key.removeprefix(V): tensor for key, tensor in OTHER.items() if key.startswith(V)}  # the one to take


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "dreamy.safetensors"
    safetensors.torch.save_file(OWN, path)
    return path


def folder(path, **changes):
    (path / "vae").mkdir(parents=True)
    (path / "vae" / "config.json").write_text(json.dumps(vae_config(fill_defaults(SMALL, "here")) | changes))
    theirs = diffusers_keys.vae_to_diffusers(VAE)
    safetensors.torch.save_file(theirs, path / "vae" / "diffusion_pytorch_model.safetensors")


def layouts(path):
    """Files and folders below `path`, each with the VAE in a layout of its own."""
    path.mkdir()
    prefixed, theirs = {V + key: tensor for key, tensor in VAE.items()}, diffusers_keys.vae_to_diffusers(VAE)
    loss = {"loss.logvar": torch.zeros(()), "loss.discriminator.main.0.weight": torch.zeros(2)}
    average = {"model_ema.decay": torch.zeros(()), "model_ema.encoderconv_inweight": torch.zeros(2)}
    safetensors.torch.save_file(prefixed, path / "prefixed.safetensors")
    safetensors.torch.save_file(VAE | loss, path / "bare.vae.safetensors")
    torch.save({"epoch": 3, "state_dict": VAE | loss | average}, path / "trained.ckpt")
    torch.save({"state_dict": {"state_dict": prefixed}}, path / "nested.pt")
    torch.save(VAE, path / "old.vae.pt", _use_new_zipfile_serialization=False)
    safetensors.torch.save_file(theirs, path / "theirs.safetensors")
    torch.save(theirs, path / "theirs.bin")
    before = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for now, then in before.items():
        theirs = {key.replace(f".{now}.", f".{then}."): tensor for key, tensor in theirs.items()}
    safetensors.torch.save_file(theirs, path / "theirs-of-2022.safetensors")
    safetensors.torch.save_file(OTHER, path / "whole.safetensors")
    folder(path / "model")
    return [*(one for one in sorted(path.iterdir())), path / "model" / "vae"]


def test_every_layout_takes_the_place_of_the_checkpoints_own(tmp_path, checkpoint):
    found = layouts(tmp_path / "vaes")
    assert len(found) == 11
    for path in found:
        clip, vae, unet, read = load_models(checkpoint, vae=path)
        assert read.vae_path == path
        assert read.config == fill_defaults(SMALL, "here")
        state = vae.state_dict()
        assert state.keys() == VAE.keys()
        assert all(torch.equal(state[key], VAE[key]) for key in VAE), path
        assert torch.equal(unet.state_dict()["out.2.bias"], OWN[U + "out.2.bias"])
        assert torch.equal(clip.state_dict()["final_layer_norm.bias"], OWN[C + "final_layer_norm.bias"])


def test_precision_and_gradients_follow(tmp_path, checkpoint):
    safetensors.torch.save_file({key: tensor.half() for key, tensor in VAE.items()}, tmp_path / "vae.safetensors")
    vae = load_models(checkpoint, torch.bfloat16, vae=tmp_path / "vae.safetensors")[1]
    assert {tensor.dtype for tensor in vae.state_dict().values()} == {torch.bfloat16}
    assert not vae.training
    assert vae.quant_conv.weight.requires_grad


@pytest.mark.parametrize("suffix", ["safetensors", "ckpt"])
def test_a_checkpoint_without_a_vae_says_how_to_give_one(tmp_path, suffix):
    path, state = tmp_path / f"bare.{suffix}", {key: value for key, value in OWN.items() if not key.startswith(V)}
    if suffix == "ckpt":
        torch.save(state, path)
    else:
        safetensors.torch.save_file(state, path)
    with pytest.raises(UserError, match=r"has no VAE of its own: choose one with --vae FILE.* bare\.vae\.safetensors"):
        load_models(path)
    safetensors.torch.save_file(VAE, tmp_path / "bare.vae.safetensors")
    pipe = StableDiffusion.from_pretrained(path)
    assert pipe.vae_path == tmp_path / "bare.vae.safetensors"
    assert torch.equal(pipe.vae.quant_conv.weight, VAE["quant_conv.weight"])


def test_a_folder_without_a_vae(tmp_path, checkpoint):
    pipe = StableDiffusion.from_pretrained(checkpoint)
    pipe.save_pretrained(tmp_path / "folder")
    for path in (tmp_path / "folder" / "vae").iterdir():
        path.unlink()
    (tmp_path / "folder" / "vae").rmdir()
    with pytest.raises(UserError, match="has no VAE of its own"):
        StableDiffusion.from_pretrained(tmp_path / "folder")
    safetensors.torch.save_file(VAE, tmp_path / "other.safetensors")
    pipe = StableDiffusion.from_pretrained(tmp_path / "folder", vae=tmp_path / "other.safetensors")
    assert torch.equal(pipe.vae.quant_conv.weight, VAE["quant_conv.weight"])


@pytest.mark.parametrize("name", ["dreamy.vae.safetensors", "dreamy.vae.pt", "dreamy.vae.ckpt"])
def test_one_beside_a_checkpoint_of_its_name_is_taken_and_said(tmp_path, checkpoint, capsys, name):
    assert torch.equal(StableDiffusion.from_pretrained(checkpoint).vae.quant_conv.weight, OWN[V + "quant_conv.weight"])
    assert capsys.readouterr().err == ""
    if name.endswith("safetensors"):
        safetensors.torch.save_file(VAE, tmp_path / name)
    else:
        torch.save(VAE, tmp_path / name)
    pipe = StableDiffusion.from_pretrained(checkpoint)
    assert torch.equal(pipe.vae.quant_conv.weight, VAE["quant_conv.weight"])
    said = f"the VAE is {tmp_path / name}, which lies beside the checkpoint."
    assert (pipe.notes, capsys.readouterr().err) == ([said], f"note: {said}\n")
    own = StableDiffusion.from_pretrained(checkpoint, vae="None")
    assert own.vae_path is None
    assert torch.equal(own.vae.quant_conv.weight, OWN[V + "quant_conv.weight"])


def sized(**changes):
    sizes = SMALL | {"vae": SMALL["vae"] | changes}
    return {key.removeprefix(V): tensor for key, tensor in random_weights(sizes).items() if key.startswith(V)}


REFUSED = {
    "the VAE of Flux or Stable Diffusion 3, whose latents have 16 channels": sized(z_channels=16),
    "the VAE of another model, whose latents have 8 channels": sized(z_channels=8),
    "channels 64 instead of 32": sized(channels=64),
    "channel_mult [1, 2, 2] instead of [1, 2]": sized(channel_mult=[1, 2, 2]),
    "not a whole VAE of Stable Diffusion 1.x: it lacks post_quant_conv.weight": {
        key: tensor for key, tensor in VAE.items() if "quant_conv" not in key
    },
    "the VAE lacks quant_conv.bias": {key: tensor for key, tensor in VAE.items() if key != "quant_conv.bias"},
    "the VAE has decoder.extra": VAE | {"decoder.extra": torch.zeros(1)},
    "a VQ autoencoder": VAE | {"quantize.embedding.weight": torch.zeros(2, 4)},
    "a VAE for video": VAE | {"decoder.conv_in.weight": torch.zeros(1, 4, 3, 3, 3)},
    "is TAESD": {"1.weight": torch.zeros(1), "3.conv.0.weight": torch.zeros(1)},
    "is a LoRA": {"lora_unet_x.lora_down.weight": torch.zeros(4, 4)},
    "is a file without a VAE": {"mystery.weight": torch.zeros(4, 4)},
}


@pytest.mark.parametrize("said", REFUSED)
def test_a_wrong_vae_is_refused_by_name(tmp_path, checkpoint, said):
    path = tmp_path / "vae.safetensors"
    safetensors.torch.save_file(REFUSED[said], path)
    with pytest.raises(UserError) as caught:
        load_models(checkpoint, vae=path)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)
    assert "give a VAE of Stable Diffusion 1.x" in str(caught.value) or "lacks" in said


def test_xls_vae_is_known_where_its_folder_says_so(tmp_path):
    folder(tmp_path / "xl", scaling_factor=0.13025)
    with pytest.raises(UserError, match="the VAE of Stable Diffusion XL"):
        read_vae(tmp_path / "xl")


def test_a_model_of_v1s_sizes_without_a_vae_takes_v1s_vae_only(tmp_path):
    """The U-Net and the text encoder are v1-5's, in memory that is never filled."""
    sizes = fill_defaults({}, "here")
    safetensors.torch.save_file(VAE, tmp_path / "vae.safetensors")
    with pytest.raises(UserError, match="does not fit"):
        apply_separate_vae(tmp_path / "v1", {"vae": {}}, sizes, read_vae(tmp_path / "vae.safetensors"))


# Every way in


def test_names_work_in_python_and_its_hash_is_in_the_image(tmp_path, monkeypatch):
    weights = tmp_path / "weights"
    weights.joinpath("vae").mkdir(parents=True)
    bundled = StableDiffusion.from_pretrained(dtype=torch.float32)
    other = {key: tensor * 0.9 for key, tensor in bundled.vae.state_dict().items()}
    safetensors.torch.save_file(other, weights / "vae" / "Softer.safetensors")
    monkeypatch.setattr("sd.checkpoints.discovery.Models.__init__.__defaults__", (weights, tmp_path, tmp_path, None))
    pipe = StableDiffusion.from_pretrained("emoji", vae="softer")
    images = pipe("a red apple", steps=2, seed=3)
    plain = bundled("a red apple", steps=2, seed=3)
    assert torch.equal(images.latents, plain.latents), "the VAE comes after the latent"
    assert images.images[0].tobytes() != plain.images[0].tobytes()
    found = parse_infotext(images.infotexts[0])
    assert found["VAE"] == "Softer.safetensors"
    assert len(found["VAE hash"]) == 10
    assert "VAE" not in parse_infotext(plain.infotexts[0])
    places = [images.infotexts[0].index(label) for label in ("Model hash", "Model: ", "VAE hash", "VAE: ", "RNG")]
    assert places == sorted(places), "as the webui orders them"


def test_the_scripts_take_a_vae_and_convert_puts_it_in(run, tmp_path):
    bundled = StableDiffusion.from_pretrained(dtype=torch.float32)
    other = {key: tensor * 0.9 for key, tensor in bundled.vae.state_dict().items()}
    safetensors.torch.save_file(other, "softer.vae.safetensors")
    flags = ["a red apple", "--steps", 1, "--seed", 3, "--outdir"]
    assert run("txt2img.py", *flags, "given", "--ckpt", BUNDLED, "--vae", "softer.vae.safetensors")[0] == 0
    code, out, _ = run("convert.py", BUNDLED, "baked.safetensors", "--vae", "softer.vae.safetensors")
    assert code == 0
    assert "VAE      softer.vae.safetensors" in out
    code, out, _ = run("txt2img.py", *flags, "baked", "--ckpt", "baked.safetensors")
    assert code == 0
    assert out.startswith("checkpoint: baked.safetensors\n")
    given, baked = (Image.open(tmp_path / name / "00000.png").tobytes() for name in ("given", "baked"))
    assert given == baked
    code, _, err = run("txt2img.py", *flags, "bad", "--ckpt", BUNDLED, "--vae", "nothing")
    assert (code, err) == (2, "error: there is no VAE named nothing: put it into weights/vae/, which holds none yet.\n")
