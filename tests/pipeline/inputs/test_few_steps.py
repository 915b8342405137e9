"""Which LoRAs are for few steps, by their names, and when that is said."""

import pytest

from sd.pipeline.inputs.few_steps import few_step_notes

FEW = [
    "lcm-lora-sdv1-5",
    "sd15_lcm_lora_beta",
    "LCM",
    "sd15-TCD-lora",
    "Hyper-SD15-8steps-lora",
    "hyperSD15",
    "emoji-turbo",
]
OTHERS = ["hyperrealism", "calcmap", "porsche-911-turbo", "add_detail", "Hyper-SD15-8steps-CFG-lora", "flcmo"]


@pytest.mark.parametrize("name", FEW)
def test_guidance_beside_a_lora_for_few_steps_is_said(name):
    (note,) = few_step_notes([name, "add_detail"], 7.5)
    assert note.startswith(f"the LoRA {name} is for few steps")
    assert "guidance scale of 7.5" in note
    for mild in (0.0, 1.0, 2.0):
        assert few_step_notes([name], mild) == []


@pytest.mark.parametrize("name", OTHERS)
def test_other_loras_are_left_alone(name):
    assert few_step_notes([name], 7.5) == []


def test_a_lora_in_a_prompt_is_named_once_and_as_it_stands_there():
    (note,) = few_step_notes(["<lora:my-lcm>", "<lora:my-lcm> 2"], 4)
    assert note.startswith("the LoRA my-lcm is for few steps")
