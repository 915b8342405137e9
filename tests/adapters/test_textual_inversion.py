"""Embeddings of every format, read as their writers meant them; new words in and out without a trace."""

import base64
import copy
import json
import zlib

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image, PngImagePlugin
from reference_models import randomize
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPTokenizer

from sd.adapters.embedding_files import read_embeddings, save_embedding
from sd.adapters.textual_inversion import eject, inject, load_embedding, rows_of
from sd.clip import CLIPTextModel
from sd.tokenizer import Tokenizer
from sd.utils.errors import UserError

WIDTH = 64


@pytest.fixture(scope="module")
def original():
    return randomize(CLIPTextModel(width=WIDTH, layers=2, heads=4), 0).requires_grad_(False)


@pytest.fixture
def clip(original):
    return copy.deepcopy(original)


@pytest.fixture
def tokenizer():
    return Tokenizer()


def vectors(count, width=WIDTH, seed=1):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


class TestNewWords:
    def test_stands_for_its_vectors(self, clip, tokenizer):
        """The embeddings of a prompt with the word are the table's rows and, at its places, the vectors."""
        rows = vectors(3)
        inject(tokenizer, clip, "<toy>", rows)
        tokens = tokenizer("a photo of <toy> there")
        ids = tokenizer.encode("a photo of") + [0, 0, 0] + tokenizer.encode("there")
        expected = clip.embeddings.token_embedding.weight[torch.tensor([49406, *ids, 49407])].clone()
        expected[4:7] = rows
        assert torch.equal(clip.embeddings.token_embedding(tokens)[0, : len(expected)], expected)

    def test_equals_a_table_with_more_rows(self, clip, tokenizer):
        """The text encoder computes what it would with the vectors in its own table."""
        for word, count in (("<a>", 1), ("<b>", 4)):
            inject(tokenizer, clip, word, vectors(count, seed=count))
        tokens = tokenizer(["<b> beside <a>", "nothing new", "<a><a>"])
        ours = clip(tokens)
        bigger = nn.Embedding(49408 + 5, WIDTH)
        table = clip.embeddings.token_embedding
        bigger.weight.data = torch.cat([table.weight, vectors(1, seed=1), vectors(4, seed=4)])
        clip.embeddings.token_embedding = bigger
        assert torch.equal(ours, clip(tokens))

    def test_in_and_out_without_a_trace(self, clip, original, tokenizer):
        text, words = repr(clip), dict(tokenizer.added)
        rows = {word: vectors(count, seed=count) for word, count in (("<a>", 1), ("<b>", 2), ("<c>", 3))}
        for word, found in rows.items():
            inject(tokenizer, clip, word, found)
        for word in ("<b>", "<a>", "<c>"):  # in another order, so that ids have gaps meanwhile
            assert torch.equal(rows_of(tokenizer, clip, word), rows[word])
            assert torch.equal(clip.embeddings.token_embedding(torch.tensor(tokenizer.encode(word))), rows[word])
            assert torch.equal(eject(tokenizer, clip, word), rows[word])
        assert repr(clip) == text
        assert tokenizer.added == words
        assert clip.state_dict().keys() == original.state_dict().keys()
        assert all(torch.equal(clip.state_dict()[key], tensor) for key, tensor in original.state_dict().items())
        tokens = tokenizer("a photo")
        assert torch.equal(clip(tokens), original(tokens))

    def test_only_the_rows_learn(self, clip, original, tokenizer):
        rows = inject(tokenizer, clip, "<toy>", vectors(2))
        assert [name for name, p in clip.named_parameters() if p.requires_grad] == [
            "embeddings.token_embedding.rows.49408"
        ]
        optimizer = torch.optim.AdamW([rows], lr=0.1)
        clip(tokenizer("a <toy>")).square().mean().backward()
        optimizer.step()
        assert (rows - vectors(2)).abs().min() > 0
        assert all(torch.equal(clip.state_dict()[key], tensor) for key, tensor in original.state_dict().items())

    def test_half_precision(self, clip, tokenizer):
        """fp32 rows beside a bf16 table; what comes out is bf16."""
        rows = inject(tokenizer, clip.bfloat16(), "<toy>", vectors(1))
        states = clip.embeddings.token_embedding(torch.tensor(tokenizer.encode("<toy>")))
        assert rows.dtype == torch.float32
        assert torch.equal(states, vectors(1).bfloat16())

    def test_refusals(self, clip, tokenizer):
        for word, count, match in (("", 1, "is empty"), ("<a>", 76, "1 to 75"), ("<a>", 0, "1 to 75")):
            with pytest.raises(UserError, match=match):
                inject(tokenizer, clip, word, vectors(count))
        inject(tokenizer, clip, "<a>", vectors(1))
        with pytest.raises(UserError, match="already in use"):
            inject(tokenizer, clip, "<a>", vectors(1))
        with pytest.raises(UserError, match="loaded are <a>"):
            eject(tokenizer, clip, "<b>")


