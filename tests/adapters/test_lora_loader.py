"""ΔW from files of every format against peft, diffusers and LyCORIS; our files in their loaders; bad files."""

import copy
import json
import types

import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_diffusers
from make_adapters import (
    SMALL,
    WIDE,
    hollow_v15,
    kohya_tensors,
    largest_error,
    load_in_diffusers,
    networks_of,
    our_deltas,
    peer_deltas,
    peer_layers,
    peers_of,
    write,
)
from peft import LoHaConfig, LoKrConfig, LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from reference_models import relative_error

from sd.adapters.injection import adapter_names, deltas_of, inject, patchable_layers
from sd.adapters.lora_export import save_lora, tensors_hash
from sd.adapters.lora_keys import read_lora
from sd.adapters.lora_loader import load_lora, loaded_adapters, unload
from sd.adapters.variants import LoRA
from sd.utils.errors import UserError

# Sums of a few fp32 products in another order.
EXACT = 1e-6
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]


@pytest.fixture(scope="module")
def wide_originals():
    return networks_of(WIDE)


@pytest.fixture
def wide(wide_originals):
    """Our two networks, with layers of v1-5's shapes."""
    return copy.deepcopy(wide_originals)


@pytest.fixture
def small():
    """The same, small in every respect."""
    return networks_of(SMALL)


def usual_layers(unet, text) -> tuple[dict, dict]:
    """The peers' layers that LoRA and LoCon are of, by the names that kohya's files make of them."""
    text_layers = {f"text_model.{name.removeprefix('text_model.')}": m for name, m in peer_layers(text).items()}
    return peer_layers(unet, ("attentions", "resnets")), text_layers


@pytest.fixture(scope="module")
def wide_layers(wide_originals):
    return usual_layers(*peers_of(WIDE, *wide_originals))


@pytest.fixture(scope="module")
def small_layers():
    return usual_layers(*peers_of(SMALL, *networks_of(SMALL)))


