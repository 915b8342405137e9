"""IP-Adapters against diffusers' own, with the same random weights; their files, and that nothing of them remains."""

import copy
import json
import re
import shutil

import pytest
import torch
from conftest import UNET
from reference_models import peer_unet, randomize, relative_error
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from sd.checkpoints.diffusers_keys import unet_to_diffusers
from sd.checkpoints.discovery import Models
from sd.checkpoints.model_files import content_of
from sd.control.controlled_unet import ControlledUNet
from sd.control.ip_adapter.files import find_encoder, load_ip_adapter, read_ip_adapter
from sd.control.ip_adapter.image_prompt import ImagePrompt
from sd.control.ip_adapter.kept_encoder import KeptEncoder
from sd.control.ip_adapter.network import (
    FullProjection,
    ImageProjection,
    IPAdapterModel,
    Resampler,
    cross_attentions,
)
from sd.control.reference import Reference
from sd.evaluation.clip_score import BUNDLED_CLIP
from sd.optimization.small_maps.cached_text import cache_text
from sd.pipeline.sampling.tiled_diffusion import TiledUNet
from sd.pipeline.tracing.attention_maps import AttentionMaps, observed
from sd.schedule import SD1_SCHEDULE
from sd.unet import UNetModel
from sd.utils.errors import UserError
from sd.vision.clip_vision import clip_pixels
from sd.vision.image_encoder import ExactGELU, ImageEncoder, load_image_encoder

SIZES = UNET | {"attention_levels": (0, 1)}
CONFIG = dict(SIZES, in_channels=4, out_channels=4, num_heads=8)
TEXT = SIZES["context_dim"]
VISION = dict(hidden_size=48, intermediate_size=192, num_hidden_layers=3, num_attention_heads=4, image_size=28)
VISION |= dict(patch_size=14, projection_dim=40, hidden_act="gelu")
KINDS = {
    "plain": lambda: ImageProjection(40, TEXT),
    "plus": lambda: Resampler(48, TEXT, dim=32, heads=2, depth=4, tokens=5),
    "full": lambda: FullProjection(48, TEXT),
}
CLOSE = 1e-5  # fp32 sums in another order: 1e-6 was seen


@pytest.fixture(scope="module")
def unet():
    return randomize(UNetModel(**SIZES), seed=3).requires_grad_(False)


@pytest.fixture(scope="module")
def peer_encoder():
    return randomize(CLIPVisionModelWithProjection(CLIPVisionConfig(**VISION)), seed=4)


def network_of(unet, kind="plain", seed=5):
    dims = [layer.to_q.in_features for layer in cross_attentions(unet)]
    return randomize(IPAdapterModel(KINDS[kind](), TEXT, dims), seed)


def nested(network):
    """As the original .bin files have it, and diffusers reads it."""
    parts = {"image_proj": {}, "ip_adapter": {}}
    for key, tensor in network.state_dict().items():
        part, _, name = key.partition(".")
        parts[part][name] = tensor.clone()
    return parts


@pytest.fixture(scope="module")
def folder(tmp_path_factory, unet, peer_encoder):
    """An adapter of each kind, in both layouts, with the image encoder beside them as it is published."""
    folder = tmp_path_factory.mktemp("models")
    for kind in KINDS:
        network = network_of(unet, kind)
        save_file(network.state_dict(), folder / f"{kind}.safetensors")
        torch.save(nested(network), folder / f"{kind}.bin")
    save_encoder(peer_encoder, folder / "image_encoder")
    return folder


def save_encoder(peer, folder):
    folder.mkdir()
    tensors = {key: tensor.contiguous() for key, tensor in peer.state_dict().items() if "position_ids" not in key}
    if not any(key.startswith("vision_model.") for key in tensors):
        tensors = {key if "projection" in key else f"vision_model.{key}": tensor for key, tensor in tensors.items()}
    save_file(tensors, folder / "model.safetensors")
    about = peer.config.to_dict() | {"architectures": ["CLIPVisionModelWithProjection"]}
    (folder / "config.json").write_text(json.dumps(about, default=str))


