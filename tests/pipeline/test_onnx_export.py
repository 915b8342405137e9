"""The export to ONNX: values against our networks, what it refuses, and the command."""

import json
import shutil

import numpy as np
import pytest
import torch

from sd.checkpoints.checkpoint import save_checkpoint
from sd.checkpoints.predictions import PREDICTIONS, with_prediction
from sd.pipeline import onnx_export
from sd.pipeline.onnx_export import MODEL, NETWORKS, export_onnx
from sd.pipeline.tracing.linear_decoder import LinearDecoder
from sd.utils.errors import UserError
from sd.vae import LATENT_SCALE

onnx = pytest.importorskip("onnx", reason="onnx is not installed: make test installs it")


def export(folder, pipe, **changes):
    return export_onnx(folder, pipe.clip, pipe.vae, pipe.unet, {**pipe.sizes, **changes}, "tiny.safetensors")


@pytest.fixture(scope="module")
def exported(tmp_path_factory, made_once):
    folder = tmp_path_factory.mktemp("onnx") / "tiny"
    export(folder, made_once[4])
    return folder


@torch.no_grad()
def test_the_files_compute_what_our_networks_compute(exported, made_once):
    from onnx.reference import ReferenceEvaluator

    pipe = made_once[4]
    ids = pipe.tokenizer(["", "a red apple"])
    x, t = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([701.5, 701.5])
    context = pipe.clip(ids)
    cases = {
        "text_encoder": ({"ids": ids}, context),
        "unet": ({"x": x, "t": t, "context": context}, pipe.unet(x, t, context)),
        "vae_decoder": ({"latent": x[:1]}, pipe.vae.decode(x[:1])),
    }
    assert cases.keys() == set(NETWORKS)
    for name, (inputs, expected) in cases.items():
        run = ReferenceEvaluator(str(exported / f"{name}.onnx")).run
        (found,) = run(None, {key: value.numpy() for key, value in inputs.items()})
        error = np.abs(found - expected.numpy()).max() / expected.abs().max().item()
        assert error < 1e-5, name  # two orders of summation in fp32; a wrong epsilon or scale gives over 1e-4


def test_model_json_says_what_a_sampler_needs(exported, made_once):
    about = json.loads((exported / MODEL).read_text())
    assert (about["name"], about["image_size"], about["latent"], about["length"]) == ("tiny", 64, [4, 8, 8], 77)
    assert about["latent_scale"] == LATENT_SCALE
    assert np.allclose(about["sigmas"][-1], 14.6146, rtol=1e-5)  # SD 1.x's largest, as published


@torch.no_grad()
def test_the_preview_decoder_resembles_the_vae(exported, made_once):
    preview = json.loads((exported / MODEL).read_text())["preview"]
    decoder = LinearDecoder(torch.tensor(preview["weights"]), preview["block"], float("inf"), 0.0)
    latent = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    found = decoder.run(latent)
    image = made_once[4].vae.decode(latent / LATENT_SCALE).clamp(-1, 1)
    image = torch.nn.functional.adaptive_avg_pool2d(image, found.shape[-2:])
    # Random networks are far from affine; a decoder of shuffled weights explains none of the variance.
    unexplained = (found - image).var() / image.var()
    shuffled = decoder.weights[torch.randperm(37, generator=torch.Generator().manual_seed(0))]
    wrong = LinearDecoder(shuffled, preview["block"], float("inf"), 0.0).run(latent)
    assert unexplained < 0.9 < (wrong - image).var() / image.var()


def test_weights_of_fp16_are_stored_as_fp16_and_others_are_not(tmp_path, pipe, exported):
    for network in (pipe.clip, pipe.vae, pipe.unet):
        network.half()
    export(tmp_path / "halves", pipe)
    for name in NETWORKS:
        halves, floats = ((folder / f"{name}.onnx").stat().st_size for folder in (tmp_path / "halves", exported))
        assert halves < 0.6 * floats, name
    model = onnx.load(str(tmp_path / "halves" / "text_encoder.onnx"))
    arrays = [onnx.numpy_helper.to_array(one) for one in model.graph.initializer]
    table = next(one for one in arrays if one.shape == (49408, 64))
    assert table.dtype == np.float16
    assert (table == pipe.clip.embeddings.token_embedding.weight.detach().numpy()).all()


@pytest.mark.parametrize("name", [name for name in PREDICTIONS if name != "eps"])
def test_another_prediction_is_refused(tmp_path, made_once, name):
    config = with_prediction(made_once[4].sizes, PREDICTIONS[name])
    with pytest.raises(UserError, match=f"predicts {name}; only models that predict the noise"):
        export(tmp_path / "x", made_once[4], **config)
    assert not list(tmp_path.iterdir())


def test_what_a_browser_cannot_run_is_refused(tmp_path, made_once, monkeypatch):
    with pytest.raises(UserError, match="is an inpainting model"):
        export(tmp_path / "x", made_once[9])
    monkeypatch.setattr(onnx_export, "MOST_BYTES", 1000)
    with pytest.raises(UserError, match="too large for a browser"):
        export(tmp_path / "x", made_once[4])
    monkeypatch.setattr(onnx_export.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install -r requirements-live\.txt"):
        export(tmp_path / "x", made_once[4])
    assert not list(tmp_path.iterdir())


def test_a_folder_with_other_things_is_left_alone(tmp_path, made_once):
    (tmp_path / "photo.jpg").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"other things in it \(photo\.jpg\)"):
        export(tmp_path, made_once[4])
    with pytest.raises(UserError, match="is a file"):
        export(tmp_path / "photo.jpg", made_once[4])
    assert (tmp_path / "photo.jpg").read_bytes() == b"mine"


def test_the_command_replaces_an_earlier_export(tmp_path, made_once, run, exported):
    pipe = made_once[4]
    shutil.copytree(exported, tmp_path / "out")
    save_checkpoint(tmp_path / "tiny.safetensors", pipe.clip, pipe.vae, pipe.unet, pipe.sizes)
    code, out, err = run("convert.py", tmp_path / "tiny.safetensors", tmp_path / "out", "--onnx")
    assert (code, err) == (0, "")
    assert "out, in place of what was there: ONNX for images of 64 x 64," in out
    assert {path.name for path in (tmp_path / "out").iterdir()} == {MODEL, *(f"{name}.onnx" for name in NETWORKS)}
    code, _, err = run("convert.py", tmp_path / "tiny.safetensors", tmp_path, "--onnx")
    assert code == 2
    assert "other things in it" in err