def randomize_adapter(peer, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in peer.named_parameters():
        if any(mark in name for mark in ("lora_", "hada_", "lokr_")):
            noise = torch.randn(parameter.shape, generator=generator)
            is_magnitude = "magnitude" in name
            parameter.data = parameter.data * (1 + 0.1 * noise) if is_magnitude else noise / parameter.shape[-1] ** 0.5
    return peer


def adapted(peer, config, seed=0):
    return randomize_adapter(get_peft_model(peer, config), seed)


def image_inputs(width=64):
    generator = torch.Generator().manual_seed(5)
    return (
        torch.randn(1, 4, 8, 8, generator=generator),
        torch.tensor([500]),
        torch.randn(1, 7, width, generator=generator),
    )


class TestFormats:
    @pytest.mark.parametrize("alpha", [2.0, None])
    def test_kohya(self, wide, wide_layers, tmp_path, alpha):
        path = write(tmp_path / "style.safetensors", kohya_tensors(*wide_layers, alpha=alpha))
        peer_unet, peer_text = peers_of(WIDE, *wide)
        load_in_diffusers(path, peer_unet, peer_text)
        report = load_lora(*wide, path)
        assert largest_error(our_deltas(wide[0], "style"), peer_deltas(peer_unet)) < EXACT
        assert largest_error(our_deltas(wide[1], "style"), peer_deltas(peer_text)) < EXACT
        total = len(wide_layers[0]) + len(wide_layers[1])
        assert (report.matched, report.total, report.unmatched) == (total, total, {})
        assert report.format == "kohya's"
        assert report.scale.startswith("alpha / rank" if alpha else "1,")

    @pytest.mark.parametrize("with_metadata", [True, False])
    def test_diffusers(self, wide, tmp_path, with_metadata):
        """Saved by diffusers' own pipeline; the metadata is where its alpha stands."""
        peers = peers_of(WIDE, *wide)
        targets = [ATTENTION + ["proj_in", "ff.net.2", "conv1"], ["q_proj", "out_proj", "fc1"]]
        adapters = [
            adapted(peer, LoraConfig(r=4, lora_alpha=6 if with_metadata else 4, target_modules=target))
            for peer, target in zip(peers, targets)
        ]
        states = [convert_state_dict_to_diffusers(get_peft_model_state_dict(adapter)) for adapter in adapters]
        states = [{key.removeprefix("base_model.model."): t for key, t in state.items()} for state in states]
        configs = [adapter.peft_config["default"].to_dict() for adapter in adapters] if with_metadata else [None, None]
        StableDiffusionPipeline.save_lora_weights(
            tmp_path,
            unet_lora_layers=states[0],
            text_encoder_lora_layers=states[1],
            unet_lora_adapter_metadata=configs[0],
            text_encoder_lora_adapter_metadata=configs[1],
        )
        report = load_lora(*wide, tmp_path, name="d")  # the folder, as diffusers' users give it
        for network, adapter in zip(wide, adapters):
            assert largest_error(our_deltas(network, "d"), peer_deltas(adapter)) < EXACT
        assert report.matched == report.total
        assert ("lora_adapter_metadata" in report.scale) == with_metadata

    @pytest.mark.parametrize("prefix", ["", "unet."])
    def test_diffusers_attention_processors(self, wide, tmp_path, prefix):
        layers = {name: m for name, m in peer_layers(peers_of(WIDE, *wide)[0]).items() if ".attn" in name}
        tensors = {}
        for key, tensor in kohya_tensors(layers, {}, alpha=None).items():
            name = next(name for name in layers if key.startswith("lora_unet_" + name.replace(".", "_") + "."))
            module, which = name.removesuffix(".0").rsplit(".", 1)
            direction = "down" if "lora_down" in key else "up"
            tensors[f"{prefix}{module}.processor.{which}_lora.{direction}.weight"] = tensor
        path = write(tmp_path / "old.safetensors", tensors)
        torch.save(tensors, tmp_path / "old.bin")
        peer = peers_of(WIDE, *wide)[0]
        plain = {key.removeprefix("unet.").replace(".processor.", "."): tensor for key, tensor in tensors.items()}
        peer.load_lora_adapter(plain, prefix=None, adapter_name="default")
        for name in (path, tmp_path / "old.bin"):
            report = load_lora(*wide, name, name=name.suffix)
            assert (report.matched, report.total) == (len(layers), len(layers))
            assert largest_error(our_deltas(wide[0], name.suffix), peer_deltas(peer)) < EXACT

    def test_text_encoder_of_early_diffusers(self, wide, wide_layers, tmp_path):
        layers = {name: m for name, m in wide_layers[1].items() if "self_attn" in name}
        tensors, expected = {}, {}
        for key, tensor in kohya_tensors({}, layers, alpha=None).items():
            name = next(name for name in layers if key.startswith("lora_te_" + name.replace(".", "_") + "."))
            direction = "down" if "lora_down" in key else "up"
            which = name.rsplit(".", 1)[1].removesuffix("_proj")
            tensors[f"text_encoder.{name.rsplit('.', 1)[0]}.to_{which}_lora.{direction}.weight"] = tensor
            expected.setdefault(name.removeprefix("text_model."), {})[direction] = tensor
        load_lora(*wide, write(tmp_path / "t.safetensors", tensors))
        deltas = {name: pair["up"] @ pair["down"] for name, pair in expected.items()}
        assert largest_error(our_deltas(wide[1], "t"), deltas) < EXACT

    @pytest.mark.parametrize(
        "config",
        [
            LoraConfig(r=4, lora_alpha=6, target_modules=ATTENTION + ["proj_in", "conv1", "time_emb_proj"]),
            LoraConfig(r=4, lora_alpha=6, target_modules=ATTENTION, use_rslora=True),
            LoraConfig(
                r=4,
                lora_alpha=6,
                target_modules=ATTENTION,
                rank_pattern={"attn2.to_k": 2},
                alpha_pattern={"attn2.to_v": 1},
            ),
            LoHaConfig(r=4, alpha=6, target_modules=ATTENTION + ["conv1", "proj_in"]),
            LoHaConfig(r=4, alpha=6, target_modules=["conv1"], use_effective_conv2d=True),
            LoKrConfig(r=4, alpha=6, target_modules=ATTENTION + ["conv1", "proj_in"]),
            LoKrConfig(r=4, alpha=6, target_modules=ATTENTION + ["conv1"], decompose_both=True, decompose_factor=16),
            LoKrConfig(r=4, alpha=6, target_modules=["conv1"], use_effective_conv2d=True),
        ],
        ids=["LoRA", "rsLoRA", "patterns", "LoHa", "LoHa-Tucker", "LoKr", "LoKr-both", "LoKr-Tucker"],
    )
    def test_peft_folder(self, wide, tmp_path, config):
        adapter = adapted(peers_of(WIDE, *wide)[0], config)
        adapter.save_pretrained(tmp_path / "unet")
        report = load_lora(*wide, tmp_path, name="p")
        assert largest_error(our_deltas(wide[0], "p"), peer_deltas(adapter)) < EXACT
        assert report.matched == report.total
        assert report.scale == "alpha / rank, from adapter_config.json"
        unload(*wide)
        load_lora(*wide, tmp_path / "unet" / "adapter_model.safetensors", name="p")  # the settings lie beside it
        assert largest_error(our_deltas(wide[0], "p"), peer_deltas(adapter)) < EXACT

    def test_peft_without_its_settings(self, wide, tmp_path):
        """The weights alone do not say alpha: 1 is assumed, and the report says so."""
        key = "base_model.model.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
        tensors = {f"{key}.lora_A.weight": torch.ones(2, 320), f"{key}.lora_B.weight": torch.ones(320, 2)}
        report = load_lora(*wide, write(tmp_path / "adapter_model.safetensors", tensors))
        assert report.scale.startswith("1, a guess")
        assert torch.equal(next(iter(our_deltas(wide[0], "adapter_model").values())), torch.full((320, 320), 2.0))

    @pytest.mark.parametrize("text", ["{", "[]", '{"r": 2, "lora_alpha": "much"}', '{"r": 2, "alpha_pattern": [1]}'])
    def test_peft_with_bad_settings(self, wide, tmp_path, text):
        key = "base_model.model.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
        tensors = {f"{key}.lora_A.weight": torch.ones(2, 320), f"{key}.lora_B.weight": torch.ones(320, 2)}
        write(tmp_path / "adapter_model.safetensors", tensors)
        (tmp_path / "adapter_config.json").write_text(text)
        with pytest.raises(UserError, match="settings"):
            load_lora(*wide, tmp_path)
        assert loaded_adapters(*wide) == []

    def test_peft_dora(self, wide, tmp_path):
        """peft has no ΔW of a DoRA: what it merges into the weight is compared instead."""
        peer = peers_of(WIDE, *copy.deepcopy(wide))[0]
        weights = {name: layer.weight.clone() for name, layer in peer_layers(peer, ("",)).items()}
        config = LoraConfig(r=4, lora_alpha=6, target_modules=ATTENTION + ["conv1"], use_dora=True)
        adapter = adapted(peer, config)
        adapter.save_pretrained(tmp_path / "unet")
        load_lora(*wide, tmp_path, name="p")
        ours = our_deltas(wide[0], "p")
        adapter.merge_adapter()
        merged = {
            name.removeprefix("base_model.model."): layer.base_layer.weight.detach()
            for name, layer in adapter.named_modules()
            if hasattr(layer, "merge")
        }
        assert largest_error({name: weights[name] + delta for name, delta in ours.items()}, merged) < EXACT

    def test_other_spellings(self, wide, tmp_path):
        """The checkpoint's own names, as some kohya files and ComfyUI have them."""
        layers = patchable_layers(wide[0])
        path = "input_blocks.1.1.transformer_blocks.0.attn2.to_k"
        text = "encoder.layers.0.mlp.fc1"
        down, up = torch.randn(4, 768), torch.randn(320, 4)
        text_up = torch.randn(3072, 4)
        possible_names = {
            "kohya's, layers named as in the checkpoint": (
                f"lora_unet_{path.replace('.', '_')}",
                "lora_te1_text_model_",
            ),
            "ComfyUI's": (f"diffusion_model.{path}", "text_encoders.clip_l.transformer.text_model."),
            "LyCORIS'": (
                "lycoris_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k",
                "lycoris_text_encoder_text_model_",
            ),
        }
        for file_format, (unet_key, text_key) in possible_names.items():
            text_key += text if text_key.endswith(".") else text.replace(".", "_")
            tensors = {
                f"{unet_key}.lora_down.weight": down,
                f"{unet_key}.lora_up.weight": up,
                f"{text_key}.lora_down.weight": down.clone(),
                f"{text_key}.lora_up.weight": text_up,
            }
            file = read_lora(write(tmp_path / "x.safetensors", tensors), *wide)
            assert file.format == file_format
            assert torch.equal(file.deltas["unet"][path].delta(layers[path].weight), up @ down)
            assert file.deltas["clip"][text].delta(wide[1].get_submodule(text).weight).shape == (3072, 768)

    def old_order(self, peer):
        """The order in which cloneofsimo's code met the layers, on diffusers' own tree: down, up, middle."""
        layers = []
        for stage in (*peer.down_blocks, *peer.up_blocks, peer.mid_block):
            for transformer in getattr(stage, "attentions", []):
                for block in transformer.transformer_blocks:
                    for attention in (block.attn1, block.attn2):
                        layers += [attention.to_q, attention.to_k, attention.to_v, attention.to_out[0]]
                        if attention is block.attn1:
                            layers.append(block.ff.net[0].proj)
        return layers

    @pytest.mark.parametrize("container", ["safetensors", "lists"])
    def test_cloneofsimo(self, wide, tmp_path, container):
        peer, text = peers_of(WIDE, *wide)
        ordered = self.old_order(peer)
        attention = next(m for m in text.modules() if type(m).__name__ == "CLIPAttention")
        text_layers = list(attention.children())
        pairs = [(torch.randn(m.weight.shape[0], 2), torch.randn(2, m.weight.shape[1])) for m in ordered]
        text_pairs = [(torch.randn(768, 2), torch.randn(2, 768)) for _ in text_layers]
        if container == "lists":
            path = tmp_path / "lora.pt"
            torch.save([t.half() for pair in pairs for t in pair], path)
            torch.save([t.half() for pair in text_pairs for t in pair], tmp_path / "lora.text_encoder.pt")
            torch.save({"<s1>": torch.ones(768)}, tmp_path / "lora.ti.pt")
            pairs, text_pairs = ([(u.half().float(), d.half().float()) for u, d in p] for p in (pairs, text_pairs))
        else:
            tensors, metadata = {"<s1>": torch.ones(768)}, {"<s1>": "<embed>"}
            for part, found in (("unet", pairs), ("text_encoder", text_pairs)):
                for i, (up, down) in enumerate(found):
                    tensors |= {f"{part}:{i}:up": up, f"{part}:{i}:down": down}
            metadata["unet"] = json.dumps(["CrossAttention", "Attention", "GEGLU"])
            metadata["text_encoder"] = json.dumps(["CLIPAttention"])
            path = write(tmp_path / "lora.safetensors", tensors, metadata)
        report = load_lora(*wide, path)
        names = {id(m): name.removeprefix("text_model.") for net in (peer, text) for name, m in net.named_modules()}
        for network, layers, found in ((wide[0], ordered, pairs), (wide[1], text_layers, text_pairs)):
            expected = {names[id(layer)]: up @ down for layer, (up, down) in zip(layers, found)}
            assert largest_error(our_deltas(network, "lora"), expected) < EXACT
        assert report.matched == report.total == len(ordered) + 4
        assert report.embeddings.keys() == {"<s1>"}
        assert report.unmatched == {}


class TestLyCORIS:
    """Fields of LyCORIS' kinds under kohya's names, against LyCORIS' own functions."""

    LINEAR = "down_blocks_0_attentions_0_transformer_blocks_0_ff_net_0_proj"  # (2560, 320)
    CONV = "down_blocks_0_resnets_0_conv1"  # (320, 320, 3, 3)
    OURS = types.MappingProxyType(
        {LINEAR: "input_blocks.1.1.transformer_blocks.0.ff.net.0.proj", CONV: "input_blocks.1.0.in_layers.2"}
    )
    ALPHA, RANK = 3.0, 4

    def cases(self):
        lycoris = pytest.importorskip("lycoris.functional")
        torch.manual_seed(0)
        r, o, i = self.RANK, 320, 320
        linear = {
            "loha": dict(hada_w1_a=(2560, r), hada_w1_b=(r, i), hada_w2_a=(2560, r), hada_w2_b=(r, i)),
            "lokr": dict(lokr_w1=(16, 16), lokr_w2_a=(160, r), lokr_w2_b=(r, 20)),
            "lokr whole": dict(lokr_w1=(16, 16), lokr_w2=(160, 20)),
            "lokr both": dict(lokr_w1_a=(16, r), lokr_w1_b=(r, 16), lokr_w2_a=(160, r), lokr_w2_b=(r, 20)),
            "full": dict(diff=(2560, 320)),
        }
        conv = {
            "locon": dict(lora_down=(r, i, 3, 3), lora_up=(o, r, 1, 1)),
            "locon tucker": dict(lora_down=(r, i, 1, 1), lora_up=(o, r, 1, 1), lora_mid=(r, r, 3, 3)),
            "loha": dict(hada_w1_a=(o, r), hada_w1_b=(r, i * 9), hada_w2_a=(o, r), hada_w2_b=(r, i * 9)),
            "loha tucker": dict(
                **dict(hada_w1_a=(r, o), hada_w1_b=(r, i), hada_w2_a=(r, o), hada_w2_b=(r, i)),
                **dict(hada_t1=(r, r, 3, 3), hada_t2=(r, r, 3, 3)),
            ),
            "lokr": dict(lokr_w1=(16, 16), lokr_w2_a=(20, r), lokr_w2_b=(r, 20 * 9)),
            "lokr tucker": dict(lokr_w1=(16, 16), lokr_w2_a=(r, 20), lokr_w2_b=(r, 20), lokr_t2=(r, r, 3, 3)),
            "lokr whole": dict(lokr_w1=(16, 16), lokr_w2=(20, 20, 3, 3)),
        }
        for module, kinds in ((self.LINEAR, linear), (self.CONV, conv)):
            for name, shapes in kinds.items():
                yield module, name, {field: torch.randn(shape) / 4 for field, shape in shapes.items()}, lycoris

    def theirs(self, lycoris, name, fields, shape):
        scale = self.ALPHA / self.RANK
        if name.startswith("locon"):
            return lycoris.locon.diff_weight(
                fields["lora_down"], fields["lora_up"], fields.get("lora_mid"), gamma=scale
            ).reshape(shape)
        if name.startswith("loha"):
            order = ("hada_w1_b", "hada_w1_a", "hada_w2_b", "hada_w2_a", "hada_t1", "hada_t2")
            return lycoris.loha.diff_weight(*(fields.get(f) for f in order), gamma=scale).reshape(shape)
        if name.startswith("lokr"):
            order = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")
            fields = dict(fields)
            if "lokr_w2_b" in fields and "lokr_t2" not in fields and len(shape) == 4:
                fields["lokr_w2_b"] = fields["lokr_w2_b"].reshape(self.RANK, -1, 3, 3)  # its functions want it so
            scale = 1.0 if "whole" in name else scale
            return lycoris.lokr.kron_weight(*(fields.get(f) for f in order), scale=scale).reshape(shape)
        return fields["diff"]

    def test_kinds_and_dora(self, wide, tmp_path):
        unet = wide[0]
        count = 0
        for module, name, fields, lycoris in self.cases():
            path = self.OURS[module]
            weight = unet.get_submodule(path).weight
            key = f"lora_unet_{module}"
            tensors = {f"{key}.{f}.weight" if f.startswith("lora_") else f"{key}.{f}": t for f, t in fields.items()}
            tensors[f"{key}.alpha"] = torch.tensor(self.ALPHA)
            delta = self.theirs(lycoris, name, fields, weight.shape)
            patch = read_lora(write(tmp_path / "a.safetensors", tensors), *wide).deltas["unet"][path]
            assert largest_error({name: patch.delta(weight)}, {name: delta}) < EXACT, name
            for on_out in (True, False):  # DoRA over outputs, and as older files have it over inputs
                sizes = [weight.shape[0], 1] if on_out else [1, weight.shape[1]]
                magnitude = torch.rand(sizes + [1] * (weight.dim() - 2)) + 0.5
                dora = tensors | {f"{key}.dora_scale": magnitude}
                patch = read_lora(write(tmp_path / "d.safetensors", dora), *wide).deltas["unet"][path]
                expected = lycoris.general.weight_decompose(weight + delta, magnitude, wd_on_out=on_out)
                assert largest_error({name: weight + patch.delta(weight)}, {name: expected}) < EXACT, name
            count += 1
        assert count == 12

    @pytest.mark.parametrize("module", [LINEAR, CONV])
    def test_rarer_kinds(self, wide, tmp_path, module):
        """GLoRA, IA3 and OFT, each a module of LyCORIS' own whose tensors are written to a file, and read by us."""
        kinds = pytest.importorskip("lycoris.modules")
        torch.manual_seed(0)
        layer = wide[0].get_submodule(self.OURS[module])
        alpha = torch.tensor(self.ALPHA)
        theirs = {
            "glora": kinds.GLoRAModule("x", layer, 1, self.RANK, alpha),
            "ia3 out": kinds.IA3Module("x", layer),
            "ia3 in": kinds.IA3Module("x", layer, train_on_input=True),
            "oft": kinds.DiagOFTModule("x", layer, 1, 16, constraint=0),
            "oft limited": kinds.DiagOFTModule("x", layer, 1, 16, constraint=1e-3),
            "oft rescaled": kinds.DiagOFTModule("x", layer, 1, 16, constraint=0, rescaled=True),
        }
        for name, peer in theirs.items():
            for parameter in peer.parameters():
                parameter.data = torch.randn(parameter.shape) / 4
            tensors = {f"lora_unet_{module}.{field}": tensor for field, tensor in peer.state_dict().items()}
            patch = read_lora(write(tmp_path / "a.safetensors", tensors), *wide).deltas["unet"][self.OURS[module]]
            expected = peer.get_diff_weight()[0].detach().reshape(layer.weight.shape)
            # Inverting I - Q costs OFT a digit.
            assert largest_error({name: patch.delta(layer.weight)}, {name: expected}) < (
                1e-5 if "oft" in name else EXACT
            )
            inject(wide[0], "a", {self.OURS[module]: patch})
            save_lora(tmp_path / "again.safetensors", *wide, "a")
            unload(*wide)
            again = read_lora(tmp_path / "again.safetensors", *wide).deltas["unet"][self.OURS[module]]
            assert torch.equal(again.delta(layer.weight), patch.delta(layer.weight)), name
            if name == "glora":  # older files call the factors by the other number
                swap = {"a1": "a2", "a2": "a1", "b1": "b2", "b2": "b1", "alpha": "alpha"}
                older = {f"lora_unet_{module}.{swap[f]}.weight": t for f, t in patch.fields().items()}
                older[f"lora_unet_{module}.alpha"] = alpha
                patch = read_lora(write(tmp_path / "o.safetensors", older), *wide).deltas["unet"][self.OURS[module]]
                assert largest_error({name: patch.delta(layer.weight)}, {name: expected}) < EXACT
            if name == "oft":  # older files have R itself
                older = {f"lora_unet_{module}.oft_diag": peer.get_r().detach()}
                patch = read_lora(write(tmp_path / "o.safetensors", older), *wide).deltas["unet"][self.OURS[module]]
                assert largest_error({name: patch.delta(layer.weight)}, {name: expected}) < 1e-5

    def test_norms_and_biases(self, wide, tmp_path):
        """W' = W + w_norm, b' = b + b_norm; and `diff_b`."""
        unet, clip = wide
        norm, conv = unet.get_submodule("input_blocks.1.0.in_layers.0"), unet.get_submodule("input_blocks.0.0")
        layer_norm = clip.encoder.layers[0].layer_norm1
        change = {name: torch.randn(size) for name, size in (("w", 320), ("b", 320), ("c", 320), ("l", 768))}
        tensors = {
            "lora_unet_down_blocks_0_resnets_0_norm1.w_norm": change["w"],
            "lora_unet_down_blocks_0_resnets_0_norm1.b_norm": change["b"],
            "lora_unet_conv_in.diff": torch.zeros(320, 4, 3, 3),
            "lora_unet_conv_in.diff_b": change["c"],
            "lora_te_text_model_encoder_layers_0_layer_norm1.b_norm": change["l"],
        }
        x, states = torch.randn(2, 320, 4, 4), torch.randn(2, 5, 768)
        expected_norm = torch.nn.functional.group_norm(
            x, 32, norm.weight + 0.5 * change["w"], norm.bias + 0.5 * change["b"], norm.eps
        )
        expected_conv = conv(x[:, :4]) + 0.5 * change["c"][:, None, None]
        expected_layer = layer_norm(states) + 0.5 * change["l"]
        load_lora(unet, clip, write(tmp_path / "n.safetensors", tensors), strength=0.5)
        # A change of a norm is added to its output and not to its weight: one more rounding of numbers about 4.
        torch.testing.assert_close(norm(x), expected_norm, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(conv(x[:, :4]), expected_conv, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(layer_norm(states), expected_layer, rtol=1e-5, atol=1e-5)


class TestWriting:
    @pytest.mark.parametrize("file_format", ["kohya", "diffusers", "peft"])
    @pytest.mark.parametrize("dora", [False, True])
    def test_peers_read_ours(self, small, small_layers, tmp_path, file_format, dora):
        """The same image from diffusers with our file as from us, and the same from us after reading it again."""
        unet, clip = small
        peer_unet, peer_text = peers_of(SMALL, *copy.deepcopy(small))
        tensors = kohya_tensors(*small_layers)
        if dora:  # diffusers does not read it from kohya's files
            tensors |= {
                f"lora_unet_{name.replace('.', '_')}.dora_scale": torch.full((m.weight.shape[0], 1), 1.5)
                for name, m in small_layers[0].items()
            }
        load_lora(unet, clip, write(tmp_path / "a.safetensors", tensors))
        place = tmp_path / ("out" if file_format == "peft" else "out.safetensors")
        save_lora(place, unet, clip, "a", file_format)
        x, t, context = image_inputs()
        ours = unet(x, t, context)
        states = clip(torch.tensor([[3, 20, 99]]))
        plain = peer_unet(x, t, context).sample.detach()
        assert relative_error(ours, plain) > 0.01
        if file_format == "peft":
            peer_unet = PeftModel.from_pretrained(peer_unet, place / "unet").eval()
            theirs = peer_unet(x, t, context).sample
        elif dora and file_format == "kohya":
            theirs = None
        else:
            load_in_diffusers(place, peer_unet, peer_text)
            theirs = peer_unet(x, t, context).sample
            # Half of a model's text is attention and GELU in fp32; ours and theirs differ by their order of sums.
            assert relative_error(states, peer_text(torch.tensor([[3, 20, 99]])).last_hidden_state) < 1e-5
        if theirs is not None:
            assert relative_error(ours, theirs) < 1e-5
        unload(unet, clip)
        report = load_lora(unet, clip, place, name="again")
        assert report.matched == report.total == len(small_layers[0]) + len(small_layers[1])
        assert relative_error(unet(x, t, context), ours) < 1e-6  # `diffusers` has the scale within `up`

    def test_kohya_keeps_every_kind(self, small, tmp_path):
        """What is read, written and read again has the same ΔW, and its metadata says what it is."""
        unet, clip = small
        key = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
        kinds = {
            "LoHa": {"hada_w1_a": (64, 4), "hada_w1_b": (4, 64), "hada_w2_a": (64, 4), "hada_w2_b": (4, 64)},
            "LoKr": {"lokr_w1": (16, 16), "lokr_w2": (4, 4)},
            "Difference": {"diff": (64, 64), "diff_b": (64,)},
            "DoRA": {"lora_down.weight": (4, 64), "lora_up.weight": (64, 4), "dora_scale": (64, 1)},
        }
        for kind, shapes in kinds.items():
            tensors = {f"{key}.{field}": torch.randn(shape) for field, shape in shapes.items()}
            load_lora(unet, clip, write(tmp_path / "in.safetensors", tensors), name="first")
            save_lora(tmp_path / "out.safetensors", unet, clip, "first", metadata={"ss_output_name": "me"})
            load_lora(unet, clip, tmp_path / "out.safetensors", name="second")
            assert largest_error(our_deltas(unet, "second"), our_deltas(unet, "first")) == 0
            with pytest.raises(UserError, match="kohya"):
                save_lora(
                    tmp_path / "no.safetensors", unet, clip, "first", "diffusers" if kind != "DoRA" else "unheard-of"
                )
            assert not (tmp_path / "no.safetensors").exists()
            unload(unet, clip)
        metadata = read_lora(tmp_path / "out.safetensors", unet, clip).metadata
        assert metadata["ss_output_name"] == "me"
        assert metadata["ss_network_dim"] == "4"
        assert metadata["ss_network_alpha"] == "4.0"
        assert metadata["sshs_model_hash"] == tensors_hash(tmp_path / "out.safetensors")

    def test_half_precision(self, small, small_layers, tmp_path):
        load_lora(*small, write(tmp_path / "a.safetensors", kohya_tensors(*small_layers)))
        save_lora(tmp_path / "h.safetensors", *small, "a", dtype=torch.float16)
        load_lora(*small, tmp_path / "h.safetensors")
        # Two factors, each with fp16's 11 bits.
        assert largest_error(our_deltas(small[0], "h"), our_deltas(small[0], "a")) < 2e-3
        assert (tmp_path / "h.safetensors").stat().st_size < 0.6 * (tmp_path / "a.safetensors").stat().st_size


REAL = {
    "cloneofsimo_lora_disney.safetensors": ("cloneofsimo's, layers by number", 144, 48, {"<s1>", "<s2>"}),
    "cloneofsimo_analog_svd_rank4.safetensors": ("cloneofsimo's, layers by number", 144, 48, set()),
    "diffusers_attnprocs_catundchat.safetensors": ("diffusers' of early 2023", 128, 0, set()),
}


class TestRealFiles:
    @pytest.mark.parametrize("file", REAL)
    def test_counts(self, pytestconfig, file):
        path = pytestconfig.rootpath.parent / "shared" / "data" / "adapters" / file
        if not path.exists():
            pytest.skip("the files that others made are not here")
        unet, clip = hollow_v15()
        file_format, in_unet, in_clip, tokens = REAL[file]
        report = load_lora(unet, clip, path)
        assert report.format == file_format
        assert report.matched == report.total == in_unet + in_clip
        assert len(deltas_of(unet, path.stem)) == in_unet
        assert len(deltas_of(clip, path.stem)) == in_clip
        assert report.embeddings.keys() == tokens
        assert report.unmatched == {}
        assert report.warnings == []
        assert all(size > 0 for size in report.sizes.values())


@pytest.mark.slow
def test_full_key_set(tmp_path):
    """All 264 layers of kohya's usual LoRA at v1-5's own size: ΔW as diffusers and peft have it."""
    from diffusers import UNet2DConditionModel
    from make_adapters import hollow
    from transformers import CLIPTextConfig, CLIPTextModel

    unet, clip = hollow_v15()
    with torch.device("meta"):
        peer = UNet2DConditionModel(cross_attention_dim=768)
        peer_text = CLIPTextModel(CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12))
    hollow(peer), hollow(peer_text)
    text = {f"text_model.{name.removeprefix('text_model.')}": m for name, m in peer_layers(peer_text).items()}
    path = write(tmp_path / "full.safetensors", kohya_tensors(peer_layers(peer), text))
    report = load_lora(unet, clip, path)
    assert report.matched == report.total == 192 + 72
    load_in_diffusers(path, peer)
    theirs = peer_deltas(peer)
    assert largest_error(our_deltas(unet, "full"), theirs) < EXACT


def lora_for(network, rank=2, seed=0, scale=0.1):
    generator = torch.Generator().manual_seed(seed)
    patches = {}
    for path, layer in patchable_layers(network).items():
        if isinstance(layer, (torch.nn.Linear, torch.nn.Conv2d)):
            patch = LoRA.initialize(layer, rank, rank, generator)
            patch.lora_up.data.normal_(0, scale, generator=generator)
            patches[path] = patch
    return patches


class TestInAndOut:
    def test_fifty_times_three(self, small, small_layers, tmp_path):
        """Loading and unloading, in changing orders, leaves every bit, key and class as it was."""
        few = [dict(list(layers.items())[:6]) for layers in small_layers]
        paths = [write(tmp_path / f"{i}.safetensors", kohya_tensors(*few, rank=i + 1)) for i in range(3)]
        before = repr(small)
        for round_ in range(50):
            for path in paths:
                load_lora(*small, path, 0.7, 0.3)
            for i in range(3):
                unload(*small, str((i + round_) % 3))
        assert repr(small) == before
        for network, original in zip(small, networks_of(SMALL)):
            assert network.state_dict().keys() == original.state_dict().keys()
            for key, tensor in original.state_dict().items():
                assert torch.equal(network.state_dict()[key], tensor), key

    def test_own_strengths(self, small, small_layers, tmp_path):
        """Two files at once: W + Σ strength · ΔW, with the text encoder's strength its own."""
        paths = [write(tmp_path / f"{i}.safetensors", kohya_tensors(*small_layers, rank=i + 2)) for i in range(2)]
        layer = small[1].encoder.layers[0].self_attn.q_proj
        x = torch.randn(3, 64)
        expected = layer(x)
        load_lora(*small, paths[0], strength=0.5, text_strength=0.25)
        load_lora(*small, paths[1], strength=-0.5)
        for name, strength in (("0", 0.25), ("1", -0.5)):
            expected = expected + strength * x @ our_deltas(small[1], name)["encoder.layers.0.self_attn.q_proj"].T
        # Three sums of 64 products in another order.
        assert relative_error(layer(x), expected) < 1e-6
        assert loaded_adapters(*small) == ["0", "1"]
        strengths = {patch.strength for patch in deltas_of(small[0], "0").values()}
        assert strengths == {0.5}

    def test_half_precision_base(self, small, small_layers, tmp_path):
        """The adapter stays fp32, and the layer computes in its own dtype."""
        unet, clip = small
        unet.bfloat16()
        load_lora(unet, clip, write(tmp_path / "a.safetensors", kohya_tensors(*small_layers)))
        patches = deltas_of(unet, "a")
        assert {parameter.dtype for patch in patches.values() for parameter in patch.parameters()} == {torch.float32}
        x, t, context = (v.bfloat16() if v.is_floating_point() else v for v in image_inputs())
        half = unet(x, t, context)
        assert half.dtype == torch.bfloat16
        full = unet.float()(x.float(), t, context.float())
        # bf16 has 8 bits: 2^-9 a rounding, some dozens of layers deep.
        assert relative_error(half, full) < 0.05


class TestBadFiles:
    def refused(self, small, path, match):
        """One sentence, and nothing in the networks."""
        with pytest.raises(UserError, match=match) as caught:
            load_lora(*small, path)
        text = str(caught.value)
        assert "\n" not in text
        assert text.endswith(".")
        assert loaded_adapters(*small) == []

    def one(self, module="lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k", width=768, out=320):
        return {f"{module}.lora_down.weight": torch.ones(2, width), f"{module}.lora_up.weight": torch.ones(out, 2)}

    def test_other_models_by_name(self, wide, tmp_path):
        path = tmp_path / "x.safetensors"
        self.refused(wide, write(path, self.one(width=1024)), "Stable Diffusion 2")
        self.refused(wide, write(path, self.one(width=2048)), "Stable Diffusion XL")
        self.refused(wide, write(path, self.one("lora_te2_text_model_encoder_layers_0_mlp_fc1")), "XL")
        te = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
        self.refused(wide, write(path, self.one(te, width=1024)), "Stable Diffusion 2")
        sdxl = "unet.down_blocks.2.attentions.0.transformer_blocks.7.attn1.to_q"
        tensors = {f"{sdxl}.lora_A.weight": torch.ones(2, 1280), f"{sdxl}.lora_B.weight": torch.ones(1280, 2)}
        self.refused(wide, write(path, tensors), "XL")
        self.refused(wide, write(path, self.one("lora_unet_double_blocks_0_img_mlp_0")), "Flux")
        v2 = {"ss_base_model_version": "sd_v2_v"}
        self.refused(wide, write(path, self.one(), v2), "Stable Diffusion 2")
        loha = {"lora_unet_up_blocks_0_attentions_0_transformer_blocks_0_attn2_to_v.hada_w1_b": torch.ones(2, 1024)}
        self.refused(wide, write(path, loha), "Stable Diffusion 2")

    def test_this_model_is_another(self, small, tmp_path):
        """A LoRA for v1-5, and a model of our own with narrower text."""
        path = write(tmp_path / "x.safetensors", self.one())
        self.refused(small, path, "Stable Diffusion 1, whose text is 768 wide; this model's text is 64 wide")

    def test_not_an_adapter(self, small, tmp_path):
        path = tmp_path / "x.safetensors"
        self.refused(small, tmp_path / "none.safetensors", "file not found")
        self.refused(small, write(path, {"emb_params": torch.ones(1, 768)}), "textual inversion")
        self.refused(small, write(path, {"encoder.conv_in.weight": torch.ones(1)}), "no LoRA")
        self.refused(small, write(path, {"lora_unet_conv_in.oft_blocks": torch.ones(2, 2, 2, 2)}), "BOFT")
        self.refused(small, write(path, {"model.norm.weight": torch.ones(2)}), "no LoRA")
        self.refused(small, tmp_path / "folder", "file not found")
        (tmp_path / "folder").mkdir()
        self.refused(small, tmp_path / "folder", "no files")
        torch.save({"step": 3}, tmp_path / "x.pt")
        self.refused(small, tmp_path / "x.pt", "no LoRA")
        torch.save([torch.ones(320, 2)], tmp_path / "x.pt")
        self.refused(small, tmp_path / "x.pt", "pairs")

    def test_damaged(self, small, small_layers, tmp_path):
        path = write(tmp_path / "x.safetensors", kohya_tensors(*small_layers))
        whole = path.read_bytes()
        for size in (0, 5, 1000, len(whole) - 1):
            path.write_bytes(whole[:size])
            self.refused(small, path, "empty|damaged|cut short")
        broken = kohya_tensors(*small_layers)
        next(iter(broken.values()))[0, 0] = float("nan")
        self.refused(small, write(path, broken), "NaN or infinite")

    def test_a_pickle_that_calls(self, small, tmp_path):
        class Call:
            def __reduce__(self):
                return print, ("called",)

        torch.save({"lora_unet_conv_in.lora_up.weight": Call()}, tmp_path / "x.pt")
        self.refused(small, tmp_path / "x.pt", "print")

    def test_fits_nothing(self, wide, tmp_path):
        path = tmp_path / "x.safetensors"
        self.refused(wide, write(path, self.one("lora_unet_down_blocks_9_attentions_0_proj_in")), "fits no layer")
        self.refused(wide, write(path, self.one(out=64)), "another shape")
        self.refused(wide, write(path, {"unet:0:up": torch.ones(320, 1), "unet:0:down": torch.ones(1, 320)}), "numbers")

    def test_half_matching(self, small, small_layers, tmp_path):
        """What fits is loaded, and each key that does not is named with its reason."""
        tensors = kohya_tensors(*small_layers)
        wrong = self.one("lora_unet_down_blocks_7_attentions_0_proj_in")
        half = {"lora_unet_conv_out.lora_up.weight": torch.ones(4, 2, 1, 1)}
        odd = {"something.else": torch.ones(1)}
        report = load_lora(*small, write(tmp_path / "x.safetensors", tensors | wrong | half | odd))
        fits = len(small_layers[0]) + len(small_layers[1])
        assert (report.matched, report.total) == (fits, fits + 2)
        assert report.unmatched.keys() == wrong.keys() | half.keys() | odd.keys()
        assert report.unmatched["lora_unet_conv_out.lora_up.weight"] == "lora_up alone"
        assert all(key in str(report) for key in report.unmatched)
        assert report.warnings == ["2 of its layers are left out, so it does less than it should"]

    def test_all_zero(self, small, small_layers, tmp_path):
        tensors = {key: t * (0 if "lora_up" in key else 1) for key, t in kohya_tensors(*small_layers).items()}
        report = load_lora(*small, write(tmp_path / "x.safetensors", tensors))
        assert len(report.warnings) == 1
        assert "zero" in report.warnings[0]
        assert "warning: every change" in str(report)

    def test_name_in_use(self, small, small_layers, tmp_path):
        path = write(tmp_path / "x.safetensors", kohya_tensors(*small_layers))
        load_lora(*small, path)
        before = {name: len(deltas_of(network, "x")) for name, network in zip("uc", small)}
        with pytest.raises(UserError, match="loaded already"):
            load_lora(*small, path)
        inject(small[1], "y", lora_for(small[1]))
        with pytest.raises(UserError, match="loaded already"):
            load_lora(*small, path, name="y")
        assert adapter_names(small[0]) == ["x"]
        assert before == {name: len(deltas_of(network, "x")) for name, network in zip("uc", small)}
        with pytest.raises(UserError, match="loaded are x, y"):
            unload(*small, "z")


def test_report_text(small, small_layers, tmp_path):
    report = load_lora(*small, write(tmp_path / "style.safetensors", kohya_tensors(*small_layers)), 0.8, 0.5)
    lines = str(report).splitlines()
    count = len(small_layers[0]) + len(small_layers[1])
    assert lines[0].startswith(f"style: {count} of {count} layers matched ({count} LoRA of rank 4)")
    assert lines[1].startswith("  U-Net: strength 0.8, |ΔW|/|W| = ")
    assert lines[2].startswith("  text encoder: strength 0.5, |ΔW|/|W| = ")
    deltas, layers = our_deltas(small[0], "style"), patchable_layers(small[0])
    change = sum(delta.norm().item() ** 2 for delta in deltas.values())
    weight = sum(layers[path].weight.norm().item() ** 2 for path in deltas_of(small[0], "style"))
    assert report.sizes["unet"] == pytest.approx((change / weight) ** 0.5, rel=1e-4)  # fp32 sums of millions of squares


def test_the_report_shows_how_its_maker_means_it_to_be_used(small, small_layers, tmp_path):
    tensors = kohya_tensors(*small_layers)
    write(tmp_path / "turbo.safetensors", tensors, {"modelspec.usage_hint": "4 steps\nof lcm\t" + "x" * 500})
    report = load_lora(*small, tmp_path / "turbo.safetensors")
    assert report.usage == "4 steps of lcm " + "x" * 185  # one line of 200 characters
    assert f"  usage: {report.usage}" in str(report).splitlines()
    write(tmp_path / "plain.safetensors", tensors)
    assert "usage" not in str(load_lora(*small, tmp_path / "plain.safetensors"))
