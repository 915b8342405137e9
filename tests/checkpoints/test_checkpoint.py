"""Checkpoints in, out, and refused: values first, then every format, then every wrong file."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from make_full_checkpoint import PREFIXES, SCHEDULE, SMALL, lightning_checkpoint, random_weights

from sd.checkpoints import diffusers_keys
from sd.checkpoints.checkpoint import (
    load_models,
    read_checkpoint,
    read_checkpoint_file,
    save_checkpoint,
    summarize_keys,
)
from sd.checkpoints.config import fill_defaults
from sd.checkpoints.diffusers_format import write_configs
from sd.utils.errors import UserError

U, V, C = PREFIXES["unet"], PREFIXES["vae"], PREFIXES["clip"]


@pytest.fixture(scope="module")
def weights():
    return random_weights(SMALL)


@pytest.fixture(scope="module")
def file(weights, tmp_path_factory):
    """A small checkpoint as Lightning saved v1-5."""
    path = tmp_path_factory.mktemp("weights") / "model.ckpt"
    torch.save(lightning_checkpoint(weights), path)
    return path


def everything(clip, vae, unet):
    """The networks' tensors under the checkpoint's names."""
    parts = {U: unet, V: vae, C: clip}
    return {prefix + key: tensor for prefix, part in parts.items() for key, tensor in part.state_dict().items()}


def assert_loads(path, weights, dtype=None):
    """Every tensor arrives where its name says, bit for bit."""
    *networks, checkpoint = load_models(path)
    found = everything(*networks)
    assert found.keys() == weights.keys()
    for key, tensor in weights.items():
        assert found[key].dtype == (dtype or tensor.dtype)
        assert torch.equal(found[key], tensor.to(found[key].dtype)), key
    return checkpoint


def test_the_published_layout(file, weights):
    checkpoint = assert_loads(file, weights)
    assert checkpoint.kind == "ckpt"
    assert checkpoint.config == fill_defaults(SMALL, "here")
    assert checkpoint.metadata == {}
    assert set(checkpoint.ignored) == {
        *SCHEDULE,
        "model_ema.decay",
        "model_ema.num_updates",
        C + "embeddings.position_ids",
    }


def test_reading_touches_no_weight(file, weights):
    checkpoint = read_checkpoint(file)
    start = checkpoint.files[0].address
    for prefix, part in {U: checkpoint.unet, V: checkpoint.vae, C: checkpoint.clip}.items():
        for key, tensor in part.items():
            assert 0 < tensor.data_ptr() - start < file.stat().st_size
            assert torch.equal(tensor, weights[prefix + key])


def test_needs_no_lightning(file):
    program = (
        "from sd.checkpoints.checkpoint import load_models; import sys; "
        f"load_models({str(file)!r}); print(*sys.modules)"
    )
    root = Path(__file__).resolve().parents[2]
    modules = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True
    ).stdout
    assert "sd.checkpoints.checkpoint" in modules.split()
    assert not {"pytorch_lightning", "diffusers", "transformers"} & set(modules.split())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("suffix", ["ckpt", "safetensors"])
def test_dtypes(tmp_path, weights, dtype, suffix):
    path, state = tmp_path / f"model.{suffix}", {key: tensor.to(dtype) for key, tensor in weights.items()}
    if suffix == "ckpt":
        torch.save({"state_dict": state}, path)
    else:
        safetensors.torch.save_file(state, path)
    assert_loads(path, state, dtype=torch.float32 if dtype == torch.float64 else None)
    *networks, _ = load_models(path, dtype=torch.bfloat16)
    for key, tensor in everything(*networks).items():
        assert torch.equal(tensor, state[key].bfloat16())


def test_contents_decide_and_not_the_name(tmp_path, weights, file):
    safetensors.torch.save_file(weights, tmp_path / "model.ckpt")
    assert assert_loads(tmp_path / "model.ckpt", weights).kind == "safetensors"
    (tmp_path / "model.safetensors").write_bytes(file.read_bytes())
    assert assert_loads(tmp_path / "model.safetensors", weights).kind == "ckpt"


def without_text_model(state):
    return {key.replace(".text_model.", "."): tensor for key, tensor in state.items()}


IDS = C + "embeddings.position_ids"
FORMATS = {
    "no state_dict": lambda state: state,
    "no state_dict, counters beside": lambda state: {"epoch": 3, "global_step": 7, **state},
    "nested twice": lambda state: {"state_dict": {"state_dict": state}},
    "no text_model.": lambda state: {"state_dict": without_text_model(state)},
    "no text_model., with position_ids": lambda state: without_text_model(state | {IDS: torch.arange(77)[None]}),
    "position_ids in fp16 and wrong": lambda state: {"state_dict": state | {IDS: torch.full((1, 77), 3.5).half()}},
    "EMA copies": lambda state: state | {"model_ema.diffusion_modelinput_blocks00weight": torch.zeros(3)},
    "named leftovers": lambda state: state | dict.fromkeys(["logvar", "denoiser.sigmas"], torch.zeros(3)),
    "a whole CLIP": lambda state: state | {"cond_stage_model.transformer.text_projection.weight": torch.zeros(3)},
}


@pytest.mark.parametrize("file_format", FORMATS)
def test_merges(tmp_path, weights, file_format):
    torch.save(FORMATS[file_format](weights), tmp_path / "merge.ckpt")
    assert_loads(tmp_path / "merge.ckpt", weights)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_half_precision_merge_in_either_container(tmp_path, weights, zipped):
    state = {key: tensor.half() for key, tensor in weights.items()}
    torch.save(state, tmp_path / "merge.pt", _use_new_zipfile_serialization=zipped)
    assert_loads(tmp_path / "merge.pt", state)


@pytest.mark.parametrize(
    "sizes",
    [
        {"unet": SMALL["unet"] | {"in_channels": 9}},
        {"unet": SMALL["unet"] | {"channel_mult": [1, 2, 2], "num_res_blocks": 2, "attention_levels": [0, 2]}},
        {"unet": SMALL["unet"] | {"channel_mult": [1], "attention_levels": [0]}},
        {"unet": SMALL["unet"] | {"attention_levels": [], "out_channels": 8}},
        {"vae": {"channels": 32, "channel_mult": [1, 2, 3], "num_res_blocks": 2, "z_channels": 8}},
        {"clip": {"width": 128, "layers": 3, "heads": 2, "vocab_size": 60, "max_length": 20}},
    ],
    ids=str,
)
def test_sizes_are_read_off_the_shapes(tmp_path, sizes):
    state = random_weights(SMALL | sizes)
    safetensors.torch.save_file(state, tmp_path / "model.safetensors")
    assert assert_loads(tmp_path / "model.safetensors", state).config == fill_defaults(SMALL | sizes, "here")


def test_sizes_that_no_shape_tells_come_from_the_file(tmp_path, weights):
    sizes = SMALL | {"unet": SMALL["unet"] | {"num_heads": 4}, "clip": SMALL["clip"] | {"heads": 4}, "image_size": 64}
    torch.save({"state_dict": weights, "sd_sizes": sizes}, tmp_path / "model.ckpt")
    safetensors.torch.save_file(weights, tmp_path / "model.safetensors", {"sd_sizes": json.dumps(sizes)})
    for name in ("model.ckpt", "model.safetensors"):
        clip, _, unet, checkpoint = load_models(tmp_path / name)
        assert checkpoint.config == fill_defaults(sizes, "here")
        assert clip.encoder.layers[0].self_attn.heads == 4
        assert unet.middle_block[1].transformer_blocks[0].attn1.heads == 4


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_loaded_weights_can_be_trained_and_the_file_does_not_change(file, dtype):
    before = file.read_bytes()
    *networks, _ = load_models(file, dtype)
    for network in networks:
        assert not network.training
        assert all(parameter.requires_grad for parameter in network.parameters())
        torch.optim.SGD(network.parameters(), lr=1.0)
        for parameter in network.parameters():
            parameter.data.add_(1)
    assert file.read_bytes() == before


# Out again


@pytest.mark.parametrize("name", ["out.ckpt", "out.safetensors", "folder"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_round_trip_through_each_kind_is_exact(tmp_path, file, weights, name, dtype):
    clip, vae, unet, checkpoint = load_models(file, dtype)
    kind = save_checkpoint(tmp_path / name, clip, vae, unet, checkpoint.config, {"note": 'ünïcode, and a "quote"'})
    again = assert_loads(tmp_path / name, {key: tensor.to(dtype) for key, tensor in weights.items()})
    assert again.kind == kind
    assert again.config == checkpoint.config | ({} if kind != "diffusers" else {"image_size": 512})
    if kind != "diffusers":
        assert again.metadata == {"note": 'ünïcode, and a "quote"'}
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [name]


def test_other_libraries_read_our_files(tmp_path, file, weights):
    clip, vae, unet, checkpoint = load_models(file)
    save_checkpoint(tmp_path / "out.ckpt", clip, vae, unet, checkpoint.config)
    save_checkpoint(tmp_path / "out.safetensors", clip, vae, unet, checkpoint.config)
    theirs = {
        "ckpt": torch.load(tmp_path / "out.ckpt", weights_only=True)["state_dict"],
        "safetensors": safetensors.torch.load_file(tmp_path / "out.safetensors"),
    }
    for state in theirs.values():
        assert torch.equal(state.pop(IDS), torch.arange(77)[None])
        assert state.keys() == weights.keys()
        assert all(torch.equal(state[key], weights[key]) for key in weights)


def test_layouts_other_than_plain_are_written_as_plain(tmp_path, file, weights):
    clip, vae, unet, checkpoint = load_models(file)
    unet.to(memory_format=torch.channels_last)
    for name in ("out.ckpt", "out.safetensors"):
        save_checkpoint(tmp_path / name, clip, vae, unet, checkpoint.config)
        assert_loads(tmp_path / name, weights)


def test_saving_over_the_file_that_is_loaded(tmp_path, file, weights):
    path = tmp_path / "model.ckpt"
    path.write_bytes(file.read_bytes())
    clip, vae, unet, checkpoint = load_models(path)
    save_checkpoint(path, clip, vae, unet, checkpoint.config)
    assert_loads(path, weights)
    assert all(torch.equal(tensor, weights[key]) for key, tensor in everything(clip, vae, unet).items())


@pytest.mark.parametrize("name", ["out.ckpt", "out.safetensors", "folder"])
def test_a_full_disk_leaves_what_was_there(tmp_path, file, weights, name):
    """A process that may write no file above 1 MB stands for a disk that is full: the system refuses alike."""
    program = (
        "import resource\nfrom sd.checkpoints.checkpoint import load_models, save_checkpoint\n"
        "from sd.utils.errors import UserError\n"
        f"clip, vae, unet, found = load_models({str(file)!r})\n"
        f"save_checkpoint({str(tmp_path / name)!r}, clip, vae, unet, found.config)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, -1))\n"
        f"try: save_checkpoint({str(tmp_path / name)!r}, clip, vae, unet, found.config, {{'note': 'second'}})\n"
        "except UserError as error: print(error)\n"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "could not be written: File too large; what was there before is unchanged." in done.stdout
    assert assert_loads(tmp_path / name, weights).metadata == {}
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


def test_places_that_cannot_be_written(tmp_path, file):
    clip, vae, unet, checkpoint = load_models(file)
    (tmp_path / "a file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "diary.txt").write_text("mine")
    (tmp_path / "folder.ckpt").mkdir()
    for name in ("a file/model.ckpt", "a file", "folder", "folder.ckpt"):
        with pytest.raises(UserError, match=r"could not be written|folder with other things"):
            save_checkpoint(tmp_path / name, clip, vae, unet, checkpoint.config)
    assert (tmp_path / "a file").read_text() == "mine"
    assert (tmp_path / "folder" / "diary.txt").read_text() == "mine"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a file", "folder", "folder.ckpt"]


def test_a_missing_folder_is_made(tmp_path, file, weights):
    clip, vae, unet, checkpoint = load_models(file)
    save_checkpoint(tmp_path / "new" / "one" / "model.safetensors", clip, vae, unet, checkpoint.config)
    assert_loads(tmp_path / "new" / "one" / "model.safetensors", weights)


# Strictly


def changed(weights, **changes):
    """`weights` with keys taken out (None) or put in; the names' dots are written as __."""
    state = dict(weights)
    for key, tensor in changes.items():
        key = key.replace("__", ".")
        if tensor is None:
            del state[key]
        else:
            state[key] = tensor
    return state