def load(folder, unet, kind, ending=".safetensors"):
    encoder = KeptEncoder(folder / "image_encoder", unet)
    return load_ip_adapter(folder / f"{kind}{ending}", unet, CONFIG, encoder)


@pytest.fixture
def image():
    return torch.rand(1, 3, 40, 56, generator=torch.Generator().manual_seed(6)) * 2 - 1


@pytest.fixture
def call():
    """(x, t, context) of two images of one prompt with guidance: rows without the prompt first."""
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(2, 4, 8, 10, generator=generator).repeat(2, 1, 1, 1)
    return x, torch.full((4,), 501.0), torch.randn(2, 7, TEXT, generator=generator).repeat_interleave(2, dim=0)


def peer_embeds(peer_encoder, kind, pixels):
    """Diffusers' `encode_image`: without the image, then with it; (4, 1, ...) for two images of each."""
    if kind == "plain":
        found = peer_encoder(pixels).image_embeds
        both = torch.cat([torch.zeros_like(found), found])
    else:
        states = [
            peer_encoder(one, output_hidden_states=True).hidden_states[-2] for one in (torch.zeros_like(pixels), pixels)
        ]
        both = torch.cat(states)
    return both.repeat_interleave(2, dim=0)[:, None]


def peer_with(unet, networks, weights):
    peer = peer_unet(unet, unet_to_diffusers, **SIZES)
    peer._load_ip_adapter_weights([nested(network) for network in networks], low_cpu_mem_usage=False)
    for processor in peer.attn_processors.values():
        if hasattr(processor, "scale"):
            processor.scale = list(weights)
    return peer.eval()


@pytest.mark.parametrize("weight", [1.0, 0.6])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_it_is_diffusers(unet, folder, peer_encoder, image, call, kind, weight):
    prompt = ImagePrompt(load(folder, unet, kind).read_image(image), weight)
    ours = ControlledUNet(unet, [prompt], 2)(*call)
    x, t, context = call
    embeds = peer_embeds(peer_encoder, kind, clip_pixels(image, 28))
    peer = peer_with(unet, [network_of(unet, kind)], [weight])
    theirs = peer(x, t, context, added_cond_kwargs={"image_embeds": [embeds]}).sample
    assert relative_error(ours, theirs) < CLOSE
    assert relative_error(unet(*call), theirs) > 1e-2, "the image changes the prediction"


@torch.no_grad()
def test_two_at_once_are_diffusers(unet, folder, peer_encoder, image, call, tmp_path):
    x, t, context = call
    others = image.flip(-1), image
    prompts = [
        ImagePrompt(load(folder, unet, kind).read_image(one), weight)
        for kind, one, weight in zip(("plain", "plus"), others, (0.7, 0.4))
    ]
    networks = [network_of(unet, kind) for kind in ("plain", "plus")]
    embeds = [peer_embeds(peer_encoder, *pair) for pair in zip(("plain", "plus"), (clip_pixels(x, 28) for x in others))]
    theirs = peer_with(unet, networks, [0.7, 0.4])(x, t, context, added_cond_kwargs={"image_embeds": embeds}).sample
    assert relative_error(ControlledUNet(unet, prompts, 2)(*call), theirs) < CLOSE


@torch.no_grad()
def test_without_guidance_all_rows_have_the_image(unet, folder, image, call):
    prompt = ImagePrompt(load(folder, unet, "plain").read_image(image))
    x, t, context = call
    guided = ControlledUNet(unet, [prompt], 2)(*call)
    alone = ControlledUNet(unet, [prompt], 2)(x[2:], t[2:], context[2:])
    assert relative_error(alone, guided[2:]) < CLOSE


