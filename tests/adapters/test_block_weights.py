"""Block weights of a LoRA: what a list or a name means, and that each block has its own strength."""

import pytest
import torch
from conftest import UNET

from sd.adapters.block_weights import PRESETS, apply_block_weights, block_names, parse_block_weights
from sd.adapters.injection import deltas_of, inject
from sd.adapters.variants import LoRA
from sd.unet import UNetModel
from sd.utils.errors import UserError


@pytest.fixture(scope="module")
def v1():
    with torch.device("meta"):
        return UNetModel()


def test_the_blocks_of_v1_are_the_extensions(v1):
    short = block_names(v1, only_attention=True)
    ins = ["IN01", "IN02", "IN04", "IN05", "IN07", "IN08"]
    assert short == ["BASE", *ins, "M00", *(f"OUT{i:02}" for i in range(3, 12))]
    assert len(block_names(v1)) == 26
    assert all(len(values) == 17 for values in PRESETS.values())


# The lists of the webui's extension for these names.
LISTS = {
    "NONE": [0] * 17,
    "ALL": [1] * 17,
    "ALL0.5": [0.5] * 17,
    "INALL": [1] * 7 + [0] * 10,
    "OUTALL": [1] + [0] * 7 + [1] * 9,
}


@pytest.mark.parametrize("name", LISTS)
def test_names_of_sides_are_the_extensions_lists_on_v1_and_work_on_every_model(v1, name):
    listed = ",".join(map(str, LISTS[name]))
    assert parse_block_weights(name.lower(), v1) == parse_block_weights(listed, v1)
    with torch.device("meta"):
        small = UNetModel(**UNET)
    weights = parse_block_weights(name, small)
    assert (weights["BASE"], weights["IN03"], weights["M00"], weights["OUT01"]) == tuple(
        LISTS[name][i] for i in (0, 1, 7, 16)
    )


def test_a_name_of_blocks_that_a_model_lacks_is_refused_with_what_it_has():
    with torch.device("meta"):
        small = UNetModel(**UNET)
    with pytest.raises(UserError, match=r"OUTS stands for blocks of v1-5.* 5 numbers, for BASE, IN03, .* of NONE"):
        parse_block_weights("outs", small)


def test_a_short_list_leaves_the_other_blocks_out(v1):
    weights = parse_block_weights("1,0.5" + ",0" * 14 + ",0.25", v1)
    assert (weights["BASE"], weights["IN01"], weights["OUT11"], weights["IN03"]) == (1, 0.5, 0.25, 0)
    assert parse_block_weights("outall", v1)["OUT03"] == 1
    assert parse_block_weights("MIDD", v1)["M00"] == 1
    assert parse_block_weights(",".join(["1"] * 26), v1)["OUT00"] == 1


@pytest.mark.parametrize(("text", "said"), [("1,2", "has 2 numbers: this model takes 17"), ("1,R", "not understood")])
def test_another_list_is_refused(v1, text, said):
    with pytest.raises(UserError, match=said):
        parse_block_weights(text, v1)


def test_each_delta_is_weighted_by_its_block():
    unet, clip = UNetModel(**UNET), torch.nn.Sequential(torch.nn.Linear(4, 4))
    paths = ["input_blocks.3.1.proj_in", "middle_block.1.proj_in", "output_blocks.0.1.proj_in"]

    def delta(layer):
        rows, columns = layer.weight.shape[:2]
        tail = layer.weight.shape[2:]
        return LoRA({"lora_down": torch.ones(1, columns, *tail), "lora_up": torch.ones(rows, 1, *tail)})

    inject(unet, "x", {path: delta(unet.get_submodule(path)) for path in paths}, 0.8)
    inject(clip, "x", {"0": delta(clip[0])}, 0.6)
    names = block_names(unet, only_attention=True)
    assert names == ["BASE", "IN03", "M00", "OUT00", "OUT01"]
    apply_block_weights(unet, clip, "x", "0.5,0.25,1,0,1")
    assert [deltas_of(unet, "x")[path].strength for path in paths] == pytest.approx([0.2, 0.8, 0.0])
    assert deltas_of(clip, "x")["0"].strength == pytest.approx(0.3)