V_QUANT, U_OUT, C_NORM = V + "quant_conv.bias", U + "out.2.bias", C + "final_layer_norm.bias"
MISFITS = {
    "lacks quant_conv.bias": {V_QUANT: None},
    "the U-Net lacks out.2.bias": {U_OUT: None},
    "lacks final_layer_norm.bias": {C_NORM: None},
    "has input_blocks.9.0.extra": {U + "input_blocks.9.0.extra": torch.zeros(2)},
    "the U-Net has label_emb.0.0.weight": {U + "label_emb.0.0.weight": torch.zeros(2)},
    "the VAE has decoder.extra": {V + "decoder.extra": torch.zeros(2)},
    "the text encoder has encoder.layers.0.mlp.fc1.lora_A.weight": {
        C + "encoder.layers.0.mlp.fc1.lora_A.weight": torch.zeros(2)
    },
    "quant_conv.bias [5] instead of [8]": {V_QUANT: torch.zeros(5)},
    "out.2.bias [4, 1] instead of [4]": {U_OUT: torch.zeros(4, 1)},
    "integers in out.2.bias": {U_OUT: torch.zeros(4, dtype=torch.int8)},
}


@pytest.mark.parametrize("message", MISFITS)
@pytest.mark.parametrize("kind", ["ckpt", "safetensors"])
def test_keys_that_do_not_fit_are_named(tmp_path, weights, message, kind):
    state = {key: tensor for key, tensor in (weights | MISFITS[message]).items() if tensor is not None}
    path = tmp_path / f"model.{kind}"
    torch.save(state, path) if kind == "ckpt" else safetensors.torch.save_file(state, path)
    with pytest.raises(UserError) as caught:
        load_models(path)
    assert message in str(caught.value)


