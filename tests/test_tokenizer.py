import importlib.util
import json
import random
import sys
import unicodedata
from pathlib import Path

import pytest
from transformers import CLIPTokenizer

from sd.tokenizer import Tokenizer, clean_text
from sd.utils.errors import UserError

WORDS = (
    "a photo of the Red apple on Café naïve straße 東京 Москва don't they'll 12,345.67 x^2 !!! e-mail @user #tag"
).split()
ODD = [
    "🍎",
    "👩‍👩‍👧",
    "🇫🇷",
    "é",
    "e\u0301",
    "ﬁne",
    "…",
    "\t",
    "\n",
    "\u00a0",
    "\u200b",
    "\x00",
    "\x07",
    "&amp;",
    "&lt;b&gt;",
]
ODD += [
    "<b>",
    "</p>",
    "&amp;amp;",
    "&#39;s",
    "â€™",
    "Ã©",
    "“quoted”",
    "ＡＢＣ",
    "½",
    "²",
    "٣",
    "हिन्दी",
    "🧑🏽",
    "İ",
    "ß",
    "\ufeff",
]
PLANES = [(0x20, 0x7F), (0, 0x2000), (0x2000, 0xD7FF), (0xE000, 0x1F9FF)]


def random_letter(rng: random.Random) -> str:
    while True:
        letter = chr(rng.randint(*rng.choice(PLANES)))
        # Letters that are in no Unicode yet change kind with the Unicode version of each peer's regex. U+0345, a mark
        # whose upper case is a letter, is dropped by OpenAI's pattern (and by us and open_clip), not by transformers.
        if unicodedata.category(letter) != "Cn" and letter != "\u0345":
            return letter


def make_prompts(count: int) -> list[str]:
    """Seeded: words, unicode of every plane, emoji, control characters and markup, in many lengths."""
    rng = random.Random(0)
    prompts = ["", " ", "a", "a" * 400, "word " * 200, *ODD, *WORDS]
    while len(prompts) < count:
        parts = []
        for _ in range(rng.randint(1, 30)):
            kind = rng.random()
            if kind < 0.8:
                parts.append(rng.choice(WORDS if kind < 0.6 else ODD))
            else:
                parts.append("".join(random_letter(rng) for _ in range(rng.randint(1, 6))))
        prompts.append(rng.choice([" ", "", ", "]).join(parts))
    return prompts


@pytest.fixture(scope="module")
def prompts():
    return make_prompts(12_000)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer()


