"""What a checkpoint predicts: read from every mark, chosen by the user, and marked again in every format."""

import json

import pytest
import safetensors.torch
import torch
from diffusers import DDIMScheduler, PNDMScheduler
from make_full_checkpoint import SMALL, random_weights

from sd.checkpoints.checkpoint import load_models, read_checkpoint, save_checkpoint
from sd.checkpoints.config import fill_defaults
from sd.checkpoints.predictions import EPS, PREDICTIONS, Prediction, choose_prediction, prediction_of
from sd.utils.errors import UserError

V, ZERO, BOTH = Prediction(v=True), Prediction(zero_snr=True), Prediction(True, True)
EMPTY = torch.zeros(0)
MARKS = [
    ({"v_pred": EMPTY}, V),
    ({"v_pred": EMPTY, "ztsnr": EMPTY}, BOTH),
    ({"ztsnr": torch.zeros(1)}, ZERO),
    ({"alphas_cumprod": torch.linspace(0.9991, 0, 1000)}, ZERO),
    ({"alphas_cumprod": torch.linspace(0.9991, 0.0047, 1000)}, EPS),
    ({}, EPS),
]


@pytest.fixture(scope="module")
def weights():
    return random_weights(SMALL)


@pytest.fixture(scope="module")
def networks(weights, tmp_path_factory):
    path = tmp_path_factory.mktemp("plain") / "model.safetensors"
    safetensors.torch.save_file(weights, path)
    return load_models(path)[:3]


def read(path):
    found = read_checkpoint(path)
    assert found.warnings == []
    return prediction_of(found.config)


@pytest.mark.parametrize(("extra", "expected"), MARKS)
def test_entries_of_a_file_mark_it(tmp_path, weights, extra, expected):
    safetensors.torch.save_file(weights | extra, tmp_path / "model.safetensors")
    torch.save({"state_dict": weights | extra}, tmp_path / "model.ckpt")
    assert read(tmp_path / "model.safetensors") == read(tmp_path / "model.ckpt") == expected


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("modelspec.prediction_type", "v", V),
        ("modelspec.prediction_type", "epsilon", EPS),
        ("ss_v_parameterization", "True", V),
        ("ss_v_parameterization", "False", EPS),
        ("ss_zero_terminal_snr", "True", ZERO),
    ],
)
def test_metadata_marks_a_file(tmp_path, weights, key, value, expected):
    safetensors.torch.save_file(weights, tmp_path / "model.safetensors", {key: value})
    assert read(tmp_path / "model.safetensors") == expected


def test_the_webuis_yaml_beside_a_file_marks_it(tmp_path, weights):
    safetensors.torch.save_file(weights, tmp_path / "model.safetensors")
    yaml = tmp_path / "model.yaml"
    yaml.write_text('model:\n  params:\n    parameterization: "v"\n    linear_start: 0.00085\n')
    assert read(tmp_path / "model.safetensors") == V
    yaml.write_text("model:\n  params:\n    parameterization: eps\n    # parameterization: v\n")
    assert read(tmp_path / "model.safetensors") == EPS


@pytest.mark.parametrize("extra", [{"edm_mean": EMPTY}, {"edm_vpred.sigma_max": EMPTY}, {"sigma_max": EMPTY}])
def test_another_denoiser_is_refused(tmp_path, weights, extra):
    safetensors.torch.save_file(weights | extra, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=f"EDM family, as its {next(iter(extra))} shows"):
        read_checkpoint(tmp_path / "model.safetensors")


@pytest.mark.parametrize("kind", ["model.safetensors", "model.ckpt", "folder"])
@pytest.mark.parametrize("prediction", PREDICTIONS.values(), ids=lambda one: one.name)
def test_every_format_is_marked_and_read_again(tmp_path, networks, kind, prediction):
    sizes = fill_defaults(SMALL | {"prediction": prediction.name}, "here")
    save_checkpoint(tmp_path / kind, *networks, sizes, {"modelspec.prediction_type": "v", "ss_output_name": "x"})
    found = read_checkpoint(tmp_path / kind)
    assert prediction_of(found.config) == prediction
    assert found.config == sizes
    if kind == "model.safetensors":
        assert found.metadata["modelspec.prediction_type"] == ("v" if prediction.v else "epsilon")
        assert found.metadata["ss_output_name"] == "x"


@pytest.mark.parametrize("prediction", [V, BOTH])
def test_diffusers_reads_what_a_folder_predicts(tmp_path, networks, prediction):
    save_checkpoint(tmp_path / "folder", *networks, fill_defaults(SMALL | {"prediction": prediction.name}, "here"))
    name = json.loads((tmp_path / "folder" / "model_index.json").read_text())["scheduler"][1]
    kind = {"DDIMScheduler": DDIMScheduler, "PNDMScheduler": PNDMScheduler}[name]
    scheduler = kind.from_pretrained(tmp_path / "folder" / "scheduler")
    assert scheduler.config.prediction_type == "v_prediction"
    scheduler.set_timesteps(10)
    assert (scheduler.alphas_cumprod[-1].item() == 0) == prediction.zero_snr
    assert (scheduler.timesteps[0].item() == 999) == prediction.zero_snr


def test_a_plain_checkpoint_is_written_as_before(tmp_path, networks):
    sizes = fill_defaults(SMALL, "here")
    assert "prediction" not in sizes
    save_checkpoint(tmp_path / "model.safetensors", *networks, sizes)
    with safetensors.safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert not {"v_pred", "ztsnr"} & set(file.keys())
        assert set(file.metadata()) == {"format", "sd_sizes"}


def test_a_choice_goes_before_the_marks(tmp_path, weights):
    safetensors.torch.save_file(weights | {"v_pred": EMPTY, "ztsnr": EMPTY}, tmp_path / "model.safetensors")
    *_, found = load_models(tmp_path / "model.safetensors", prediction="eps")
    assert prediction_of(found.config) == ZERO
    assert found.warnings == [
        "model.safetensors is marked as a model of v-zero-snr; eps-zero-snr is used, as requested."
    ]
    assert choose_prediction(EPS, "v") == V
    assert choose_prediction(EPS, "v-zero-snr") == BOTH
    assert choose_prediction(BOTH, None) == BOTH
    with pytest.raises(UserError, match="unknown prediction 'x0'; choose from eps, v"):
        choose_prediction(EPS, "x0")


def test_an_unknown_prediction_in_our_own_metadata_is_refused():
    with pytest.raises(UserError, match="unknown prediction"):
        fill_defaults({"prediction": "x0"}, "model")
