"""The parameters that each method trains: set up, one step, removed, and nothing else has changed."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from sd.adapters.lora_loader import load_lora
from sd.adapters.textual_inversion import load_embedding
from sd.training.finetune.gradient_checkpointing import disable_gradient_checkpointing, enable_gradient_checkpointing
from sd.training.finetune.methods import METHODS, TARGETS, initial_vectors, matches_pattern
from sd.training.finetune.recipes import recipe_for
from sd.training.loop import TrainConfig, Trainer
from sd.training.loss import prediction_errors, snr_weights
from sd.utils.errors import UserError

LOOP = TrainConfig(steps=1, batch=2, lr=1e-2, warmup=0, ema=0, precision="fp32", by_example=True, weight_decay=0.0)
WORD = "zebrafish-7"


def bits(pipe):
    networks = {"unet": pipe.unet, "vae": pipe.vae, "clip": pipe.clip}
    return {f"{part}.{key}": t.clone() for part, network in networks.items() for key, t in network.state_dict().items()}


def inspect_image(pipe):
    return repr(pipe.unet), repr(pipe.clip), list(pipe.tokenizer.added)


def take_a_step(pipe, tuner, settings=LOOP):
    """One step on two random latents; returns what has moved, by name."""

    def loss(model, indices, generators):
        x0, noise = torch.randn(2, 2, 4, 8, 8, generator=generators[0]).unbind(0)
        context = tuner.contexts([f"a photo of {WORD}", "a dog"])
        return prediction_errors(pipe.unet, x0, noise, torch.tensor([100, 700]), context, snr_weights()).mean()

    before = {name: p.detach().clone() for name, p in tuner.module.named_parameters()}
    value, wrong = Trainer(tuner.module, loss, settings, 0, 1).step(0, torch.tensor([0, 1]))
    assert math.isfinite(value)
    assert not wrong
    return {name for name, p in tuner.module.named_parameters() if not torch.equal(p, before[name])}


def recipe(pipe, method, **given):
    return recipe_for(method, pipe, WORD, **given)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("method", "given"),
    [
        ("ti", {"init": "dog cat", "vectors": 3}),
        ("lora", {}),
        ("lora", {"targets": ("attention", "ff", "text"), "rank": 2}),
    ],
)
def test_in_one_step_out_leaves_the_base_as_it_was(pipe, method, given, dtype):
    for network in (pipe.unet, pipe.clip, pipe.vae):
        network.to(dtype)
    before, was = bits(pipe), inspect_image(pipe)
    tuner = METHODS[method](pipe, WORD, recipe(pipe, method, **given))
    moved = take_a_step(pipe, tuner)
    # LoRA starts with up = 0, so that in the first step only up has a gradient.
    expected = {name for name, _ in tuner.module.named_parameters() if not name.endswith("lora_down")}
    assert moved == expected
    assert all(p.dtype == torch.float32 for p in tuner.module.parameters())
    networks = (pipe.unet, pipe.clip, pipe.vae)
    trained = {p for network in networks for p in network.parameters() if p.requires_grad}
    assert trained == set(tuner.module.parameters())
    tuner.close()
    after = bits(pipe)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert inspect_image(pipe) == was


def test_dreambooth_trains_the_unet_alone_and_on_request_the_text_encoder(pipe):
    tuner = METHODS["dreambooth"](pipe, WORD, recipe(pipe, "dreambooth"))
    before = bits(pipe)
    take_a_step(pipe, tuner)
    moved = {key for key, tensor in bits(pipe).items() if not torch.equal(tensor, before[key])}
    assert {key.split(".")[0] for key in moved} == {"unet"}
    assert len(moved) > 0.9 * len(pipe.unet.state_dict())  # a bias before a norm of its own may stay
    tuner.close()
    assert not any(p.requires_grad for p in pipe.unet.parameters())

    tuner = METHODS["dreambooth"](pipe, WORD, recipe(pipe, "dreambooth", targets=("text",)))
    before = bits(pipe)
    take_a_step(pipe, tuner)
    moved = {key.split(".")[0] for key, tensor in bits(pipe).items() if not torch.equal(tensor, before[key])}
    assert moved == {"unet", "clip"}


def test_dreambooth_trains_a_half_precision_model_in_fp32(pipe):
    for network in (pipe.unet, pipe.clip, pipe.vae):
        network.bfloat16()
    METHODS["dreambooth"](pipe, WORD, recipe(pipe, "dreambooth"))
    assert pipe.dtype == torch.float32
    assert pipe.clip.final_layer_norm.weight.dtype == torch.float32


def test_targets_are_the_layers_of_their_names(pipe):
    def count(**given):
        tuner = METHODS["lora"](pipe, WORD, recipe(pipe, "lora", **given))
        found = {part: len(patches) for part, patches in tuner.module.items()}
        tuner.close()
        return found

    blocks = sum(path.endswith("attn2") for path, _ in pipe.unet.named_modules())
    layers = len(pipe.clip.encoder.layers)
    assert count(targets=("cross",)) == {"unet": 4 * blocks}
    assert count(targets=("attention",)) == {"unet": 8 * blocks}
    assert count(targets=("cross", "attention", "ff")) == {"unet": 10 * blocks}
    assert count(targets=("text",)) == {"clip": 4 * layers}


def test_targets_of_v1_5_are_as_many_as_other_trainers_have():
    """attn1 and attn2 of 16 blocks, 4 layers each: 128 as diffusers has; with both of ff 160 of kohya's 192 layers."""
    from sd.adapters.injection import patchable_layers
    from sd.checkpoints.config import build_networks, fill_defaults

    networks = build_networks(fill_defaults({}, "v1-5"), "v1-5")
    paths = list(patchable_layers(networks["unet"]))
    count = {name: sum(matches_pattern(pattern, path) for path in paths) for name, pattern in TARGETS.items()}
    assert count == {"cross": 64, "attention": 128, "ff": 32, "text": 0}
    assert sum(matches_pattern(TARGETS["text"], path) for path in patchable_layers(networks["clip"])) == 48


