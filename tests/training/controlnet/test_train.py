"""Training a ControlNet, with tiny networks: it learns, resumes bit for bit, and other loaders read its file."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from conftest import fresh_copy
from diffusers import ControlNetModel as PeerControlNet
from PIL import Image, ImageDraw
from reference_models import relative_error
from safetensors import safe_open
from scene_data import make_cutouts

from sd.control.controlled_unet import Control, ControlledUNet
from sd.control.controlnet_files import controlnet_names, load_controlnet, read_controlnet, save_controlnet
from sd.training.controlnet import train as control_training
from sd.training.controlnet.args import folder_source, scene_source
from sd.training.controlnet.recipe import control_defaults, control_recipe
from sd.training.controlnet.sources import SceneSource
from sd.training.controlnet.train import (
    control_config,
    control_loss,
    freeze,
    new_controlnet,
    train_controlnet,
)
from sd.training.pretrain import scene_latents
from sd.unet import UNetModel
from sd.utils.errors import UserError

QUICK = dict(steps=4, batch=2, lr=1e-2, warmup=1, previews=0, precision="fp32", save_minutes=0.0, ema=0.5)


@pytest.fixture
def images(tmp_path):
    """Six captioned images of a disk or a square, at different places."""
    folder = tmp_path / "images"
    folder.mkdir()
    for k in range(6):
        image = Image.new("RGB", (80, 64), "white")
        draw = (ImageDraw.Draw(image).ellipse, ImageDraw.Draw(image).rectangle)[k % 2]
        draw((8 + 4 * k, 10 + 3 * k, 40 + 4 * k, 40 + 3 * k), fill=((220, 40, 40), (40, 60, 220))[k % 2])
        image.save(folder / f"{k}.png")
        (folder / f"{k}.txt").write_text(("a red disk", "a blue square")[k % 2])
    return folder


@pytest.fixture
def trained(pipe, images, tmp_path):
    def trained(name="edges", run="run", **given):
        recipe = control_recipe(pipe, **QUICK | given)
        build = partial(folder_source, pipe, recipe, images)
        return train_controlnet(name, pipe, build, recipe, tmp_path / run, tmp_path / f"{name}.safetensors")

    return trained


def network_file(path):
    with safe_open(path, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118 - it is no dict


def test_the_batch_of_the_metadata_is_that_of_all_processes(pipe, images, tmp_path, monkeypatch):
    recipe = control_recipe(pipe, **QUICK | {"batch": 3, "accumulate": 2})
    saver = control_training.Saver(pipe, folder_source(pipe, recipe, images, tmp_path), recipe, tmp_path)
    monkeypatch.setattr(control_training, "rank_and_world_size", lambda: (0, 2))
    saver.write(tmp_path / "edges.safetensors", new_controlnet(pipe, recipe), 7)
    facts = json.loads(network_file(tmp_path / "edges.safetensors")[1]["sd_controlnet"])
    assert (facts["batch"], facts["steps"]) == (12, 7)


def test_the_result_loads_here_and_is_diffusers_network(pipe, trained):
    recipe = control_recipe(pipe, **QUICK)
    path = trained()
    tensors, metadata = network_file(path)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    assert json.loads(metadata["sd_controlnet"])["steps"] == 4
    loaded = load_controlnet(path, pipe.unet, pipe.sizes["unet"]).network
    peer = PeerControlNet(
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        attention_head_dim=8,
        cross_attention_dim=64,
        conditioning_embedding_out_channels=recipe.hint_channels,
    )
    names = controlnet_names(loaded.state_dict())
    peer.load_state_dict({names[key]: value.float() for key, value in read_controlnet(path).tensors.items()})
    generator = torch.Generator().manual_seed(0)
    x, context = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 77, 64, generator=generator)
    hint, t = torch.rand(2, 3, 64, 64, generator=generator), torch.tensor([10, 800])
    with torch.no_grad():
        *ours, ours_middle = loaded(x, t, context, loaded.embed_hint(hint))
        down, middle = peer.eval()(x, t, context, hint, return_dict=False)
    for one, other in zip([*ours, ours_middle], [*down, middle]):
        assert relative_error(one, other) < 1e-5  # fp32 sums in another order
        assert one.abs().max() > 1e-3, "the training moved no zero convolution, so the test tests nothing."


def test_without_a_step_images_stay_the_same_bits(pipe, tmp_path):
    recipe = control_recipe(pipe, **QUICK)
    save_controlnet(tmp_path / "x.safetensors", new_controlnet(pipe, recipe).half(), {})
    pipe.set_optimizations([])  # shared-cfg-prefix, which a controlled U-Net does not use, sums in another order
    plain = pipe("a cat", steps=2, seed=1).images[0]
    image = Image.effect_noise((64, 64), 90).convert("RGB")
    controlled = pipe("a cat", steps=2, seed=1, control=str(tmp_path / "x.safetensors"), control_image=image).images[0]
    assert np.array_equal(plain, controlled)


def test_the_loss_falls_the_condition_counts_and_the_model_stays(pipe, images, tmp_path):
    recipe = control_recipe(pipe, **QUICK | dict(steps=12, ema=0, save_minutes=9.0))
    source = folder_source(pipe, recipe, images, tmp_path / "run")
    network = new_controlnet(pipe, recipe)
    freeze(pipe, "fp32")
    config = control_config(pipe, recipe, "fp32")
    loss = control_loss(pipe, source, config, recipe)

    @torch.no_grad()
    def measured():
        return sum(loss(network, torch.arange(6), torch.Generator().manual_seed(k)).item() for k in range(3)) / 3

    before, frozen = measured(), {key: value.clone() for key, value in pipe.unet.state_dict().items()}
    control_training.train(network, loss, len(source), tmp_path / "run", config)
    assert measured() < 0.8 * before
    assert all(torch.equal(value, frozen[key]) for key, value in pipe.unet.state_dict().items())
    assert all(parameter.grad is None for parameter in pipe.unet.parameters())
    x, t, context = torch.randn(1, 4, 8, 8), torch.tensor([500]), torch.randn(1, 77, 64)
    generator = torch.Generator().manual_seed(0)
    first, second = source.variation.conditions([source.latents.view(i, 0) for i in (0, 1)], generator).split(1)
    with torch.no_grad():
        outputs = [network(x, t, context, network.embed_hint(hint))[-1] for hint in (first, second)]
    assert relative_error(*outputs) > 1e-5  # far above rounding; before the first step both are 0


def test_a_stopped_run_ends_in_the_same_bits(pipe, trained, monkeypatch):
    whole = trained("whole")
    batch = control_training.TrainedControl.outputs
    calls = []

    def failing(*args):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("the power failed")
        return batch(*args)

    monkeypatch.setattr(control_training.TrainedControl, "outputs", failing)
    with pytest.raises(RuntimeError, match="power"):
        trained("parts", run="other")
    parts = trained("parts", run="other")
    assert len(calls) == 5  # two steps, the failure, and the two steps that were left
    assert all(torch.equal(value, network_file(parts)[0][key]) for key, value in network_file(whole)[0].items())


def test_the_same_command_again_trains_nothing_and_writes_the_same(trained, capsys):
    first = trained().read_bytes()
    assert trained().read_bytes() == first
    assert "nothing is left to train" in capsys.readouterr().out


def test_previews_show_condition_without_and_with(pipe, trained, tmp_path):
    trained(previews=2, preview_steps=1, steps=1)
    sheet = Image.open(tmp_path / "run" / "sheet-000001.png")
    assert sheet.width > 3 * 64
    assert [path.name for path in (tmp_path / "run" / "steps").iterdir()] == ["000001.safetensors"]
    assert not pipe.controlnets.loaded


def test_other_settings_and_files_of_others_are_refused(pipe, trained, tmp_path):
    trained(steps=1)
    with pytest.raises(UserError, match="another conditions: give another --run-dir"):
        trained(conditions=("canny",))
    with pytest.raises(UserError, match="exists already"):
        trained(run="elsewhere")
    assert not (tmp_path / "elsewhere" / "state.pt").exists()


def test_images_without_captions_are_named(trained, images):
    (images / "3.txt").unlink()
    with pytest.raises(UserError, match=r"1 of 6 images have no caption, such as 3.png"):
        trained()


def test_an_inpainting_checkpoint_is_refused(inpainting_pipe):
    with pytest.raises(UserError, match="for inpainting"):
        new_controlnet(inpainting_pipe, control_recipe(inpainting_pipe))


def test_a_view_and_its_latent_belong_together(pipe, images, tmp_path):
    """A mirrored latent has the condition of the mirrored image."""
    recipe = control_recipe(pipe, **QUICK | dict(crops=2))
    source = folder_source(pipe, recipe, images, tmp_path / "run")
    views = {number for _, number in source.latents.sample_views([0] * 40, torch.Generator().manual_seed(0))}
    assert views == {0, 1, 2, 3}  # two crops, each also mirrored
    left, mirrored = (np.asarray(source.latents.view(0, number)) for number in (0, 2))
    assert np.array_equal(left, mirrored[:, ::-1])
    assert not np.array_equal(left, np.asarray(source.latents.view(0, 1)))


# Scenes


@pytest.fixture
def scenes(pipe, tmp_path, monkeypatch):
    pipe.image_size = 128
    monkeypatch.setattr(scene_latents, "SHARD", 4)
    make_cutouts(tmp_path / "data")
    return tmp_path / "data"


def test_scenes_are_encoded_once_and_rendered_again(pipe, scenes, tmp_path):
    recipe = control_recipe(pipe, **QUICK)
    source = scene_source(pipe, recipe, scenes, None, 4, tmp_path / "run")
    assert isinstance(source, SceneSource)
    batch = source.batch(torch.tensor([2, 0]), torch.Generator().manual_seed(0))
    assert torch.equal(batch.latents, source.data.latents[[2, 0]].float())
    assert batch.conditions.shape == (2, 3, 128, 128)
    assert batch.conditions.unique().tolist() == [0.0, 1.0]
    assert [caption == "" or caption in source.data.captions[i] for caption, i in zip(batch.captions, (2, 0))]
    given = scene_source(pipe, recipe, scenes, tmp_path / "run" / "latents", None, tmp_path / "other")
    assert len(given) == 4


def test_a_scene_keeps_its_edges_where_a_shard_before_it_is_missing(pipe, scenes, tmp_path):
    recipe = control_recipe(pipe, **QUICK)
    whole = scene_source(pipe, recipe, scenes, None, 8, tmp_path / "run")
    (tmp_path / "run" / "latents" / "00000.pt").unlink()
    rest = scene_source(pipe, recipe, scenes, tmp_path / "run" / "latents", None, tmp_path / "other")
    assert len(rest) == 4
    expected = whole.batch(torch.tensor([6, 4]), torch.Generator().manual_seed(0))
    batch = rest.batch(torch.tensor([2, 0]), torch.Generator().manual_seed(0))
    assert torch.equal(batch.latents, expected.latents)
    assert torch.equal(batch.conditions, expected.conditions)
    assert batch.captions == expected.captions


def test_latents_of_another_vae_are_refused(pipe, scenes, tmp_path):
    recipe = control_recipe(pipe, **QUICK)
    scene_source(pipe, recipe, scenes, None, 4, tmp_path / "run")
    other = fresh_copy(pipe)
    other.image_size = 128
    with torch.no_grad():
        other.vae.quant_conv.weight += 0.5
    with pytest.raises(UserError, match="another VAE"):
        scene_source(other, recipe, scenes, tmp_path / "run" / "latents", None, tmp_path / "other")


def test_scenes_are_for_a_model_of_their_size(pipe, scenes, tmp_path):
    pipe.image_size = 512
    with pytest.raises(UserError, match="scenes have 128 pixels and this checkpoint generates 512"):
        scene_source(pipe, control_recipe(pipe, **QUICK), scenes, None, 4, tmp_path / "run")


# Settings


def test_the_size_of_the_bundled_models_controlnet_is_within_12_megabytes():
    """The U-Net that the scenes train, with attention at all levels."""
    sizes = dict(model_channels=64, channel_mult=(1, 2, 3), num_res_blocks=1, attention_levels=(0, 1, 2), num_heads=2)
    with torch.device("meta"):
        unet = UNetModel(**sizes, context_dim=192)
        config = sizes | {"context_dim": 192, "in_channels": 4, "middle_blocks": 1}
        network = control_training.controlnet_from_unet(unet, config, control_defaults(True)["hint_channels"])
    assert 2 * sum(parameter.numel() for parameter in network.parameters()) < 12e6


def test_half_precision_beside_a_frozen_unet(pipe, images, tmp_path):
    """In bf16 the loss is that of fp32 but for rounding, and gradients reach every layer of the ControlNet but those
    behind zero convolutions."""
    values = []
    for precision in ("fp32", "bf16"):
        recipe = control_recipe(pipe, **QUICK)
        source = folder_source(pipe, recipe, images, tmp_path / "run")
        network = new_controlnet(pipe, recipe)
        freeze(pipe, precision)
        loss = control_loss(pipe, source, control_config(pipe, recipe, precision), recipe)
        value = loss(network, torch.arange(4), torch.Generator().manual_seed(0))
        value.backward()
        values.append(value.item())
        assert all(conv[0].weight.grad.abs().sum() > 0 for conv in network.zero_convs)
        pipe.unet.float()
        pipe.clip.float()
        pipe.vae.float()
    assert values[1] == pytest.approx(values[0], rel=0.02)  # bf16 has 8 bits, and errors of many layers average out


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ((), "give the examples once"),
        (("--images", "a", "--scenes", "b"), "give the examples once"),
        (("--images", "a", "--latents", "b"), "are for --scenes"),
        (("--scenes", "a", "--latents", "b", "--scene-count", "5"), "no effect with --latents"),
        (("--scenes", "a", "--no-flip"), "are for --images"),
        (("--images", "a", "--empty-captions", "2"), "--empty-captions must be a number from 0 to 1, not 2.0."),
        (("--images", "a", "--steps", "0"), "--steps must be a whole number from 1 to"),
    ],
)
def test_a_wrong_command_is_one_sentence(run, flags, said):
    code, _, err = run("train_controlnet.py", "--name", "x", *flags)
    assert (code, said in err) == (2, True), err


def test_a_preset_control_is_used_by_the_unet_as_in_the_pipeline(pipe):
    """The training's control adds what the pipeline's adds, for an image that is embedded before."""
    recipe = control_recipe(pipe, **QUICK)
    network = new_controlnet(pipe, recipe)
    for conv in network.zero_convs:
        torch.nn.init.normal_(conv[0].weight, std=0.1)
    generator = torch.Generator().manual_seed(0)
    x, context = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 77, 64, generator=generator)
    hint, t = torch.rand(2, 3, 64, 64, generator=generator), torch.tensor([10, 800])
    config = control_config(pipe, recipe, "fp32")
    with torch.no_grad():
        ours = ControlledUNet(pipe.unet, [control_training.TrainedControl(network, hint, config)], 2)(x, t, context)
        pipelines = ControlledUNet(pipe.unet, [Control(network, network.embed_hint(hint))], 2)(x, t, context)
    assert torch.equal(ours, pipelines)
    assert relative_error(ours, pipe.unet(x, t, context)) > 0.01