def webui_image(content: dict, height=64, chunk=False) -> Image.Image:
    """The webui's image of an embedding, from its description: JSON deflated; low and high halves of the bytes as
    margins three channels deep, left and right of the image, each behind a black column; the low four bits are xor a
    generator's, the high four an ornament."""
    data = np.frombuffer(zlib.compress(json.dumps(content).encode(), 9), np.uint8)
    width = len(data) // (height * 3) + 1
    data = np.resize(data, height * width * 3)
    state, noise = 0, []
    for _ in range(data.size):
        state = (1664525 * state + 1013904223) % 2**32
        noise.append(state % 255 & 15)
    rng = np.random.default_rng(0)
    margins = []
    for half in (data & 15, data >> 4):
        ornament = rng.integers(0, 16, data.size, np.uint8) << 4
        margins.append((half ^ np.array(noise, np.uint8) ^ ornament).reshape(height, width, 3))
    image = rng.integers(1, 255, (height, 40, 3), np.uint8)
    image[:, 10:12] = 0  # black columns of its own
    black = np.zeros((height, 1, 3), np.uint8)
    return Image.fromarray(np.concatenate([margins[0], black, image, black, margins[1]], axis=1))


def write_format(folder, file_format: str, rows: torch.Tensor):
    """(file, word that it should give): each format as its own program writes it."""
    webui = {"string_to_token": {"*": 265}, "name": "its-own-name", "step": 300, "sd_checkpoint_name": "v1-5"}
    path = folder / "toy-name.pt"
    if file_format == "webui":
        torch.save({**webui, "string_to_param": {"*": rows.clone().requires_grad_()}}, path)
    elif file_format == "webui, old container":
        torch.save({**webui, "string_to_param": {"*": rows}}, path, _use_new_zipfile_serialization=False)
    elif file_format == "rinongal":
        parameters = nn.ParameterDict({"*": nn.Parameter(rows)})
        torch.save({"string_to_token": {"*": torch.tensor(265)}, "string_to_param": parameters}, path)
    elif file_format == "diffusers .bin":
        torch.save({"<toy>": rows[0] if len(rows) == 1 else rows}, path := folder / "learned_embeds.bin")
        return path, "<toy>"
    elif file_format == "diffusers .safetensors":
        save_file({"<toy>": rows}, path := folder / "learned_embeds.safetensors", {"format": "pt"})
        return path, "<toy>"
    elif file_format == "diffusers folder":
        save_file({"<toy>": rows}, folder / "learned_embeds.safetensors")
        return folder, "<toy>"
    elif file_format == "diffusers advanced":
        save_file({"clip_l": rows}, path := folder / "toy-name.safetensors")
    elif file_format == "kohya":
        save_file({"emb_params": rows}, path := folder / "toy-name.safetensors", {"ss_num_train_images": "3"})
    elif file_format == "kohya .pt":
        torch.save({"emb_params": rows}, path)
    elif file_format == "image, chunk":
        content = {**webui, "string_to_param": {"*": {"TORCHTENSOR": rows.tolist()}}}
        info = PngImagePlugin.PngInfo()
        info.add_text("sd-ti-embedding", base64.b64encode(json.dumps(content).encode()).decode())
        Image.new("RGB", (32, 32), "red").save(path := folder / "toy-name.png", pnginfo=info)
        return path, "its-own-name"
    elif file_format == "image, pixels":
        content = {**webui, "string_to_param": {"*": {"TORCHTENSOR": rows.tolist()}}}
        webui_image(content).save(path := folder / "toy-name.png")
        return path, "its-own-name"
    elif file_format == "image, webp":
        content = {**webui, "string_to_param": {"*": {"TORCHTENSOR": rows.tolist()}}}
        webui_image(content).save(path := folder / "toy-name.webp", lossless=True)
        return path, "its-own-name"
    elif file_format == "cloneofsimo":
        tensors = {"unet:0:up": torch.ones(3, 1), "unet:0:down": torch.ones(1, 3), "<toy>": rows[0]}
        save_file(tensors, path := folder / "x.safetensors", {"<toy>": "<embed>", "unet": "[]"})
        return path, "<toy>"
    elif file_format == "bundled":
        key = "bundle_emb.toy v1.5.string_to_param.*"
        save_file({key: rows, "lora_unet_conv_in.alpha": torch.ones(())}, path := folder / "x.safetensors")
        return path, "toy v1.5"
    return path, "toy-name"


