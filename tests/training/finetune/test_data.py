"""Captions of any length, and the folder layouts of other trainers."""

import json

import pytest
import torch
from PIL import Image

from sd.adapters.textual_inversion import inject
from sd.prompts.weighting import encode_prompts
from sd.training.finetune.data.captions import Captions
from sd.training.finetune.data.image_folder import ImageFolder
from sd.training.finetune.data.long_captions import caption_encoder, encode_captions, fits_in_chunks, split_into_chunks
from sd.training.finetune.latent_cache import EncodedParts, encode_all


def image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 16)).save(path)


def quiet(_):
    pass


def test_long_captions_are_read_as_prompts_are(pipe):
    texts = ["a dog", "a dog " * 60, "a dog, " * 60]
    with torch.no_grad():
        wanted = encode_prompts(pipe.tokenizer, pipe.clip, texts)
        # The same chunks through the same encoder in batches of another size: fp32 rounding.
        assert torch.allclose(encode_captions(pipe, texts, 225), wanted, atol=1e-5)
        assert torch.allclose(caption_encoder(pipe, False, 225)(texts), wanted, atol=1e-5)
    assert wanted.shape[1] == 3 * 77
    with torch.no_grad():
        assert torch.equal(encode_captions(pipe, texts[:1], 225), pipe.clip(pipe.tokenizer(texts[:1])))


@pytest.mark.parametrize("kind", ["object", "style", "plain object", "plain style"])
@pytest.mark.parametrize("tokens", [75, 225])
@pytest.mark.parametrize("place", ["nowhere", "at the end"])
def test_the_word_is_never_cut(kind, tokens, place, pipe, tmp_path):
    image(tmp_path / "a.png")
    image(tmp_path / "b.png")
    (tmp_path / "a.txt").write_text("a red house on a hill " * 60 + ("by zebrafish-7" if place == "at the end" else ""))
    (tmp_path / "b.txt").write_text("a house")
    captions = Captions(
        ImageFolder(tmp_path, say=quiet),
        "zebrafish-7",
        kind,
        fits=lambda text: fits_in_chunks(pipe.tokenizer, text, tokens),
    )
    said = captions.wordings[0][0]
    assert "zebrafish-7" in said
    assert fits_in_chunks(pipe.tokenizer, said, tokens)
    assert len(pipe.tokenizer.encode(said)) > tokens - 30
    assert [photo.path.name for photo in captions.shortened] == ["a.png"]


def test_the_vectors_of_a_word_stay_in_one_chunk(pipe):
    inject(pipe.tokenizer, pipe.clip, "<w>", torch.randn(10, 64))
    try:
        chunks = split_into_chunks(pipe.tokenizer, "house " * 70 + "<w> house")
        assert [len(chunk) for chunk in chunks] == [70, 11]
    finally:
        pipe.tokenizer.remove_token("<w>")


def test_kohyas_layout_is_read(tmp_path):
    image(tmp_path / "img" / "10_sks dog" / "0.png")
    image(tmp_path / "img" / "10_sks dog" / "1.png")
    image(tmp_path / "img" / "2_cat" / "0.png")
    (tmp_path / "img" / "10_sks dog" / "1.caption").write_text("a sks dog runs")
    said = []
    photos = ImageFolder(tmp_path / "img", say=said.append)
    assert [photo.repeats for photo in photos.images] == [10, 10, 2]
    captions = Captions(photos, "sks")
    assert captions.wordings[0] == ["sks dog"]
    assert captions.wordings[1] == ["a sks dog runs"]
    assert "a photo of a sks" in captions.wordings[2]  # "cat" does not say the word
    assert any("10_sks dog: 2 images, each 10 times an epoch" in sentence for sentence in said)


def test_images_one_folder_down_are_read_and_further_down_are_named(tmp_path):
    image(tmp_path / "project" / "photos" / "0.png")
    assert len(ImageFolder(tmp_path / "project", say=quiet)) == 1
    with pytest.raises(ValueError, match=r"further down there are: .*photos .1."):
        ImageFolder(tmp_path, say=quiet)


def test_what_is_found_and_not_read_is_named(tmp_path):
    image(tmp_path / "0.png")
    image(tmp_path / "more" / "1.png")
    (tmp_path / "lost.txt").write_text("a dog")
    (tmp_path / "dog.zip").write_bytes(b"PK")
    skipped = " ".join(ImageFolder(tmp_path, say=quiet).skipped)
    for found in (
        "more: a folder with 1 images, not read",
        "lost.txt: captions without an image",
        "dog.zip: an archive",
    ):
        assert found in skipped


@pytest.mark.parametrize(("text", "captions"), [(["a dog", "one dog"], ["a dog", "one dog"]), (None, []), ([], [])])
def test_a_list_of_captions_or_none_in_metadata(text, captions, tmp_path):
    image(tmp_path / "0.png")
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "0.png", "text": text}))
    assert ImageFolder(tmp_path, say=quiet).images[0].captions == captions


def test_encoding_resumes_where_it_was_stopped(tmp_path):
    asked = []

    def encode_captions(i):
        asked.append(i)
        if len(asked) == 301:
            raise KeyboardInterrupt
        return torch.full((1,), float(i))

    with pytest.raises(KeyboardInterrupt):
        encode_all(encode_captions, 1500, EncodedParts(tmp_path / "parts", "x"), quiet)
    said = []
    done = encode_all(encode_captions, 310, EncodedParts(tmp_path / "parts", "x"), said.append)
    assert said == ["300 of 310 images are encoded already, by an earlier run that was stopped"]
    assert asked[300:] == [300, *range(300, 310)]
    assert torch.cat(done).tolist() == list(range(310))
    assert EncodedParts(tmp_path / "parts", "another").read() == []
