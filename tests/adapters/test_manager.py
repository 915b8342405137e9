"""LoRAs and embeddings named in prompts: what is loaded for them, what is said, and that no trace stays."""

import copy

import pytest
import torch
from make_adapters import SMALL, networks_of
from safetensors.torch import save_file

from sd.adapters.adapter_calls import AdapterCalls
from sd.adapters.manager import Adapters
from sd.checkpoints.discovery import Models
from sd.prompts.prompt_adapters import load_prompt_adapters
from sd.prompts.weighting import CHUNK, split_chunks
from sd.tokenizer import Tokenizer
from sd.utils.errors import UserError

LAYER = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
ORIGINALS = networks_of(SMALL | {"clip": dict(width=64, layers=1, heads=4, vocab_size=49408)})


@pytest.fixture
def adapters(tmp_path):
    unet, clip = copy.deepcopy(ORIGINALS)
    folders = [tmp_path / name for name in ("weights", "loras", "embeddings")]
    for folder in folders:
        folder.mkdir()
    return Adapters(Tokenizer(), clip, unet, Models(*folders))


def rows(count=1, width=64):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(count))


def lora(adapters, name="paper", scale=1.0, more=None, metadata=None):
    layer = next(m for n, m in adapters.unet.named_modules() if n == "middle_block.1.transformer_blocks.0.attn2.to_k")
    out, inputs = layer.weight.shape
    generator = torch.Generator().manual_seed(0)
    tensors = {
        f"{LAYER}.lora_down.weight": torch.randn(2, inputs, generator=generator),
        f"{LAYER}.lora_up.weight": torch.randn(out, 2, generator=generator) * scale,
    }
    save_file(tensors | (more or {}), adapters.models.folders["LoRA"] / f"{name}.safetensors", metadata)


def embedding(adapters, name, count=1, width=64):
    save_file({"emb_params": rows(count, width)}, adapters.models.folders["embedding"] / f"{name}.safetensors")


def same_as_before(adapters):
    for network, original in zip((adapters.unet, adapters.clip), ORIGINALS):
        assert repr(network) == repr(original)
        assert network.state_dict().keys() == original.state_dict().keys()
        assert all(torch.equal(network.state_dict()[key], value) for key, value in original.state_dict().items())
    assert adapters.names() == []


def test_a_lora_in_a_prompt_that_does_nothing_says_so(adapters):
    lora(adapters, scale=0)
    with load_prompt_adapters(adapters, "a cat <lora:Paper:0.5>", "") as named:
        assert named.prompt == "a cat "
        assert named.reports[0].matched == 1
        assert named.notes == named.reports[0].notes
        assert "every change in it is zero" in named.notes[0]
    same_as_before(adapters)


def test_a_lora_in_the_negative_prompt_is_said_and_not_loaded(adapters):
    lora(adapters)
    with load_prompt_adapters(adapters, "a cat", "bad <lora:paper:1>") as named:
        assert named.negative_prompt == "bad "
        assert "negative prompt" in named.notes[0]
        assert adapters.names() == []


def test_an_unknown_key_leaves_out_no_layer(adapters):
    lora(adapters, more={"something.else": torch.ones(1)})
    report = adapters.load_lora("paper")
    assert report.warnings == ["keys of an unknown kind are ignored: something.else"]


@pytest.mark.parametrize("prompts", [("an easynegative cat", ""), ("a cat", "(EASYNEGATIVE:1.2), bad")])
def test_embeddings_are_found_in_any_case_and_in_both_prompts(adapters, prompts):
    embedding(adapters, "EasyNegative", 3)
    embedding(adapters, "ulz")
    with load_prompt_adapters(adapters, *prompts) as named:
        assert list(adapters.tokenizer.added) == ["EasyNegative"]
        assert named.notes == []
    with load_prompt_adapters(adapters, "ulzzang", "") as named:
        assert adapters.names() == []
    same_as_before(adapters)


def test_an_embedding_for_another_model_is_a_note(adapters):
    embedding(adapters, "other", width=128)
    with load_prompt_adapters(adapters, "an other cat", "") as named:
        assert adapters.names() == []
        assert "the embedding other is not used" in named.notes[0]


def test_an_embedding_that_stands_in_neither_prompt_is_a_note(adapters):
    embedding(adapters, "EasyNegative")
    adapters.load_embedding("easynegative", "EasyNegative")
    with load_prompt_adapters(adapters, "a cat", "easynegative") as named:
        assert named.notes == []
    with load_prompt_adapters(adapters, "a cat", "") as named:
        assert "stands in neither prompt" in named.notes[0]


