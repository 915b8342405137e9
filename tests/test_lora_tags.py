"""LoRAs named in prompts, and found by name."""

import pytest

from sd.errors import UserError
from sd.lora_tags import find_lora, split_tags


@pytest.mark.parametrize(
    ("prompt", "rest", "tags"),
    [
        ("a cat", "a cat", []),
        ("a cat <lora:paper>", "a cat ", [("paper", 1.0, 1.0)]),
        ("<lora:paper:0.8> a cat", " a cat", [("paper", 0.8, 0.8)]),
        ("a<lora:x:0.5:.7>b<lora:my style.v2:-1>c", "abc", [("x", 0.5, 0.7), ("my style.v2", -1.0, -1.0)]),
        ("<lora:x:te=0.5:unet=0.7>", "", [("x", 0.5, 0.7)]),
        ("<lora:x:unet=0.7>", "", [("x", 1.0, 0.7)]),
        ("<lora:x:0>", "", [("x", 0.0, 0.0)]),
        ("<my-dog> a < b <lora> <hypernet:x:1>", "<my-dog> a < b <lora> <hypernet:x:1>", []),
        ("(<lora:x:1>:1.2)", "(:1.2)", [("x", 1.0, 1.0)]),
    ],
)
def test_split_tags(prompt, rest, tags):
    assert split_tags(prompt) == (rest, tags)


@pytest.mark.parametrize("tag", ["<lora:x:strong>", "<lora:x:>", "<lora:x:nan>", "<lora:x:inf>", "<lora:x:1:1:32>"])
def test_tags_that_are_no_numbers(tag):
    with pytest.raises(UserError, match="write <lora:name"):
        split_tags(f"a cat {tag}")


def test_find_lora(tmp_path):
    folder = tmp_path / "loras"
    (folder / "styles").mkdir(parents=True)
    (folder / "peft" / "unet").mkdir(parents=True)
    (folder / "peft" / "unet" / "adapter_config.json").touch()
    for place in ("paper.safetensors", "styles/ink v1.5.pt", "paper.txt", "../secret.safetensors"):
        (folder / place).touch()
    assert find_lora(folder, "paper") == folder / "paper.safetensors"
    assert find_lora(folder, "ink v1.5") == folder / "styles" / "ink v1.5.pt"
    assert find_lora(folder, "peft") == folder / "peft"
    with pytest.raises(UserError, match="did you mean paper"):
        find_lora(folder, "papr")
    with pytest.raises(UserError, match="there are none"):
        find_lora(tmp_path / "empty", "paper")
    for name in ("../secret", "..", ".", "", "/etc/passwd", "styles/ink v1.5", "a\\b", "a\0b", "secret"):
        with pytest.raises(UserError):
            find_lora(folder, name)
