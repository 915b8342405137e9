import re

import pytest
import torch
from reference_models import TINY, peer_text, randomize

from sd.clip import CLIPTextModel
from sd.pipeline.metadata.settings_infotext import from_infotext, read_settings, to_infotext
from sd.pipeline.settings import GenerationSettings
from sd.prompts.weighting import (
    EMPHASIS,
    MAX_CHARACTERS,
    MAX_CHUNKS,
    emphasize,
    encode_prompt,
    encode_prompts,
    parse_prompt,
    split_chunks,
)
from sd.tokenizer import Tokenizer
from sd.utils.errors import UserError

END = 49407


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer()


@pytest.fixture(scope="module")
def clip():
    return randomize(CLIPTextModel(**TINY["clip"]), seed=1)


@pytest.fixture(scope="module")
def peer(clip):
    return peer_text(clip, **TINY["clip"])


# What the webui's documentation promises, worked out by hand.
@pytest.mark.parametrize(
    ("prompt", "pieces"),
    [
        ("", [("", 1)]),
        ("normal text", [("normal text", 1)]),
        ("an (important) word", [("an ", 1), ("important", 1.1), (" word", 1)]),
        ("an [unimportant] word", [("an ", 1), ("unimportant", 1 / 1.1), (" word", 1)]),
        ("((twice)) [[half]]", [("twice", 1.21), (" ", 1), ("half", 1 / 1.21)]),
        ("(x:1.3)", [("x", 1.3)]),
        ("( x : .5 ) (y:+2.) (z:-1)", [(" x ", 0.5), (" ", 1), ("y", 2), (" ", 1), ("z", -1)]),
        ("(a (b:1.5) c:2)", [("a ", 2), ("b", 3), (" c", 2)]),
        ("(one)(two)", [("onetwo", 1.1)]),
        ("[(a)]b", [("ab", 1)]),
        ("(a:0)", [("a", 0)]),
        # escapes
        (r"\(literal\]", [("(literal]", 1)]),
        (r"(a \(b\) c)", [("a (b) c", 1.1)]),
        (r"back\\slash and lone\ one", [("back\\slash and lone one", 1)]),
        # brackets without a partner
        ("(open", [("open", 1.1)]),
        ("a [open (deep", [("a ", 1), ("open ", 1 / 1.1), ("deep", 1)]),
        ("shut) shut]", [("shut) shut]", 1)]),
        ("a :1.3) b", [("a :1.3) b", 1)]),
        ("(a [b) c]", [("a ", 1.1), ("b", 1), (" c", 1 / 1.1)]),
        # not weights
        ("ratio 16:9", [("ratio 16:9", 1)]),
        ("(a:b)", [("a:b", 1.1)]),
        ("(a:1.2.3)", [("a:1.2.3", 1.1)]),
        ("[a:1.3]", [("a:1.3", 1 / 1.1)]),
        ("a <lora:x:1> b", [("a <lora:x:1> b", 1)]),
        # breaks
        ("a BREAK b", [("a", 1), ("BREAK", -1), ("b", 1)]),
        ("BREAK", [("", 1), ("BREAK", -1), ("", 1)]),
        ("BREAKFAST and break", [("BREAKFAST and break", 1)]),
        ("(a BREAK b:2) c", [("a", 2), ("BREAK", -1), ("b", 2), (" c", 1)]),
    ],
)
def test_parse(prompt, pieces):
    parsed = parse_prompt(prompt)
    assert [text for text, _ in parsed] == [text for text, _ in pieces]
    assert [weight for _, weight in parsed] == pytest.approx([weight for _, weight in pieces], rel=1e-12)


def words(chunk, tokenizer):
    return tokenizer.decode([token for token, _ in chunk])


@pytest.mark.parametrize(
    ("prompt", "lengths"),
    [
        ("", [0]),
        ("cat", [1]),
        ("cat " * 75, [75]),
        ("cat " * 76, [75, 1]),
        ("cat " * 200, [75, 75, 50]),
        ("a BREAK b", [1, 1]),
        ("a BREAK", [1]),
        ("BREAK a", [0, 1]),
        ("BREAK", [0]),
        ("a BREAK BREAK b", [1, 0, 1]),
        ("cat " * 80 + "BREAK b", [75, 5, 1]),
        # The cut goes behind the last comma if that is the 56th token or later: places 55 to 74.
        ("cat " * 55 + ", " + "dog " * 30, [56, 30]),
        ("cat " * 54 + ", " + "dog " * 30, [75, 10]),
        ("cat " * 74 + ", dog", [75, 1]),
        ("cat " * 60 + ", cat, " + "dog " * 30, [63, 30]),
        ("cat " * 60 + ", " + "dog " * 14 + ", fox", [75, 2]),  # the next token is a comma itself: no phrase to save
        ("cat " * 60 + ", " + "dog " * 80, [61, 75, 5]),
        ("cat " * 60 + "(, " + "dog " * 30 + ":1.2)", [61, 30]),
    ],
)
def test_chunks(tokenizer, prompt, lengths):
    assert [len(chunk) for chunk in split_chunks(tokenizer, prompt)] == lengths