@pytest.mark.parametrize(
    ("keys", "metadata"),
    [
        (["bundle_emb.toy.string_to_param.*"], None),
        (["bundle_emb.toy.emb_params"], None),
        (["bundle_emb.toy.clip_g", "bundle_emb.toy.clip_l"], None),
        (["toy"], {"toy": "<embed>"}),
    ],
)
def test_embeddings_in_a_lora_come_and_go_with_it(adapters, keys, metadata):
    lora(adapters, more={key: rows(1, 96 if key.endswith("clip_g") else 64) for key in keys}, metadata=metadata)
    report = adapters.load_lora("paper")
    assert report.words == ["toy"]
    assert "loaded with it: toy" in str(report)
    assert torch.equal(adapters.clip.embeddings.token_embedding(torch.tensor(adapters.tokenizer.encode("toy"))), rows())
    adapters.unload("paper")
    with load_prompt_adapters(adapters, "a toy <lora:paper:1><lora:paper:1>", ""):
        assert "toy" in adapters.names()
    same_as_before(adapters)


def test_fused_and_not_fused_again(adapters):
    calls = AdapterCalls()
    calls.adapters = adapters
    lora(adapters)
    lora(adapters, "ink")
    with pytest.raises(UserError, match="no LoRA is loaded"):
        calls.fuse_lora()
    calls.load_lora_weights("paper")
    with pytest.raises(UserError, match="fuse_lora"):
        adapters.check_saving()
    calls.fuse_lora()
    adapters.check_saving()
    changed = [k for k, v in ORIGINALS[0].state_dict().items() if not torch.equal(v, adapters.unet.state_dict()[k])]
    assert changed == ["middle_block.1.transformer_blocks.0.attn2.to_k.weight"]
    with load_prompt_adapters(adapters, "a cat <lora:ink:1>", ""):
        assert adapters.loras() == ["paper", "<lora:ink>"]
    calls.load_lora("ink")
    calls.unfuse_lora()
    calls.set_adapters(["ink"], [0.5])
    assert adapters.loras() == ["paper", "ink"]
    calls.unload_lora_weights()
    same_as_before(adapters)


@pytest.mark.parametrize("strength", [float("nan"), float("inf"), 1000])
def test_a_strength_that_is_no_number_is_refused(adapters, strength):
    lora(adapters)
    with pytest.raises(UserError, match="strength"):
        adapters.load_lora("paper", strength)
    same_as_before(adapters)


def test_oft_under_kohyas_own_prefix(adapters):
    """The same tensors under `oft_unet_` and `lora_unet_` are the same change."""
    for name in ("oft", "lora"):
        tensors = {LAYER.replace("lora", name, 1) + ".oft_blocks": rows(64 * 16).reshape(4, 16, -1)[:, :, :16] * 0.01}
        tensors[LAYER.replace("lora", name, 1) + ".alpha"] = torch.tensor(0.01)
        save_file(
            {k: v.contiguous() for k, v in tensors.items()}, adapters.models.folders["LoRA"] / f"{name}.safetensors"
        )
    sizes = [adapters.load_lora(name).sizes for name in ("oft", "lora")]
    assert sizes[0] == sizes[1]
    assert sizes[0]["unet"] > 0


def test_peft_keys_with_an_adapters_name(adapters):
    path = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    weight = adapters.unet.get_submodule("middle_block.1.transformer_blocks.0.attn2.to_k").weight

    def keys(prefix, name):
        down, up = rows(2, weight.shape[1]), rows(2, weight.shape[0]).T.contiguous()
        return {f"{prefix}{path}.lora_A.{name}.weight": down, f"{prefix}{path}.lora_B.{name}.weight": up}

    folder = adapters.models.folders["LoRA"]
    for i, (prefix, name) in enumerate([("unet.", "dog"), ("base_model.model.", "default"), ("unet.", "v1.5")]):
        save_file(keys(prefix, name), folder / f"x{i}.safetensors")
        assert adapters.load_lora(folder / f"x{i}.safetensors").matched == 1
    save_file(keys("unet.", "dog") | keys("unet.", "cat"), folder / "two.safetensors")
    with pytest.raises(UserError, match="holds 2 LoRAs"):
        adapters.load_lora("two")


def test_vectors_of_one_embedding_stay_together(adapters):
    """Over random prompts: each embedding's vectors lie in one chunk, and all tokens keep their order."""
    tokenizer = adapters.tokenizer
    ids = {name: tokenizer.add_token(name, count) for name, count in (("<a>", 5), ("<b>", 30), ("<c>", 75), ("<d>", 1))}
    generator = torch.Generator().manual_seed(0)
    words = [*ids, "cat", "dog", ",", ", "]
    for _ in range(200):
        picks = torch.randint(len(words), (40,), generator=generator).tolist()
        text = " ".join(words[i] if words[i] != "<c>" or i % 7 else "cat" for i in picks[:25])
        chunks = [[token for token, _ in chunk] for chunk in split_chunks(tokenizer, text[:150])]
        assert [token for chunk in chunks for token in chunk] == tokenizer.encode(text[:150])
        assert all(len(chunk) <= CHUNK for chunk in chunks)
        for chunk in chunks:
            for row in ids.values():
                assert chunk.count(row[0]) == chunk.count(row[-1])
    assert [len(chunk) for chunk in split_chunks(tokenizer, "cat, dog <c>")] == [3, 75]
    for name in ids:
        tokenizer.remove_token(name)