def test_many_keys_are_counted(tmp_path, weights):
    state = {key: tensor for key, tensor in weights.items() if ".middle_block." not in key}
    torch.save(
        state | {U + "middle_block.1.transformer_blocks.0.attn2.to_k.weight": torch.zeros(1, 64)}, tmp_path / "a"
    )
    with pytest.raises(UserError, match=r"lacks middle_block.0.in_layers.0.weight, .*, .* and \d+ more"):
        load_models(tmp_path / "a")


@pytest.mark.parametrize("gone", ["input_blocks.0.0.weight", "out.2.weight", "input_blocks.1.0.out_layers.3.weight"])
def test_a_key_that_the_sizes_are_read_from(tmp_path, weights, gone):
    torch.save({key: tensor for key, tensor in weights.items() if key != U + gone}, tmp_path / "model.ckpt")
    with pytest.raises(UserError, match="is not a whole Stable Diffusion"):
        load_models(tmp_path / "model.ckpt")


BAD_SIZES = ["no JSON", "[]", '{"unet": 3}', '{"unet": {"depth": 3}}', '{"unet": {"model_channels": "x"}}', "{}"]


@pytest.mark.parametrize("sizes", [*BAD_SIZES, '{"unet": {"model_channels": -3}}', '{"unet": {"channel_mult": []}}'])
def test_sizes_that_cannot_be(tmp_path, weights, sizes):
    safetensors.torch.save_file(weights, tmp_path / "model.safetensors", {"sd_sizes": sizes})
    with pytest.raises(UserError):
        load_models(tmp_path / "model.safetensors")


