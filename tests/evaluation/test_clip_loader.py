"""CLIP's files of every kind, against OpenAI's architecture written with torch's own layers, and transformers."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from reference_models import randomize, relative_error
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel

from sd.checkpoints.pickles.objects import ScriptObject
from sd.checkpoints.weight_files import describe_contents, read_weights
from sd.evaluation.clip_loader import read_clip
from sd.tokenizer import Tokenizer
from sd.utils.errors import UserError
from sd.vision.clip_vision import CLIP, CLIPVisionModel

ROOT = Path(__file__).resolve().parents[2]
PROMPTS = ["", "a red apple", "an astronaut " * 60]
# fp32 holds 7 digits; a few layers of sums in another order cost one or two of them.
TOLERANCE = 1e-5


class Block(nn.Module):
    """OpenAI's residual attention block; heads are 64 wide."""

    def __init__(self, width: int):
        super().__init__()
        self.attn = nn.MultiheadAttention(width, width // 64)
        self.ln_1 = nn.LayerNorm(width)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)})
        self.ln_2 = nn.LayerNorm(width)
        self.taps = [1, 2]  # a list of numbers, which TorchScript's pickle builds by a call

    def forward(self, x: Tensor, mask: Tensor | None):
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        h = self.mlp["c_fc"](self.ln_2(x))
        return x + self.mlp["c_proj"](h * torch.sigmoid(1.702 * h))


class Transformer(nn.Module):
    def __init__(self, width: int, layers: int):
        super().__init__()
        self.resblocks = nn.ModuleList(Block(width) for _ in range(layers))

    def forward(self, x: Tensor, mask: Tensor | None):
        x = x.transpose(0, 1)  # (N, B, width), as nn.MultiheadAttention likes it
        for block in self.resblocks:
            x = block(x, mask)
        return x.transpose(0, 1)