FORMATS = [
    *("webui", "webui, old container", "rinongal", "diffusers .bin", "diffusers .safetensors", "diffusers folder"),
    *("diffusers advanced", "kohya", "kohya .pt", "image, chunk", "image, pixels", "image, webp"),
    *("cloneofsimo", "bundled"),
]


class TestFormats:
    @pytest.mark.parametrize("count", [1, 3])
    @pytest.mark.parametrize("file_format", FORMATS)
    def test_every_format(self, clip, tokenizer, tmp_path, file_format, count):
        rows = vectors(1 if file_format == "cloneofsimo" else count)
        path, word = write_format(tmp_path, file_format, rows)
        report = load_embedding(tokenizer, clip, path)
        assert report.vectors == {word: len(rows)}
        assert torch.equal(rows_of(tokenizer, clip, word), rows)
        assert report.warnings == []
        assert word in str(report)
        if "webui" in file_format:
            assert report.about == "step 300, model v1-5"
        eject(tokenizer, clip, word)
        load_embedding(tokenizer, clip, path, token="<mine>")
        assert torch.equal(rows_of(tokenizer, clip, "<mine>"), rows)

    def test_several_words(self, clip, tokenizer, tmp_path):
        path = tmp_path / "x.bin"
        torch.save({"<a>": vectors(1)[0], "<b>": vectors(2)}, path)
        assert load_embedding(tokenizer, clip, path).vectors == {"<a>": 1, "<b>": 2}
        eject(tokenizer, clip, "<a>")
        with pytest.raises(UserError, match="already in use"):  # <b> is in, so <a> stays out as well
            load_embedding(tokenizer, clip, path)
        assert list(tokenizer.added) == ["<b>"]
        with pytest.raises(UserError, match="2 words"):
            load_embedding(tokenizer, clip, path, token="<c>")
        assert load_embedding(tokenizer, clip, path, token="<a>").vectors == {"<a>": 1}

    @pytest.mark.parametrize("name", ["cat-toy", "gta5-artwork", "birb-style"])
    def test_real_files(self, pytestconfig, name):
        path = pytestconfig.rootpath.parent / "shared" / "data" / "adapters" / f"ti_{name}_learned_embeds.bin"
        if not path.exists():
            pytest.skip("the files that others made are not here")
        found = read_embeddings(path, 768)
        expected = torch.load(path, weights_only=True)[f"<{name}>"]
        assert found.vectors.keys() == {f"<{name}>"}
        assert torch.equal(found.vectors[f"<{name}>"], expected[None])