@pytest.fixture(scope="module")
def open_clip_tokenizer():
    """The one file: the whole package asks for torchvision."""
    folder = next((Path(p) / "open_clip" for p in sys.path if (Path(p) / "open_clip" / "tokenizer.py").is_file()), None)
    if folder is None:
        pytest.skip("open_clip_torch is not installed")
    spec = importlib.util.spec_from_file_location("open_clip_tokenizer", folder / "tokenizer.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.SimpleTokenizer()


@pytest.fixture(scope="module")
def transformers_tokenizer(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    (folder / "vocab.json").write_text(json.dumps(tokenizer.ids))
    merges = "\n".join(" ".join(pair) for pair in tokenizer.ranks)
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    return CLIPTokenizer(vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"))


def test_same_ids_as_open_clip(tokenizer, open_clip_tokenizer, prompts):
    theirs = open_clip_tokenizer(prompts)
    padding = (theirs == 0) & (theirs == 49407).cumsum(1).bool()  # open_clip pads with 0 after the end, SD with the end
    assert (tokenizer(prompts) == theirs.masked_fill(padding, 49407)).all()


def test_same_ids_as_transformers(tokenizer, transformers_tokenizer, prompts):
    # transformers 5 neither repairs unicode nor reads HTML entities, so it is given the text after our cleaning. It
    # composes accents after lowering the case, OpenAI (and we) before: that tells a handful of texts apart.
    same = [p for p in prompts if unicodedata.is_normalized("NFC", clean_text(p))]
    assert len(same) > 0.999 * len(prompts)
    theirs = transformers_tokenizer(
        [clean_text(p) for p in same], padding="max_length", truncation=True, max_length=77
    ).input_ids
    assert tokenizer(same).tolist() == theirs


def test_same_ids_as_transformers_on_raw_text_that_needs_no_repair(tokenizer, transformers_tokenizer, prompts):
    # Of ours, cleaning then only composes accents and lowers the case, as transformers does.
    plain = [p for p in prompts if p.isprintable() and clean_text(p) == unicodedata.normalize("NFC", p).strip().lower()]
    assert len(plain) > 1000
    theirs = transformers_tokenizer(plain, padding="max_length", truncation=True, max_length=77).input_ids
    assert tokenizer(plain).tolist() == theirs


def test_seventy_seven_places_and_the_end_at_the_last(tokenizer):
    assert tokenizer("").tolist() == [[49406] + [49407] * 76]
    long = tokenizer("apple " * 100)
    assert long.shape == (1, 77)
    assert long[0, 0] == 49406
    assert long[0, 76] == 49407
    assert (long[0, 1:76] == tokenizer.encode("apple")[0]).all()
    assert tokenizer([]).shape == (0, 77)


def test_decode_gives_the_clean_text_back(tokenizer):
    for text in ["a photo of an astronaut riding a horse", "東京 🍎 café", "<b> & 12"]:
        assert tokenizer.decode(tokenizer.encode(text)).replace(" ", "") == clean_text(text).replace(" ", "")


def test_placeholders_come_and_go(tokenizer):
    before = tokenizer.encode("a <dog> in <dog-2>")
    first = tokenizer.add_token("<dog>", vectors=2)
    second = tokenizer.add_token("<dog-2>")
    assert first == [49408, 49409]
    assert second == [49410]
    a, within = tokenizer.encode("a")[0], tokenizer.encode("in")[0]
    assert tokenizer.encode("a <dog> in <dog-2>") == [a, *first, within, *second]
    assert tokenizer.decode([a, *first, within]) == "a <dog> in"
    tokenizer.remove_token("<dog>")
    tokenizer.remove_token("<dog-2>")
    assert tokenizer.encode("a <dog> in <dog-2>") == before


@pytest.mark.parametrize("name", ["", " ", "<|endoftext|>", "a <|startoftext|>"])
def test_a_placeholder_that_is_no_name_is_refused(tokenizer, name):
    with pytest.raises(UserError, match="placeholder"):
        tokenizer.add_token(name)
    assert tokenizer.added == {}


@pytest.mark.parametrize("name", ["dog", "Apple", "W"])
def test_an_embedding_may_be_named_like_a_word(tokenizer, name):
    """As in the webui: the embedding stands for the word, in any case, until it is taken out."""
    text = f"a {name.lower()}, {name.upper()}"
    before = tokenizer.encode(text)
    a, comma = tokenizer.encode("a,")
    first = tokenizer.add_token(name, vectors=2)
    assert tokenizer.encode(text) == [a, *first, comma, *first]
    with pytest.raises(UserError, match="already in use"):
        tokenizer.add_token(name.lower())
    tokenizer.remove_token(name)
    assert tokenizer.encode(text) == before


@pytest.mark.parametrize(
    ("name", "there", "not_there"),
    [
        ("EasyNegative", ["easynegative", "a,EASYNEGATIVE.", "(EasyNegative)", "easynegative2"], ["easynegativev2"]),
        ("ulz", ["an ulz", "ulz's", "ulz-ulz"], ["ulzzang", "schulz", "ulzulz"]),
        ("<cat-toy>", ["a <cat-toy>, there", "<Cat-Toy><CAT-TOY>", "< cat - toy >"], ["cat-toy", "<cat toy>"]),
        ("bad hands", ["bad  hands", "Bad\nHands,"], ["badhands", "bad_hands"]),
        ("ng_v1_75t", ["ng_v1_75t:", "x,NG_V1_75T"], ["ng_v1_75tt", "ng_v1_7"]),
        ("東京", ["東京 x", "(東京)"], ["東京都"]),
    ],
)
def test_a_placeholder_counts_as_a_whole_word(tokenizer, name, there, not_there):
    (new,) = tokenizer.add_token(name)
    assert all(new in tokenizer.encode(text) for text in there)
    plain = Tokenizer()
    assert all(tokenizer.encode(text) == plain.encode(text) for text in not_there)
    tokenizer.remove_token(name)


def test_of_placeholders_the_longest_counts(tokenizer):
    ids = {name: tokenizer.add_token(name)[0] for name in ("style", "style 1", "style 12")}
    assert tokenizer.encode("style 12 style 1 style") == [ids["style 12"], ids["style 1"], ids["style"]]
    for name in ids:
        tokenizer.remove_token(name)