class Visual(nn.Module):
    def __init__(self, size: int, patch: int, width: int, layers: int, out: int):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, patch, stride=patch, bias=False)
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.positional_embedding = nn.Parameter(torch.zeros((size // patch) ** 2 + 1, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = Transformer(width, layers)
        self.proj = nn.Parameter(torch.zeros(width, out))

    def forward(self, x):
        x = self.conv1(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding + torch.zeros_like(x[:, :1]), x], dim=1) + self.positional_embedding
        return self.ln_post(self.transformer(self.ln_pre(x), None)[:, 0]) @ self.proj


class OpenAI(nn.Module):
    """CLIP as OpenAI's archives hold it: these names, and three whole numbers beside them."""

    def __init__(self):
        super().__init__()
        self.visual = Visual(32, 8, 128, 2, 48)
        self.transformer = Transformer(64, 3)
        self.token_embedding = nn.Embedding(49408, 64)
        self.positional_embedding = nn.Parameter(torch.zeros(77, 64))
        self.ln_final = nn.LayerNorm(64)
        self.text_projection = nn.Parameter(torch.zeros(64, 48))
        self.logit_scale = nn.Parameter(torch.zeros([]))
        for name, number in (("input_resolution", 32), ("context_length", 77), ("vocab_size", 49408)):
            self.register_buffer(name, torch.tensor(number))
        self.register_buffer("attn_mask", torch.full((77, 77), float("-inf")).triu(1), persistent=False)

    def forward(self, pixels, tokens):
        x = self.token_embedding(tokens) + self.positional_embedding
        x = self.ln_final(self.transformer(x, self.attn_mask))
        text = x[torch.arange(len(tokens)), tokens.argmax(dim=1)] @ self.text_projection
        return F.normalize(self.visual(pixels), dim=-1), F.normalize(text, dim=-1)


@pytest.fixture(scope="module")
def openai():
    return randomize(OpenAI(), seed=1).requires_grad_(False)


@pytest.fixture(scope="module")
def inputs():
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)), Tokenizer()(PROMPTS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A transformers folder, with heads that are not 64 wide; its config leaves out what is as usual."""
    towers = dict(hidden_size=64, intermediate_size=256, num_hidden_layers=2)
    config = CLIPConfig(
        text_config=towers | dict(num_attention_heads=8),
        vision_config=towers | dict(num_attention_heads=4, image_size=32, patch_size=8),
        projection_dim=48,
    )
    path = tmp_path_factory.mktemp("clip")
    randomize(CLIPModel(config), seed=2).save_pretrained(path)
    return path


def check(clip, images, texts, inputs):
    pixels, tokens = inputs
    assert relative_error(clip.encode_image(pixels), images) < TOLERANCE
    assert relative_error(clip.encode_text(tokens), texts) < TOLERANCE


@pytest.mark.parametrize("way", ["scripted", "traced"])
def test_a_torchscript_archive(openai, inputs, tmp_path, way):
    program = torch.jit.script(openai) if way == "scripted" else torch.jit.trace(openai, inputs, check_trace=False)
    program.save(tmp_path / "ViT.pt")
    pixels, tokens = inputs
    check(read_clip(tmp_path / "ViT.pt"), *torch.jit.load(tmp_path / "ViT.pt")(pixels, tokens), inputs)


def test_a_torchscript_archive_in_half_precision(openai, tmp_path):
    half = OpenAI().half()
    half.load_state_dict(openai.state_dict())
    torch.jit.script(half).save(tmp_path / "ViT.pt")
    ours = read_clip(tmp_path / "ViT.pt")
    assert torch.equal(ours.visual_projection.weight, openai.visual.proj.mT.half().float())
    assert all(parameter.dtype == torch.float32 for parameter in ours.parameters())


def test_of_a_torchscript_archive_nothing_is_built_and_nothing_run(openai, tmp_path, monkeypatch):
    torch.jit.script(openai).save(tmp_path / "ViT.pt")
    monkeypatch.setattr(torch.jit, "load", None)
    content = read_weights(tmp_path / "ViT.pt").content
    assert type(content) is ScriptObject
    assert type(content.state["visual"].state["transformer"]) is ScriptObject
    assert describe_contents(content) == "a TorchScript program, such as OpenAI's CLIP"


@pytest.mark.parametrize("kind", ["pt", "safetensors", "training"])
def test_a_state_dict_of_the_same_names(openai, inputs, tmp_path, kind):
    path, state = tmp_path / "weights", openai.state_dict()
    if kind == "safetensors":
        save_file({key: tensor.contiguous() for key, tensor in state.items()}, path)
    elif kind == "training":  # open_clip's own checkpoints
        torch.save({"epoch": 3, "state_dict": {f"module.{key}": tensor for key, tensor in state.items()}}, path)
    else:
        torch.save(state, path)
    check(read_clip(path), *openai(*inputs), inputs)


def test_a_transformers_folder(folder, inputs):
    pixels, tokens = inputs
    with torch.no_grad():
        theirs = CLIPModel.from_pretrained(folder).eval()(input_ids=tokens, pixel_values=pixels)
    check(read_clip(folder), theirs.image_embeds, theirs.text_embeds, inputs)


def test_a_transformers_folder_with_a_pickle(folder, tmp_path):
    torch.save(load_file(folder / "model.safetensors"), tmp_path / "pytorch_model.bin")
    shutil.copy(folder / "config.json", tmp_path)
    ours, same = read_clip(tmp_path), read_clip(folder)
    assert all(torch.equal(one, other) for one, other in zip(ours.parameters(), same.parameters()))


def test_a_transformers_file_alone_has_heads_of_64(openai, inputs, tmp_path):
    path = tmp_path / "model.safetensors"
    torch.save(openai.state_dict(), tmp_path / "openai.pt")
    ours = read_clip(tmp_path / "openai.pt")
    old = {"text_model.embeddings.position_ids": torch.arange(77)[None]}  # in files of older transformers
    save_file({key: tensor.contiguous() for key, tensor in ours.state_dict().items()} | old, path)
    check(read_clip(path), *openai(*inputs), inputs)


def test_the_bundled_one_takes_its_text_tower_from_the_model_that_generates():
    clip = read_clip(ROOT / "weights" / "emoji-clip.safetensors")
    model = load_file(ROOT / "weights" / "emoji.safetensors")
    key = "text_model.final_layer_norm.weight"
    assert torch.equal(clip.state_dict()[key], model[f"cond_stage_model.transformer.{key}"].float())
    assert (clip.vision_model.image_size, clip.text_model.encoder.layers[0].self_attn.heads) == (128, 3)


def test_one_trained_here_has_the_heads_that_its_two_files_say(pipe, inputs, tmp_path):
    """As `train_scratch.py export` writes them, at sizes of one's own."""
    clip = randomize(CLIP(pipe.clip, CLIPVisionModel(32, 8, width=64, layers=2, heads=2), 48), seed=3)
    pipe.save_pretrained(tmp_path / "own.safetensors")
    rest = {key: tensor for key, tensor in clip.state_dict().items() if not key.startswith("text_model.")}
    sizes = {"vision": {"heads": 2}}
    save_file(rest, tmp_path / "own-clip.safetensors", {"sd_sizes": json.dumps(sizes)})
    pixels, tokens = inputs
    with torch.no_grad():
        check(read_clip(tmp_path / "own-clip.safetensors"), clip.encode_image(pixels), clip.encode_text(tokens), inputs)
    save_file(rest, tmp_path / "own-clip.safetensors", {"sd_sizes": "[]"})
    with pytest.raises(UserError, match="sd_sizes"):
        read_clip(tmp_path / "own-clip.safetensors")


def spoil(state, name):
    """A file's tensors with one thing wrong; the words that the sentence about it must have."""
    if name == "a part missing":
        del state["visual.transformer.resblocks.1.mlp.c_fc.bias"]
        return "vision_model.encoder.layers.1.mlp.fc1.bias"
    if name == "a tower missing":
        for key in [key for key in state if not key.startswith("visual.")]:
            del state[key]
        return "token_embedding"
    if name == "a part too many":
        state["visual.extra.weight"] = torch.zeros(3)
        return "visual.extra.weight"
    if name == "a layer numbered high":
        state["transformer.resblocks.999999999.ln_1.weight"] = torch.zeros(64)
        return "text_model.encoder.layers"
    if name == "another shape":
        state["ln_final.weight"] = torch.zeros(65)
        return "final_layer_norm"
    if name == "another vocabulary":
        state["token_embedding.weight"] = torch.zeros(1000, 64)
        return "vocabulary"
    if name == "a wider tower":
        state["visual.conv1.weight"] = torch.zeros(1280, 3, 8, 8)
        return "larger"
    state["visual.proj"] = torch.zeros(3) if name == "no matrix" else torch.zeros([])
    return "visual_projection" if name == "no matrix" else "shapes"


@pytest.mark.parametrize(
    "name",
    ["a part missing", "a tower missing", "a part too many", "a layer numbered high", "another shape"]
    + ["another vocabulary", "a wider tower", "no matrix", "no dimension"],
)
def test_a_spoilt_file_is_one_sentence(openai, tmp_path, name):
    state = dict(openai.state_dict())
    said = spoil(state, name)
    torch.save(state, tmp_path / "ViT.pt")
    with pytest.raises(UserError, match=said) as caught:
        read_clip(tmp_path / "ViT.pt")
    assert str(caught.value).count("\n") == 0


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"visual.attnpool.positional_embedding": torch.zeros(50, 8)}, "ResNet"),
        ({"text_model.final_layer_norm.weight": torch.zeros(8)}, "a text encoder alone"),
        ({"lora_unet_x.lora_down.weight": torch.zeros(8)}, "a LoRA"),
        ({"something": torch.zeros(8)}, "not a CLIP"),
        ([1, 2], "without weights"),
    ],
)
def test_what_is_no_clip_is_one_sentence(tmp_path, content, said):
    torch.save(content, tmp_path / "file")
    with pytest.raises(UserError, match=said):
        read_clip(tmp_path / "file")


def test_contents_that_hold_themselves_end(tmp_path):
    content = {"a": {}, "b": torch.zeros(1)}
    content["a"]["again"] = content
    torch.save(content, tmp_path / "file")
    with pytest.raises(UserError, match="not a CLIP"):
        read_clip(tmp_path / "file")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "clip_text_model"}, "clip_text_model"),
        ({"text_config": {"hidden_act": "gelu"}}, "gelu"),
        ({"vision_config": {"num_attention_heads": 5}}, "shapes"),
        ({"vision_config": {"num_attention_heads": 0}}, "shapes"),
        ({"text_config": {"num_attention_heads": "8"}}, "shapes"),
    ],
)
def test_a_folder_with_another_config_is_one_sentence(folder, tmp_path, change, said):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(UserError, match=said):
        read_clip(tmp_path)


def test_a_folder_of_something_else_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"config\.json"):
        read_clip(tmp_path)
    with pytest.raises(UserError, match="file not found"):
        read_clip(tmp_path / "nothing")