@pytest.mark.parametrize(
    ("reach", "lengths"),
    [(0, [75, 10]), (20, [75, 10]), (21, [55, 30]), (74, [55, 30])],  # 74 - 54 = 20 words follow the comma in its chunk
)
def test_a_chunk_ends_at_a_comma_within_the_reach(tokenizer, reach, lengths):
    prompt = "cat " * 54 + ", " + "dog " * 30
    assert [len(chunk) for chunk in split_chunks(tokenizer, prompt, comma_reach=reach)] == lengths


@torch.no_grad()
def test_comma_padding_reaches_the_context_and_is_read_back(pipe):
    settings = GenerationSettings("cat " * 60 + ", " + "dog " * 30, steps=1, seed=1, width=64, height=64)
    contexts = [pipe.encode_prompts(settings.replace(comma_padding=n)).prompts[0][0][0][1] for n in (20, 0)]
    plain = [encode_prompt(pipe.tokenizer, pipe.clip, settings.prompt, comma_reach=n) for n in (20, 0)]
    assert all(torch.equal(*pair) for pair in zip(contexts, plain))
    assert not torch.equal(*contexts)
    assert from_infotext(to_infotext(settings.replace(comma_padding=0), 0, "", "", False)).comma_padding == 0


def test_weights_follow_their_tokens_over_a_cut(tokenizer):
    first, second = split_chunks(tokenizer, "cat " * 70 + ", blue (dog " + "sky " * 10 + ":1.5) end")
    assert words(first, tokenizer).endswith("cat ,")
    assert words(second, tokenizer) == "blue dog " + "sky " * 10 + "end"
    assert [weight for _, weight in second] == [1.0, *[1.5] * 11, 1.0]


@pytest.mark.parametrize("clip_skip", [1, 2])
@pytest.mark.parametrize("prompt", ["", "a red apple", "a photo, of 3 cats: dogs & <b>more</b> é🍎"])
def test_plain_prompt_is_clip_of_its_tokens(tokenizer, clip, prompt, clip_skip):
    assert torch.equal(encode_prompt(tokenizer, clip, prompt, clip_skip), clip(tokenizer(prompt), clip_skip))


def peer_context(peer, chunks, clip_skip):
    """The whole road again through transformers: chunks of (ids, weights) -> (1, 77 * k, D)."""
    parts = []
    for ids, weights in chunks:
        ids = [49406, *ids] + [END] * (76 - len(ids))
        weights = [1.0, *weights] + [1.0] * (76 - len(weights))
        hidden = peer(torch.tensor([ids]), output_hidden_states=True).hidden_states[-clip_skip]
        norm = peer.text_model.final_layer_norm if hasattr(peer, "text_model") else peer.final_layer_norm
        z = norm(hidden)[0]
        weighted = torch.stack([row * weight for row, weight in zip(z, weights)])
        parts.append(weighted * (z.mean() / weighted.mean()))
    return torch.cat(parts)[None]


@pytest.mark.parametrize("clip_skip", [1, 2])
@torch.no_grad()
def test_emphasis_breaks_and_clip_skip_against_transformers(tokenizer, clip, peer, clip_skip):
    ours = encode_prompt(tokenizer, clip, "a (red:1.4) apple BREAK [on a table], ((day", clip_skip)
    encode = tokenizer.encode
    first = [*encode("a"), *encode("red"), *encode("apple")], [1, 1.4, 1]
    second = [*encode("on a table"), *encode(","), *encode("day")], [*[1 / 1.1] * 3, 1, 1.21]
    theirs = peer_context(peer, [first, second], clip_skip)
    # fp32 through three layers, then a division by a mean near 0, which magnifies its rounding: 1e-4 of the values.
    assert ours.shape == (1, 154, 64)
    assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4 * theirs.abs().max().item())