class TestWriting:
    @pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
    def test_ours_again(self, tmp_path, suffix):
        path = tmp_path / f"<toy>{suffix}"
        save_embedding(path, "<toy>", vectors(2).requires_grad_(), step=40, model_name="v1-5")
        found = read_embeddings(path, WIDTH)
        assert torch.equal(found.vectors["<toy>"], vectors(2))
        assert found.about == ("step 40, model v1-5" if suffix == ".pt" else "")

    def test_what_stands_in_them(self, tmp_path):
        """One key, the token; and the webui's dict, which torch reads without trusting it."""
        save_embedding(tmp_path / "a.safetensors", "<toy>", vectors(2))
        assert load_file(tmp_path / "a.safetensors").keys() == {"<toy>"}
        save_embedding(tmp_path / "a.pt", "toy", vectors(2), step=7)
        content = torch.load(tmp_path / "a.pt", weights_only=True)
        assert torch.equal(content["string_to_param"]["*"], vectors(2))
        assert (content["name"], content["step"]) == ("toy", 7)
        assert (tmp_path / "a.pt").read_bytes()[:2] != b"PK"  # the container that every webui reads
        with pytest.raises(UserError, match="safetensors"):
            save_embedding(tmp_path / "a.ckpt", "toy", vectors(2))

    @pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
    def test_diffusers_reads_ours(self, original, tmp_path, suffix):
        """Its text encoder has our vectors at the ids of its tokenizer."""
        from transformers import CLIPTextConfig, CLIPTextModel

        tokenizer = self.peer_tokenizer(tmp_path)
        config = CLIPTextConfig(
            hidden_size=WIDTH, intermediate_size=WIDTH, num_hidden_layers=1, num_attention_heads=4, vocab_size=1000
        )
        text = CLIPTextModel(config)
        text.resize_token_embeddings(len(tokenizer))
        parts = dict(vae=None, unet=None, scheduler=None, safety_checker=None, feature_extractor=None)
        pipe = StableDiffusionPipeline(text_encoder=text, tokenizer=tokenizer, requires_safety_checker=False, **parts)
        save_embedding(tmp_path / f"x{suffix}", "<toy>", vectors(3))
        pipe.load_textual_inversion(str(tmp_path / f"x{suffix}"), token="<toy>")
        ids = tokenizer.convert_tokens_to_ids(["<toy>", "<toy>_1", "<toy>_2"])
        assert torch.equal(text.get_input_embeddings().weight[ids], vectors(3))

    def peer_tokenizer(self, folder):
        words = {chr(i): i for i in range(33, 127)} | {f"{chr(i)}</w>": i + 94 for i in range(33, 127)}
        words = {word: i for i, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
        (folder / "vocab.json").write_text(json.dumps(words))
        (folder / "merges.txt").write_text("#version: 0.2\n")
        return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))