@torch.no_grad()
def test_the_unet_is_as_before(unet, folder, image, call):
    prompt = ImagePrompt(load(folder, unet, "plain").read_image(image))
    before, text, plain = {key: one.clone() for key, one in unet.state_dict().items()}, repr(unet), unet(*call)
    kinds = [type(layer) for layer in unet.modules()]
    ControlledUNet(unet, [prompt], 2)(*call)
    with pytest.raises(RuntimeError):
        ControlledUNet(unet, [prompt], 2)(call[0], call[1], call[2][..., :5])
    assert [type(layer) for layer in unet.modules()] == kinds
    assert not any("prompts" in vars(layer) for layer in unet.modules())
    assert repr(unet) == text
    assert all(torch.equal(before[key], one) for key, one in unet.state_dict().items())
    assert torch.equal(unet(*call), plain)


@torch.no_grad()
def test_its_interval_its_weight_and_the_windows(unet, folder, image, call):
    layers = load(folder, unet, "plain").read_image(image)
    assert torch.equal(ControlledUNet(unet, [ImagePrompt(layers, 0.0)], 2)(*call), unet(*call))
    assert torch.equal(ControlledUNet(unet, [ImagePrompt(layers, end=0.2)], 2)(*call), unet(*call))
    assert not torch.equal(ControlledUNet(unet, [ImagePrompt(layers, end=0.6)], 2)(*call), unet(*call))
    tiled = TiledUNet(unet, 8, 0.25, [ImagePrompt(layers)], 2)(*call)
    assert not torch.equal(tiled, TiledUNet(unet, 8, 0.25)(*call))


@torch.no_grad()
def test_it_works_beside_the_patches_of_the_unet_and_a_reference(unet, folder, image, call):
    prompt = ImagePrompt(load(folder, unet, "plain").read_image(image))
    patched = copy.deepcopy(unet)
    cache_text(patched)
    both = [prompt, Reference(torch.randn(1, 8, 8, 10, generator=torch.Generator().manual_seed(1)), SD1_SCHEDULE)]
    for controls in ([prompt], both):
        expected = ControlledUNet(unet, controls, 2)(*call)
        assert relative_error(ControlledUNet(patched, controls, 2)(*call), expected) < CLOSE
    maps = AttentionMaps((8, 10), torch.eye(7))
    with observed(patched, maps):
        maps.row = 0
        ControlledUNet(patched, [prompt], 2)(*call)
    assert maps.layers == sum(layer.to_q.in_features == 32 for layer in cross_attentions(unet))


# Files


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_both_layouts_are_the_same(unet, folder, image, kind):
    layers = [load(folder, unet, kind, ending).read_image(image) for ending in (".safetensors", ".bin")]
    assert all(torch.equal(k, other) for (k, _), (other, _) in zip(*layers))
    assert content_of(folder / f"{kind}.bin").kind == content_of(folder / f"{kind}.safetensors").kind == "ControlNet"


def test_the_sizes_of_the_published_ones():
    """22 million parameters in all, as the paper says of the plain adapter; the keys of h94's files."""
    with torch.device("meta"):
        unet = UNetModel()
        dims = [layer.to_q.in_features for layer in cross_attentions(unet)]
        plain = IPAdapterModel(ImageProjection(1024, 768), 768, dims)
        plus = IPAdapterModel(Resampler(1280, 768), 768, dims)
    keys = set(plain.state_dict())
    assert {f"ip_adapter.{i}.to_k_ip.weight" for i in range(1, 32, 2)} < keys
    assert {"image_proj.proj.weight", "image_proj.proj.bias", "image_proj.norm.weight"} < keys
    assert sum(parameter.numel() for parameter in plain.parameters()) == 22_319_616
    assert plain.state_dict()["ip_adapter.31.to_k_ip.weight"].shape == (1280, 768)
    assert {"image_proj.latents", "image_proj.layers.3.0.to_kv.weight", "image_proj.layers.3.1.3.weight"} < set(
        plus.state_dict()
    )