# What is left out, and what never is

EXTRA = {
    "scale_factor": ["scale_factor"],
    "first_stage_model.loss.logvar": ["first_stage_model.loss.logvar"],
    "a loss network": [V + "loss.discriminator.main.0.weight", V + "loss.perceptual_loss.lin0.model.1.weight"],
    "a safety checker": ["safety_checker.concept_embeds", "safety_checker.vision_model.post_layernorm.bias"],
    "leftovers of a merge": ["lora_unet_mid_block_attentions_0_proj_in.alpha", "mystery.weight", "epoch_of_merge"],
    "parts of CLIP": ["cond_stage_model.extra", C + "extra", C + "embeddings.extra"],
    "a vision tower": ["cond_stage_model.transformer.vision_model.post_layernorm.bias"],
}


@pytest.mark.parametrize("what", EXTRA)
@pytest.mark.parametrize("kind", ["ckpt", "safetensors"])
def test_an_extra_tensor_is_left_out_and_named_once(tmp_path, weights, what, kind):
    state, path = weights | dict.fromkeys(EXTRA[what], torch.tensor(1.0)), tmp_path / f"model.{kind}"
    if kind == "ckpt":
        torch.save(state, path)
    else:
        safetensors.torch.save_file({key: tensor.clone() for key, tensor in state.items()}, path)
    checkpoint = assert_loads(path, weights)
    assert checkpoint.warnings == [
        f"model.{kind} has entries that no Stable Diffusion 1.x uses, which are left out: "
        f"{summarize_keys(sorted(EXTRA[what]))}."
    ]
    assert set(checkpoint.ignored) == set(EXTRA[what])
    assert assert_loads(path, weights).ignored == checkpoint.ignored