def test_alpha_is_the_rank_by_default_so_that_the_scale_is_one(pipe):
    tuner = METHODS["lora"](pipe, WORD, recipe(pipe, "lora", rank=6))
    assert {patch.scale for _, _, patch in tuner.patches()} == {1.0}
    assert {patch.rank for _, _, patch in tuner.patches()} == {6}
    tuner.close()


def test_change_is_the_ratio_of_the_norms(pipe):
    tuner = METHODS["lora"](pipe, WORD, recipe(pipe, "lora", targets=("attention",)))
    assert tuner.measures() == {"change": 0.0}
    take_a_step(pipe, tuner)
    layers = [(pipe.unet.get_submodule(path), patch) for _, path, patch in tuner.patches()]
    change = torch.cat([patch.delta(layer.weight).flatten() for layer, patch in layers]).norm()
    weight = torch.cat([layer.weight.flatten() for layer, _ in layers]).norm()
    assert tuner.measures()["change"] == pytest.approx((change / weight).item(), rel=1e-5)  # fp32 sums


def test_initial_vectors_spread_words_or_average_them(pipe):
    table = pipe.clip.embeddings.token_embedding.weight.detach()
    dog, red, cat = (table[pipe.tokenizer.encode(word)[0]] for word in ("dog", "red", "cat"))

    def start(words, count):
        return initial_vectors(pipe.tokenizer, pipe.clip, words, count)

    assert torch.equal(start("dog", 1), dog[None])
    assert torch.equal(start("dog", 2), torch.stack([dog, dog]))
    assert torch.equal(start("red cat", 2), torch.stack([red, cat]))
    assert torch.equal(start("red cat", 3), torch.stack([red, red, cat]))
    assert torch.allclose(start("red cat", 1), (red + cat)[None] / 2)
    assert torch.allclose(start("red cat dog", 2), torch.stack([red, (cat + dog) / 2]))


def test_bad_words_are_one_sentence_and_change_nothing(pipe):
    before, was = bits(pipe), inspect_image(pipe)
    with pytest.raises(UserError, match="'dog' is already in the vocabulary: choose a new word, such as my-dog"):
        METHODS["ti"](pipe, WORD, recipe(pipe, "ti", word="dog"))
    with pytest.raises(UserError, match="contain no token"):
        METHODS["ti"](pipe, WORD, recipe(pipe, "ti", init="   "))
    assert inspect_image(pipe) == was
    assert all(torch.equal(before[key], tensor) for key, tensor in bits(pipe).items())


