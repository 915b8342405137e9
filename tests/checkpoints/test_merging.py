"""Merged checkpoints against the sums, tensor by tensor."""

import json

import pytest
import torch
from make_full_checkpoint import SMALL, random_weights
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sd.checkpoints.checkpoint import load_models
from sd.checkpoints.discovery import content_of
from sd.checkpoints.merging import MergeWeights, block_of, merge_checkpoints, parse_blocks
from sd.utils.errors import UserError

U, V, C = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer.text_model."
# One rounding of fp32 numbers around 1.
CLOSE = 1e-6


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("merging")
    states = [random_weights(SMALL, seed=seed) for seed in range(3)]
    paths = [folder / f"{i}.safetensors" for i in range(3)]
    for path, state in zip(paths, states):
        save_file(state, path)
    return paths, states


def merged(models, count, target, weights, dtype=None):
    target.unlink(missing_ok=True)
    assert merge_checkpoints(models[0][:count], target, weights, dtype) == []
    return load_file(target)


def test_a_sum(models, tmp_path):
    a, b, _ = models[1]
    made = merged(models, 2, tmp_path / "x.safetensors", MergeWeights(0.3))
    assert made.keys() == a.keys() | {C + "embeddings.position_ids"}
    for key in a:
        torch.testing.assert_close(made[key], 0.7 * a[key] + 0.3 * b[key], rtol=0, atol=CLOSE)
    load_models(tmp_path / "x.safetensors")
    assert content_of(tmp_path / "x.safetensors").kind == "checkpoint"


def test_the_result_never_replaces_a_model(models):
    paths, _ = models
    with pytest.raises(UserError, match="is one of the models to merge"):
        merge_checkpoints(paths[:2], paths[1], MergeWeights(0.5))


def test_models_that_predict_differently_are_refused(models, tmp_path):
    paths, states = models
    save_file(states[1] | {"v_pred": torch.zeros(0)}, tmp_path / "v.safetensors")
    with pytest.raises(UserError, match=r"predicts v and .* eps"):
        merge_checkpoints([paths[0], tmp_path / "v.safetensors"], tmp_path / "x.safetensors", MergeWeights(0.5))


def test_numbers_that_overflow_are_refused(models, tmp_path):
    with pytest.raises(UserError, match=r"is not finite.*--dtype fp32"):
        merge_checkpoints(models[0][:2], tmp_path / "x.safetensors", MergeWeights(1e9), torch.float16)
    assert not (tmp_path / "x.safetensors").exists()


@pytest.mark.parametrize("place", [0, 1])
def test_a_model_with_nan_is_named(models, tmp_path, place):
    broken = dict(models[1][1])
    broken[U + "out.2.weight"] = torch.full_like(broken[U + "out.2.weight"], float("nan"))
    paths = [models[0][0], models[0][2]]
    paths[place] = tmp_path / "broken.safetensors"
    save_file(broken, paths[place])
    with pytest.raises(UserError, match=r"broken\.safetensors holds .*out\.2\.weight with numbers that are not finite"):
        merge_checkpoints(paths, tmp_path / "x.safetensors", MergeWeights(0.5))


def test_a_model_without_a_vae_is_merged_with_the_one_beside_it(models, tmp_path):
    a, b, _ = models[1]
    bare = tmp_path / "bare.safetensors"
    save_file({key: tensor for key, tensor in b.items() if not key.startswith(V)}, bare)
    with pytest.raises(UserError, match=r"bare\.safetensors has no VAE of its own: put one beside it as bare\.vae"):
        merge_checkpoints([models[0][0], bare], tmp_path / "x.safetensors", MergeWeights(0.3))
    vae = {key.removeprefix(V): tensor.clone() for key, tensor in b.items() if key.startswith(V)}
    save_file(vae, tmp_path / "bare.vae.safetensors")
    merge_checkpoints([models[0][0], bare], tmp_path / "x.safetensors", MergeWeights(0.3))
    made = load_file(tmp_path / "x.safetensors")
    for key in a:
        torch.testing.assert_close(made[key], 0.7 * a[key] + 0.3 * b[key], rtol=0, atol=CLOSE)


def test_what_is_probably_not_meant_is_noted(models, tmp_path):
    a, b, _ = models[0]
    notes = merge_checkpoints([a, a], tmp_path / "x.safetensors", MergeWeights(2.0))
    assert ["same file as A" in notes[0], "2 is outside 0 to 1" in notes[1], len(notes)] == [True, True, 2]
    there, same = merge_checkpoints([a, b, b], tmp_path / "x.safetensors", MergeWeights(2.0))
    assert "x.safetensors was there, and is replaced" in there
    assert "same file as C" in same


def test_a_merge_is_described_as_a_formula():
    weights = MergeWeights(0.3, {"vae": 0.0}, {"IN01": 1.0})
    assert weights.describe(["a", "b"]) == "0.7 a + 0.3 b, the VAE at 0, IN01 at 1"
    assert MergeWeights(1.0).describe(["a", "b", "c"]) == "a + 1 (b - c)"


def test_a_difference(models, tmp_path):
    a, b, c = models[1]
    made = merged(models, 3, tmp_path / "x.safetensors", MergeWeights(0.8))
    for key in a:
        torch.testing.assert_close(made[key], a[key] + 0.8 * (b[key] - c[key]), rtol=0, atol=4 * CLOSE)