@torch.no_grad()
def test_long_prompt_against_transformers(tokenizer, clip, peer):
    prompt = " ".join(f"thing number {i} of many" for i in range(40))
    ids = tokenizer.encode(prompt)
    assert len(ids) > 225
    theirs = peer_context(peer, [(ids[i : i + 75], [1.0] * len(ids[i : i + 75])) for i in range(0, len(ids), 75)], 1)
    # fp32, three layers, no emphasis: only the order of sums differs.
    assert torch.allclose(encode_prompt(tokenizer, clip, prompt), theirs, rtol=1e-5, atol=1e-5)


def test_emphasis_keeps_each_chunks_mean_and_the_dtype():
    states = torch.randn(2, 77, 8, generator=torch.Generator().manual_seed(0)) + 1
    weights = torch.ones(2, 77)
    weights[1, 5:9] = 1.7
    result = emphasize(states, weights)
    assert torch.equal(result[0], states[0])  # untouched, to the bit, though its neighbour has weights
    assert torch.allclose(result[1].mean(), states[1].mean(), rtol=1e-5)  # rounding of 616 terms in fp32
    ratio = (result[1] / states[1])[:, 0]
    assert torch.allclose(ratio[5:9], ratio[4] * 1.7, rtol=1e-5)
    half = states.bfloat16()
    assert torch.equal(emphasize(half, torch.ones(2, 77)), half)


@torch.no_grad()
def test_prompts_of_one_batch_are_filled_with_empty_chunks(tokenizer, clip):
    both = encode_prompts(tokenizer, clip, ["", "cat " * 80])
    empty, long = encode_prompt(tokenizer, clip, ""), encode_prompt(tokenizer, clip, "cat " * 80)
    assert torch.equal(both, torch.cat([torch.cat([empty, empty], dim=1), long]))


@pytest.mark.parametrize(
    ("prompt", "clip_skip", "words"),
    [
        ("cat " * (75 * MAX_CHUNKS + 1), 1, f"fills {MAX_CHUNKS + 1} chunks"),
        (" BREAK b" * MAX_CHUNKS, 1, f"fills {MAX_CHUNKS + 1} chunks"),
        ("x" * (MAX_CHARACTERS + 1), 1, f"at most {MAX_CHARACTERS}"),
        ("(cat:1000000)", 1, "'cat' the weight 1e+06"),
        ("(" * 60 + "cat", 1, "weight"),
        ("(cat:" + "9" * 400 + ")", 1, "weight inf"),
        ("cat", 0, "clip_skip must be from 1 (the last layer) to 3 (the first), not 0."),
        ("cat", 4, "to 3 (the first)"),
    ],
)
def test_bounds(tokenizer, clip, prompt, clip_skip, words):
    with pytest.raises(UserError, match=re.escape(words)):
        encode_prompt(tokenizer, clip, prompt, clip_skip)


def test_the_longest_allowed_prompt_passes(tokenizer):
    assert len(split_chunks(tokenizer, "cat " * (75 * MAX_CHUNKS))) == MAX_CHUNKS


@pytest.mark.parametrize("emphasis", EMPHASIS)
def test_emphasis_is_the_webuis_of_that_name(pipe, emphasis):
    """Original: z * w, times the ratio of the means. No norm: without it. Ignore: z. None: brackets are text."""
    tokenizer, clip = pipe.tokenizer, pipe.clip
    found = encode_prompt(tokenizer, clip, "a (red:1.4) apple", emphasis=emphasis)
    plain = encode_prompt(tokenizer, clip, "a red apple")
    weights = torch.ones(77)
    weights[2] = 1.4
    weighted = plain * weights[:, None]
    expected = {
        "original": weighted * (plain.mean() / weighted.mean()),
        "no_norm": weighted,
        "ignore": plain,
        "none": encode_prompt(tokenizer, clip, r"a \(red:1.4\) apple"),
    }[emphasis]
    torch.testing.assert_close(found, expected)


def test_none_reads_no_break_either(pipe):
    (chunk,) = split_chunks(pipe.tokenizer, "a BREAK b", "none")
    assert [token for token, _ in chunk] == pipe.tokenizer.encode("a BREAK b")
    assert len(split_chunks(pipe.tokenizer, "a BREAK b", "ignore")) == 2


@pytest.mark.parametrize("emphasis", ["no_norm", "ignore", "none"])
def test_emphasis_reaches_the_image_and_is_read_back(pipe, emphasis):
    settings = GenerationSettings("a (red:1.4) [apple]", steps=2, seed=1, width=64, height=64, emphasis=emphasis)
    made = pipe.generate(settings)
    again = GenerationSettings(**read_settings(made.infotexts[0]).values)
    assert again.emphasis == emphasis
    assert torch.equal(pipe.generate(again).latents, made.latents)
    assert not torch.equal(pipe.generate(settings.replace(emphasis="original")).latents, made.latents)