def test_a_plain_checkpoint_has_nothing_to_say(file):
    assert read_checkpoint(file).warnings == []


@pytest.mark.parametrize(("channels", "said"), [(8, "an instruct-pix2pix model"), (5, "takes 5 channels"), (7, "7")])
@pytest.mark.parametrize("is_folder", [False, True])
def test_a_unet_of_other_channels_is_refused_by_name(tmp_path, channels, said, is_folder):
    sizes = SMALL | {"unet": SMALL["unet"] | {"in_channels": channels}}
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(random_weights(sizes), path)
    if is_folder:
        path = tmp_path / "folder"
        write_configs(path, fill_defaults(sizes, "here"))
        from_file = read_checkpoint_file(tmp_path / "model.safetensors")
        tensors = {
            "unet": diffusers_keys.unet_to_diffusers(from_file.unet),
            "vae": diffusers_keys.vae_to_diffusers(from_file.vae),
        }
        for part, folder in (("unet", "unet"), ("vae", "vae")):
            safetensors.torch.save_file(tensors[part], path / folder / "diffusion_pytorch_model.safetensors")
        safetensors.torch.save_file(from_file.clip, path / "text_encoder" / "model.safetensors")
    with pytest.raises(UserError) as caught:
        load_models(path)
    assert said in str(caught.value)
    assert str(caught.value).endswith("give a whole Stable Diffusion 1.x checkpoint.")


# Wrong files

