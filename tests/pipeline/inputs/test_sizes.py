"""What is said of options that change nothing beside others, and sizes that images give."""

import pytest
from PIL import Image

from sd.pipeline.inputs.sizes import resolve_size, settings_notes
from sd.pipeline.settings import OPTIONS, GenerationSettings


def notes_on(**given):
    return settings_notes(GenerationSettings("a cat", seed=1, **given))


@pytest.mark.parametrize(
    ("given", "note"),
    [
        ({"tile_overlap": 0.5}, "Without a tile size, tile overlap changes nothing."),
        ({"outpaint_sides": "left"}, "Without outpaint, outpaint sides changes nothing."),
        ({"only_masked_padding": 8}, "Without only masked, only masked padding changes nothing."),
        (
            {"hires_strength": 0.5, "hires_steps": 3},
            "Without a hires scale over 1, hires strength and hires steps change nothing.",
        ),
        (
            {"guidance_scale": 1, "negative_prompt": "blurry", "ngms": 3},
            "At a guidance scale of 1, which is no guidance, negative prompt and ngms change nothing.",
        ),
    ],
)
def test_what_changes_nothing_is_said(given, note):
    assert notes_on(**given) == [note]


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"tile_overlap": 0.5, "tile_size": 64},
        {"hires_strength": 0.5, "hires_scale": 2},
        {"guidance_scale": 1},
        {"guidance_scale": 1, "negative_prompt": "blurry", "sampler": "euler_cfg_pp"},  # its scale of 1 is guidance
        {"variation_seed": 5},  # every client of the webui's API sends one
        {"ngms": 3},
        {"step_cache": 2},
    ],
)
def test_nothing_is_said_of_what_works(given):
    assert notes_on(**given) == []


def test_every_part_of_an_option_is_noticed():
    """The table says which options are parts of others; a new one needs no line elsewhere."""
    parts = {row.infotext.part_of for row in OPTIONS if row.infotext and row.infotext.part_of}
    assert {"hires_scale", "only_masked", "outpaint", "tile_size"} <= parts


@pytest.mark.parametrize("cache", [2, 0.2])
def test_the_step_cache_beside_ngms_is_said_to_save_nothing_there(cache):
    (note,) = notes_on(ngms=3, step_cache=cache)
    assert note.startswith("Below sigma 3,")
    assert notes_on(ngms=3, step_cache=cache, guidance_scale=1)[0].startswith("At a guidance scale of 1")
    together = GenerationSettings("a cat AND a dog", seed=1, ngms=3, step_cache=cache)
    assert settings_notes(together) == [], "all parts are computed at every step"


def test_the_step_cache_saves_nothing_below_ngms(pipe):
    """What the note says: with every second step without guidance, all blocks are computed at every step."""
    calls = []
    deepest = pipe.unet.middle_block.register_forward_hook(lambda *_: calls.append(1))
    for given, expected in (({"ngms": 15}, 8), ({}, 4)):
        calls.clear()
        pipe("a cat", steps=8, seed=1, width=64, height=64, sampler="euler", step_cache=2, **given)
        assert len(calls) == expected
    deepest.remove()


@pytest.mark.parametrize(("size", "made"), [((1, 1), (8, 8)), ((7, 300), (8, 296)), ((100, 64), (96, 64))])
def test_a_tiny_image_gives_the_smallest_size(size, made):
    sized = resolve_size(GenerationSettings("a cat", seed=1), Image.new("RGB", size), 64)
    assert (sized.width, sized.height) == made