def test_weights_by_network_and_by_block(models, tmp_path):
    a, b, _ = models[1]
    weights = MergeWeights(0.5, {"vae": 0.0, "clip": 1.0}, {"IN01": 0.0, "OUT00": 1.0, "BASE": 0.25})
    made = merged(models, 2, tmp_path / "x.safetensors", weights)
    expected = {
        "input_blocks.1.": 0.0,
        "output_blocks.0.": 1.0,
        "time_embed.": 0.25,
        "out.": 0.25,
        "middle_block.": 0.5,
    }
    for key in a:
        weight = 0.0 if key.startswith(V) else 1.0 if key.startswith(C) else None
        if weight is None:
            weight = next((w for start, w in expected.items() if key.startswith(U + start)), 0.5)
        torch.testing.assert_close(made[key], (1 - weight) * a[key] + weight * b[key], rtol=0, atol=CLOSE)


def test_an_end_of_the_sum_is_that_model_bit_for_bit(models, tmp_path):
    for weight, state in ((0.0, models[1][0]), (1.0, models[1][1])):
        made = merged(models, 2, tmp_path / "x.safetensors", MergeWeights(weight))
        assert all(torch.equal(made[key], tensor) for key, tensor in state.items())


def test_the_dtype_is_the_firsts_or_the_one_asked_for(models, tmp_path):
    half = tmp_path / "half.safetensors"
    save_file({key: tensor.half() for key, tensor in models[1][0].items()}, half)
    merge_checkpoints([half, models[0][1]], tmp_path / "x.safetensors", MergeWeights(0.5))
    assert load_file(tmp_path / "x.safetensors")[U + "out.2.weight"].dtype == torch.float16
    made = merged(models, 2, tmp_path / "x.safetensors", MergeWeights(0.5), torch.bfloat16)
    assert made[U + "out.2.weight"].dtype == torch.bfloat16


def test_an_inpainting_model_keeps_its_further_inputs(models, tmp_path):
    first = U + "input_blocks.0.0.weight"
    nine = torch.cat([models[1][0][first], torch.full_like(models[1][0][first], 0.5)[:, :1].repeat(1, 5, 1, 1)], dim=1)
    save_file(models[1][0] | {first: nine}, tmp_path / "inpainting.safetensors")
    paths = [tmp_path / "inpainting.safetensors", models[0][1], models[0][2]]
    merge_checkpoints(paths, tmp_path / "x.safetensors", MergeWeights(1.0))
    made, (a, b, c) = load_file(tmp_path / "x.safetensors"), models[1]
    torch.testing.assert_close(made[first][:, :4], a[first] + b[first] - c[first], rtol=0, atol=4 * CLOSE)
    assert torch.equal(made[first][:, 4:], nine[:, 4:])
    with pytest.raises(UserError, match="an inpainting model first"):
        merge_checkpoints(paths[1::-1], tmp_path / "x.safetensors", MergeWeights(1.0))


def test_the_recipe_is_in_the_file_and_the_sources_stay(models, tmp_path):
    before = models[0][0].read_bytes()
    merged(models, 3, tmp_path / "x.safetensors", MergeWeights(0.5))
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        recipe = json.loads(file.metadata()["sd_merge_recipe"])
    assert recipe["models"] == ["0.safetensors", "1.safetensors", "2.safetensors"]
    assert (recipe["type"], recipe["weight"]) == ("difference", 0.5)
    assert models[0][0].read_bytes() == before


def test_what_cannot_be_merged_is_refused(models, tmp_path):
    wide = SMALL | {"clip": SMALL["clip"] | {"vocab_size": 600}}
    save_file(random_weights(wide), tmp_path / "wide.safetensors")
    target = tmp_path / "x.safetensors"
    for paths, weights, said in (
        (
            [models[0][0], tmp_path / "wide.safetensors"],
            MergeWeights(0.5),
            "the text encoder differs in embeddings.token",
        ),
        (models[0][:2], MergeWeights(0.5, by_block={"IN77": 1.0}), "IN77 is no block of this model"),
        (models[0][:2], MergeWeights(float("nan")), "is no number"),
    ):
        with pytest.raises(UserError, match=said):
            merge_checkpoints(paths, target, weights)
    with pytest.raises(UserError, match=r"is not named \.safetensors"):
        merge_checkpoints(models[0][:2], tmp_path / "x.ckpt", MergeWeights(0.5))
    assert not target.exists()


def test_blocks_are_read():
    assert parse_blocks("in00=0.2, M00=1,") == {"IN00": 0.2, "M00": 1.0}
    assert [block_of(key) for key in ("input_blocks.11.0.x", "middle_block.1.x", "out.2.bias")] == [
        "IN11",
        "M00",
        "BASE",
    ]
    with pytest.raises(UserError, match="is no weight of a block"):
        parse_blocks("IN00=much")
    with pytest.raises(UserError, match="the block IN00 has two weights"):
        parse_blocks("IN00=0.1, in00=0.9")


def test_the_script_merges(run, models, tmp_path):
    target = tmp_path / "x.safetensors"
    code, out, err = run("merge.py", models[0][0], models[0][1], target, "--weight", 0.3, "--vae-weight", 0)
    assert code == 0, err
    assert str(target) in out
    assert torch.equal(load_file(target)[V + "quant_conv.bias"], models[1][0][V + "quant_conv.bias"])