LOW_RANK = torch.zeros(4, 320)
WRONG = {
    "Stable Diffusion 2": {
        U + "out.2.weight": LOW_RANK,
        V + "a": LOW_RANK,
        "cond_stage_model.model.ln_final.bias": LOW_RANK,
    },
    "Stable Diffusion XL": {U + "a": LOW_RANK, V + "a": LOW_RANK, "conditioner.embedders.0.transformer.a": LOW_RANK},
    "Stable Diffusion 3": {"model.diffusion_model.joint_blocks.0.a": LOW_RANK, V + "a": LOW_RANK},
    "Flux": {"double_blocks.0.img_attn.qkv.weight": LOW_RANK},
    "a LoRA": {"lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight": LOW_RANK},
    "a LoRA ": {"unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora.down.weight": LOW_RANK},
    "a LoRA  ": {"base_model.model.down_blocks.0.attn1.to_q.lora_A.weight": LOW_RANK},
    "a LoRA   ": {"unet:0:up": LOW_RANK, "unet:0:down": LOW_RANK},
    "a textual inversion embedding": {"string_to_param": {"*": torch.zeros(2, 768)}, "name": "x"},
    "a textual inversion embedding ": {"<cat-toy>": torch.zeros(768)},
    "a textual inversion embedding  ": {"emb_params": torch.zeros(3, 768)},
    "a VAE alone": {"encoder.conv_in.weight": LOW_RANK, "decoder.conv_in.weight": LOW_RANK},
    "a U-Net alone": {"input_blocks.0.0.weight": LOW_RANK},
    "a U-Net alone ": {"down_blocks.0.resnets.0.conv1.weight": LOW_RANK},
    "a text encoder alone": {"text_model.final_layer_norm.weight": LOW_RANK},
    "a ControlNet": {"control_model.input_blocks.0.0.weight": LOW_RANK},
    "a VAE alone ": {V + "encoder.conv_in.weight": LOW_RANK},
    "without the text encoder": {U + "out.2.weight": LOW_RANK, V + "encoder.conv_in.weight": LOW_RANK},
    "without the U-Net and the VAE and the text encoder": {"0.weight": LOW_RANK, "1.weight": LOW_RANK},
    "a LoRA    ": [torch.zeros(320, 4), torch.zeros(4, 320)],
    "a LoRA for Stable Diffusion 2": [torch.zeros(320, 4), torch.zeros(4, 1024)],
    "a LoRA for Stable Diffusion XL": [torch.zeros(640, 4), torch.zeros(4, 2048)],
    "a LoRA     ": {"unet.mid_block.attentions.0.proj_in.lora_A.dog.weight": LOW_RANK},
    "Stable Diffusion 2, for inpainting": {
        U + "input_blocks.0.0.weight": torch.zeros(1, 9, 3, 3),
        "cond_stage_model.model.ln_final.bias": LOW_RANK,
    },
    "Stable Diffusion 2, with a depth map": {
        U + "input_blocks.0.0.weight": torch.zeros(1, 5, 3, 3),
        "cond_stage_model.model.ln_final.bias": LOW_RANK,
    },
    "a Stable Diffusion XL refiner": {U + "a": LOW_RANK, "conditioner.embedders.0.model.ln_final.bias": LOW_RANK},
    "Flux ": {"model.diffusion_model.double_blocks.0.img_attn.qkv.weight": LOW_RANK},
    "Flux  ": {"single_transformer_blocks.0.proj_out.weight": LOW_RANK},
    "PixArt": {"y_embedder.y_embedding": LOW_RANK},
    "Stable Cascade": {"clip_txt_mapper.weight": LOW_RANK},
    "a hypernetwork": {768: ({"linear.0.weight": LOW_RANK},), 320: ({"linear.0.weight": LOW_RANK},), "step": 3},
    "an IP-Adapter": {"image_proj": {"proj.weight": LOW_RANK}, "ip_adapter": {"1.to_k_ip.weight": LOW_RANK}},
    "a T2I-Adapter": {"body.0.block1.weight": LOW_RANK, "conv_in.weight": LOW_RANK},
    "a ControlNet ": {"controlnet_cond_embedding.conv_in.weight": LOW_RANK, "down_blocks.0.a": LOW_RANK},
    "a ControlNet  ": {U + "a": LOW_RANK, V + "a": LOW_RANK, C + "a": LOW_RANK, "control_model.a": LOW_RANK},
    "an upscaler": {"params_ema": {"conv_first.weight": LOW_RANK}},
    "an upscaler ": {"model.1.sub.0.RDB1.conv1.0.weight": LOW_RANK},
    "TAESD": {"1.weight": LOW_RANK, "3.conv.0.weight": LOW_RANK},
    "a CLIP with its image encoder": {"vision_model.post_layernorm.bias": LOW_RANK, "text_model.a": LOW_RANK},
    "a motion module": {"down_blocks.0.motion_modules.0.temporal_transformer.norm.weight": LOW_RANK},
    "a T5 text encoder": {"encoder.block.0.layer.0.SelfAttention.q.weight": LOW_RANK},
    "a file without weights": {"epoch": 3},
    "a file without weights ": "a string",
}