class TestBadFiles:
    def refused(self, clip, tokenizer, path, match, token=None):
        text = repr(clip)
        with pytest.raises(UserError, match=match) as caught:
            load_embedding(tokenizer, clip, path, token)
        assert str(caught.value).endswith(".")
        assert "\n" not in str(caught.value)
        assert tokenizer.added == {}
        assert repr(clip) == text

    @pytest.mark.parametrize(
        ("width", "model"), [(768, "Stable Diffusion 1"), (1024, "Stable Diffusion 2"), (1280, "Stable Diffusion XL")]
    )
    def test_other_models(self, clip, tokenizer, tmp_path, width, model):
        for i, content in enumerate(({"<toy>": vectors(1, width)}, {"string_to_param": {"*": vectors(1, width)}})):
            torch.save(content, tmp_path / f"{i}.pt")
            self.refused(clip, tokenizer, tmp_path / f"{i}.pt", f"{model}, whose text is {width} wide")
        save_file({"clip_g": vectors(1, 1280)}, tmp_path / "g.safetensors")
        self.refused(clip, tokenizer, tmp_path / "g.safetensors", "Stable Diffusion XL")

    def test_half_of_xl(self, clip, tokenizer, tmp_path):
        save_file({"clip_l": vectors(1), "clip_g": vectors(1, 1280)}, tmp_path / "my-toy.safetensors")
        assert "only half" in load_embedding(tokenizer, clip, tmp_path / "my-toy.safetensors").warnings[0]

    def test_zeros_and_worse(self, clip, tokenizer, tmp_path):
        path = tmp_path / "x.bin"
        torch.save({"<toy>": vectors(1) * float("inf")}, path)
        self.refused(clip, tokenizer, path, "NaN or infinite")
        torch.save({"<toy>": vectors(1) * 0}, path)
        assert "zeros" in str(load_embedding(tokenizer, clip, path))

    def test_named_like_a_word_of_the_vocabulary(self, clip, original, tokenizer, tmp_path):
        """As in the webui: it stands for the word, the report says so, and afterwards there is no trace of it."""
        torch.save({"cat": vectors(1)}, tmp_path / "x.bin")
        for word, token in (("cat", None), ("dog", "dog")):
            before = tokenizer.encode(f"a {word}")
            report = load_embedding(tokenizer, clip, tmp_path / "x.bin", token)
            assert report.warnings == [f"{word} now has the embedding's meaning instead of its usual one"]
            assert tokenizer.encode(f"a {word}") == [before[0], 49408]
            eject(tokenizer, clip, word)
            assert tokenizer.encode(f"a {word}") == before
        assert repr(clip) == repr(original)

    def test_damaged_or_something_else(self, clip, tokenizer, tmp_path):
        path = tmp_path / "x.pt"
        self.refused(clip, tokenizer, path, "file not found")
        torch.save({"string_to_param": {"*": vectors(4)}}, path)
        whole = path.read_bytes()
        for size in (0, 3, 100, len(whole) // 2):
            path.write_bytes(whole[:size])
            self.refused(clip, tokenizer, path, "empty|damaged|cut short|something else")
        for content in ({}, {"string_to_param": {}}, {"step": 3}, [1], {"down_blocks.0.x": vectors(1)}):
            torch.save(content, path)
            self.refused(clip, tokenizer, path, "holds no embedding")
        save_file({"lora_unet_conv_in.lora_up.weight": vectors(1)}, tmp_path / "x.safetensors")
        self.refused(clip, tokenizer, tmp_path / "x.safetensors", "holds no embedding: it is a LoRA")
        self.refused(clip, tokenizer, tmp_path, "is a folder")

    def test_images_without_one(self, clip, tokenizer, tmp_path):
        path = tmp_path / "x.png"
        Image.effect_noise((64, 64), 50).save(path)
        self.refused(clip, tokenizer, path, "image without an embedding")
        Image.new("RGB", (64, 64)).save(path)
        self.refused(clip, tokenizer, path, "image without an embedding")
        for text in ("no base64", base64.b64encode(b"[" * 100_000).decode(), base64.b64encode(b"[1]").decode()):
            info = PngImagePlugin.PngInfo()
            info.add_text("sd-ti-embedding", text)
            Image.new("RGB", (8, 8)).save(path, pnginfo=info)
            self.refused(clip, tokenizer, path, "image without an embedding")
        path.write_bytes(path.read_bytes()[:60])
        self.refused(clip, tokenizer, path, "cannot be opened as an image")

    def test_a_pickle_that_calls(self, clip, tokenizer, tmp_path):
        class Call:
            def __reduce__(self):
                return print, ("called",)

        torch.save({"string_to_param": {"*": Call()}}, tmp_path / "x.pt")
        self.refused(clip, tokenizer, tmp_path / "x.pt", "print")