def test_the_image_encoder_is_transformers(peer_encoder, folder, image):
    ours = load_image_encoder(folder / "image_encoder", torch.device("cpu"), torch.float32)
    pixels = clip_pixels(image, 28)
    with torch.no_grad():
        theirs = peer_encoder(pixels, output_hidden_states=True)
        assert relative_error(ours(pixels), theirs.image_embeds) < CLOSE
        assert relative_error(ours.patch_states(pixels), theirs.hidden_states[-2]) < CLOSE
    as_file = load_image_encoder(folder / "image_encoder" / "model.safetensors", torch.device("cpu"), torch.float32)
    assert torch.equal(as_file(pixels), ours(pixels))
    assert all(isinstance(layer.mlp, ExactGELU) for layer in ours.vision_model.encoder.layers)


def test_the_encoder_is_read_once_and_the_last_image_is_encoded_once(unet, folder, image, monkeypatch):
    adapter = load(folder, unet, "plain")
    first = adapter.read_image(image)
    monkeypatch.setattr("sd.control.ip_adapter.kept_encoder.load_image_encoder", None)
    assert adapter.read_image(image.clone()) is first
    other = adapter.read_image(image.flip(-1))
    monkeypatch.undo()
    expected = load(folder, unet, "plain").read_image(image.flip(-1))
    assert all(torch.equal(a, b) for ours, theirs in zip(other, expected) for a, b in zip(ours, theirs))


def test_the_encoder_of_offloaded_networks_waits_in_main_memory(unet, folder, monkeypatch):
    kept, sent = KeptEncoder(folder / "image_encoder", unet), []
    monkeypatch.setattr(ImageEncoder, "to", lambda self, device: sent.append(device.type) or self)
    monkeypatch.setattr("sd.control.ip_adapter.kept_encoder.is_enabled", lambda unet: True)
    monkeypatch.setattr("sd.control.ip_adapter.kept_encoder.CPU", torch.device("meta"))  # to tell the two places apart
    with kept.ready():
        assert sent == ["cpu"]
    assert sent == ["cpu", "meta"]
    monkeypatch.setattr("sd.control.ip_adapter.kept_encoder.is_enabled", lambda unet: False)
    with kept.ready():
        pass
    assert sent == ["cpu", "meta", "cpu"]


def changed(folder, tmp_path, edit):
    tensors = read_ip_adapter(folder / "plain.safetensors")
    edit(tensors := {key: tensor.clone() for key, tensor in tensors.items()})
    save_file(tensors, tmp_path / "changed.safetensors")
    return tmp_path / "changed.safetensors"