@pytest.mark.parametrize("what", WRONG)
def test_another_kind_of_model_is_called_by_its_name(tmp_path, what):
    torch.save(WRONG[what], tmp_path / "model.ckpt")
    with pytest.raises(UserError) as caught:
        load_models(tmp_path / "model.ckpt")
    assert what.strip() in str(caught.value)
    assert str(caught.value).endswith("give a whole Stable Diffusion 1.x checkpoint.")


@pytest.mark.parametrize("pattern", ["adapters/*", "taesd/*"])
def test_real_files_of_others_are_no_checkpoints(pattern):
    found = sorted((Path(__file__).resolve().parents[3] / "shared" / "data").glob(pattern))
    if not found:
        pytest.skip("the collected files are not here")
    for path in found:
        expected = {"ti_": "embedding", "tae": "TAESD"}.get(path.name[:3], "a LoRA")
        with pytest.raises(UserError, match=expected):
            load_models(path)


# Memory

BIG = {"clip": {"width": 768, "layers": 6, "vocab_size": 49408}}


@pytest.fixture(scope="module")
def big(tmp_path_factory):
    """330 MB in fp32: enough to stand out against what the process needs anyway."""
    path = tmp_path_factory.mktemp("weights") / "big.ckpt"
    torch.save(random_weights(SMALL | BIG), path)
    return path


def memory_of_loading(path, dtype: str, field: str) -> int:
    """Bytes that `load_models` and a touch of every weight add to a fresh process; `field` is of /proc/self/status."""
    program = (
        "import torch; from sd.checkpoints.checkpoint import load_models\n"
        "from pathlib import Path\n"
        f"def now(): return int(Path('/proc/self/status').read_text().split('{field}:')[1].split()[0])\n"
        "before = now()\n"
        f"*networks, _ = load_models({str(path)!r}, {dtype})\n"
        "total = sum(float(p.detach().sum()) for network in networks for p in network.parameters())\n"
        "print((now() - before) * 1024)\n"
    )
    root = Path(__file__).resolve().parents[2]
    return int(subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, check=True).stdout)


linux = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is counted by Linux's /proc")


@linux
def test_fp32_has_no_second_copy(big):
    # RssAnon is memory of the process's own; pages of the file are RssFile. A tenth is for the modules themselves.
    assert memory_of_loading(big, "None", "RssAnon") < big.stat().st_size / 10


@linux
def test_bf16_peaks_below_one_and_a_half_times_its_size(big):
    assert memory_of_loading(big, "torch.bfloat16", "VmHWM") < 1.5 * big.stat().st_size / 2


@pytest.mark.slow
@linux
def test_full_size(tmp_path):
    """The 4.27 GB file: all 1131 keys, no second copy in fp32, and 1.5 times the size in bf16 at the most."""
    path = tmp_path / "full.ckpt"
    maker = Path(__file__).parents[1] / "make_full_checkpoint.py"
    subprocess.run([sys.executable, maker, path], check=True)
    size = 2 * (859_520_964 + 83_653_863 + 123_060_480)  # bytes in bf16
    assert path.stat().st_size > 2 * size
    assert memory_of_loading(path, "None", "RssAnon") < size / 20
    assert memory_of_loading(path, "torch.bfloat16", "VmHWM") < 1.5 * size