def test_vectors_are_described_by_length_cosine_and_neighbours(pipe):
    tuner = METHODS["ti"](pipe, WORD, recipe(pipe, "ti", init="dog cat", vectors=2))
    with torch.no_grad():
        tuner.rows[0] *= 2
        tuner.rows[1] = pipe.clip.embeddings.token_embedding.weight[pipe.tokenizer.encode("apple")[0]]
    found = tuner.measures()
    assert found["norms"][0] == pytest.approx(2 * tuner.start[0].norm().item(), abs=1e-4)  # written with 4 digits
    assert found["cosines"][0] == pytest.approx(1.0, abs=1e-4)
    assert abs(found["cosines"][1]) < 0.6
    assert [words.split(", ")[0] for words in found["nearest"]] == ["dog", "apple"]
    tuner.close()


def test_a_saved_file_generates_the_same_as_the_trained_model(pipe, tmp_path):
    prompt = dict(prompt=f"a {WORD}", steps=2, seed=1)
    for method, load in (
        ("ti", lambda path: load_embedding(pipe.tokenizer, pipe.clip, path)),
        ("lora", lambda path: load_lora(pipe.unet, pipe.clip, path)),
    ):
        tuner = METHODS[method](pipe, WORD, recipe(pipe, method))
        take_a_step(pipe, tuner, replace(LOOP, lr=0.3))
        expected = pipe(**prompt).latents
        tuner.save(tmp_path / f"{method}.safetensors", 7, {"ss_seed": "0"})
        tuner.close()
        without = pipe(**prompt).latents
        load(tmp_path / f"{method}.safetensors")
        assert torch.equal(pipe(**prompt).latents, expected), method
        assert not torch.equal(without, expected), method
        pipe.unload()


def test_dreambooths_checkpoint_is_the_trained_networks_in_fp16(pipe, tmp_path):
    from sd.pipeline.stable_diffusion import StableDiffusion

    tuner = METHODS["dreambooth"](pipe, WORD, recipe(pipe, "dreambooth"))
    take_a_step(pipe, tuner)
    tuner.save(tmp_path / "tuned.safetensors", 7, {"ss_seed": "0"})
    loaded = StableDiffusion.from_pretrained(tmp_path / "tuned.safetensors", dtype=torch.float32)
    for key, tensor in bits(loaded).items():
        assert torch.equal(tensor, bits(pipe)[key].half().float()), key


def test_recomputed_blocks_give_the_same_gradients_and_go_out_again(pipe):
    before = repr(pipe.unet)
    x, t, context = torch.randn(1, 4, 8, 8), torch.tensor([5]), torch.randn(1, 77, 64)

    def gradients(unet):
        unet.zero_grad()
        unet(x, t, context).square().sum().backward()
        return [p.grad.clone() for p in unet.parameters()]

    plain = gradients(copy.deepcopy(pipe.unet))
    enable_gradient_checkpointing(pipe.unet)
    recomputed = gradients(pipe.unet)
    disable_gradient_checkpointing(pipe.unet)
    assert all(torch.equal(a, b) for a, b in zip(plain, recomputed))
    assert repr(pipe.unet) == before


def test_recomputed_blocks_keep_less(pipe):
    """Counted in the bytes of what autograd saves between the two passes."""

    def kept(unet):
        sizes = {}
        pack = lambda tensor: sizes.setdefault(tensor.data_ptr(), tensor.nbytes) and tensor  # noqa: E731
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            unet(torch.randn(1, 4, 16, 16), torch.tensor([5]), torch.randn(1, 77, 64))
        weights = {p.data_ptr() for p in unet.parameters()}
        return sum(size for place, size in sizes.items() if place not in weights)

    plain = kept(pipe.unet)
    enable_gradient_checkpointing(pipe.unet)
    assert kept(pipe.unet) < 0.5 * plain


def test_frozen_layers_keep_nothing_for_their_own_gradients(pipe):
    tuner = METHODS["lora"](pipe, WORD, recipe(pipe, "lora"))
    take_a_step(pipe, tuner)
    assert all(p.grad is None for p in [*pipe.unet.parameters()] if p not in set(tuner.module.parameters()))
    assert not any(isinstance(module, nn.Dropout) for module in pipe.unet.modules())