def widen(tensors, width):
    for key in tensors:
        if "to_k_ip" in key:
            tensors[key] = torch.zeros(len(tensors[key]), width)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda tensors: widen(tensors, 2048), "is an IP-Adapter for Stable Diffusion XL"),
        (lambda tensors: widen(tensors, 1024), "is an IP-Adapter for Stable Diffusion 2"),
        (
            lambda tensors: widen(tensors, 768),
            "as it was published .its text has 768 channels",
        ),
        (lambda tensors: tensors.pop("image_proj.proj.weight"), "is not a whole IP-Adapter"),
        (lambda tensors: tensors.pop("image_proj.norm.bias"), r"unknown kind \(image_proj.norm.bias differ"),
        (lambda tensors: tensors.pop("ip_adapter.5.to_k_ip.weight"), "for another U-Net"),
        (
            lambda tensors: tensors.update({"image_proj.proj.0.weight": torch.zeros(8, 8)}),
            "for face identities .FaceID., not supported",
        ),
        (
            lambda tensors: tensors.update({"ip_adapter.0.to_q_lora.down.weight": torch.zeros(8, 8)}),
            "for face identities",
        ),
        (
            lambda tensors: tensors.update({"image_proj.proj.weight": torch.zeros(4 * TEXT, 9)}),
            "reads embeddings of width 9, and those of .* have 40",
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_name(unet, folder, tmp_path, image, edit, said):
    path = changed(folder, tmp_path, edit)
    with pytest.raises(UserError, match=said):
        load_ip_adapter(path, unet, CONFIG, KeptEncoder(folder / "image_encoder", unet)).read_image(image)


def test_what_is_no_ip_adapter_and_no_image_encoder_is_refused(unet, folder, tmp_path, image):
    save_file({"a": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"is no IP-Adapter: give an IP-Adapter for Stable Diffusion 1\.x"):
        read_ip_adapter(tmp_path / "other.safetensors")
    wrong = KeptEncoder(tmp_path / "other.safetensors", unet)
    adapter = load_ip_adapter(folder / "plain.safetensors", unet, CONFIG, wrong)
    with pytest.raises(UserError, match="is no image encoder: give OpenCLIP's ViT-H/14"):
        adapter.read_image(image)
    alone = tmp_path / "model.safetensors"  # without its config.json
    alone.write_bytes((folder / "image_encoder" / "model.safetensors").read_bytes())
    with pytest.raises(UserError, match=r"is not ViT-H/14, and no config\.json"):
        load_image_encoder(alone, torch.device("cpu"), torch.float32)


@pytest.mark.parametrize("value", [torch.zeros(()), torch.zeros(0, 3), torch.zeros(2, 2, 2), torch.zeros(4, dtype=int)])
@pytest.mark.parametrize("kind", [*KINDS, "image_encoder/model"])
def test_a_file_with_any_tensor_replaced_is_one_sentence(unet, folder, tmp_path, kind, value):
    def read(path):
        if kind in KINDS:
            return load_ip_adapter(path, unet, CONFIG, KeptEncoder(folder / "image_encoder", unet))
        return load_image_encoder(path, torch.device("cpu"), torch.float32)

    tensors = load_file(folder / f"{kind}.safetensors")
    shutil.copy(folder / "image_encoder" / "config.json", tmp_path)
    for key in {re.sub(r"\d+", "0", key): key for key in tensors}.values():  # one of each kind
        save_file(tensors | {key: value}, tmp_path / "changed.safetensors")
        with pytest.raises(UserError) as caught:
            read(tmp_path / "changed.safetensors")
        assert "\n" not in str(caught.value)


def test_where_the_image_encoder_is_found(folder, tmp_path):
    models = Models(tmp_path)
    (tmp_path / "controlnet").mkdir()
    adapter = tmp_path / "controlnet" / "plain.safetensors"
    shutil.copy(folder / "plain.safetensors", adapter)

    def found(name=""):
        models.refresh()
        return find_encoder(adapter, name, models, models.find)

    # The bundled model's own CLIP lies in weights/ and is no encoder of an IP-Adapter.
    shutil.copy(BUNDLED_CLIP, tmp_path)
    with pytest.raises(UserError, match=r"download the folder models/image_encoder of h94/IP-Adapter \(2.5 GB\)"):
        found()
    shutil.copytree(folder / "image_encoder", tmp_path / "image_encoders" / "vit-h")
    assert found() == tmp_path / "image_encoders" / "vit-h"
    shutil.copytree(folder / "image_encoder", tmp_path / "other")
    with pytest.raises(UserError, match="name one with encoder=NAME; choose from vit-h, other"):
        found()
    assert found("other") == tmp_path / "other"
    beside = tmp_path / "controlnet" / "image_encoder"
    with pytest.raises(UserError, match="there is no image encoder named image_encoder"):
        found("image_encoder")
    shutil.copytree(folder / "image_encoder", beside)
    assert found() == found("image_encoder") == beside
    assert found("other") == tmp_path / "other"
    shutil.rmtree(beside)
    beside.mkdir()
    projection = {"visual_projection.weight": torch.zeros(1024, 1280, dtype=torch.float16)}
    for key in ("vision_model.post_layernorm.weight", "text_model.final_layer_norm.weight"):
        save_file(projection | {key: torch.zeros(2)}, beside / "model.safetensors")
        assert found() == beside / "model.safetensors"
    shutil.copy(folder / "image_encoder" / "config.json", beside)
    assert found() == beside
