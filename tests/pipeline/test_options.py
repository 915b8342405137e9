"""The table of options: every row is a field, a flag, a label of infotext, a parameter, and a name in both APIs."""

import dataclasses
import inspect

import pytest

from sd.cli.args import generation_parser, given_flags, settings_from_args
from sd.pipeline.metadata.settings_infotext import read_settings, to_infotext
from sd.pipeline.options import GROUPS, options_of
from sd.pipeline.settings import OPTIONS, GenerationSettings
from sd.pipeline.stable_diffusion import StableDiffusion
from sd.samplers import SAMPLERS
from sd.utils.errors import SettingError, UserError

PLACES = {"flags", "infotext", "widget", "a1111"}
SMALL = dict(prompt="x", seed=1, width=64, height=72)
CHANGED = {
    "prompt": "a cat, (red:1.2)",
    "negative_prompt": "a dog",
    "sampler": "euler_a",
    "schedule": "karras",
    "seed": 2**63,
    "width": 128,
    "height": 96,
    "hires_upscaler": "lanczos",
    "hires_scale": 1.5,
    "variation_seed": 12,
    "rng": "nv",
    "compat": "webui",
    "emphasis": "no_norm",
    "masked_content": "blurred",
    "outpaint": 64,
    "outpaint_sides": "left, down",
    "tile_size": 512,
    "region_ratios": "1;2,1,3",
    "control": "x:weight=0.8:preprocessor=canny:a=50:start=0.1:end=0.9:mode=prompt + y",
}
# A value that says nothing unless another option is on.
NEEDS = {
    "hires_strength": {"hires_scale": 2.0},
    "hires_steps": {"hires_scale": 2.0},
    "hires_upscaler": {"hires_scale": 2.0},
    "variation_seed": {"variation_strength": 0.5},
    "only_masked_padding": {"only_masked": True},
    "outpaint_sides": {"outpaint": 64},
    "tile_overlap": {"tile_size": 512},
}
IDS = [row.name for row in OPTIONS]


def other_value(row):
    """A value of the option that is not its default."""
    if row.name in CHANGED:
        return CHANGED[row.name]
    if row.type is bool:
        return not row.default
    if row.default is None:
        return row.high / 2
    if row.type is int:
        return row.default + 2
    return row.default / 2 if row.default else row.high / 2


def test_the_table_is_the_dataclass():
    assert [row.name for row in OPTIONS] == [field.name for field in dataclasses.fields(GenerationSettings)]
    settings = GenerationSettings(**SMALL)
    assert all(isinstance(getattr(settings, row.name), row.type) for row in OPTIONS if row.name != "eta")


@pytest.mark.parametrize("row", OPTIONS, ids=IDS)
def test_a_row_has_every_place_or_says_why_not(row):
    there = {place for place in PLACES if getattr(row, place)}
    assert there | row.missing.keys() == PLACES
    assert not there & row.missing.keys()
    assert row.group in GROUPS
    assert row.help[0].islower() or row.help.startswith("CLIP")
    assert all(row.missing.values())


@pytest.mark.parametrize("row", OPTIONS, ids=IDS)
def test_a_value_of_another_type_or_out_of_bounds_is_refused(row):
    of_text = row.noun or row.name.replace("_", " ")
    with pytest.raises(UserError, match=of_text if row.type is str else f"^{row.name} must be .*, not b"):
        GenerationSettings(**SMALL | {row.name: b"\0"})
    if row.type is float:
        with pytest.raises(SettingError, match=f"^{row.name} must be a number from .*, not nan.$"):
            GenerationSettings(**SMALL | {row.name: float("nan")})
    if row.high is not None:
        highest = row.high if row.type is int else f"{row.high:g}"
        with pytest.raises(SettingError, match=f"^{row.name} must be a .* to {highest}, not {row.high + 1}.$"):
            GenerationSettings(**SMALL | {row.name: row.high + 1})


@pytest.mark.parametrize("row", OPTIONS, ids=IDS)
def test_a_flag_sets_the_option_and_its_help_names_the_default(row, monkeypatch):
    parser = generation_parser("", row.mode or "text").parser
    (action,) = (one for one in parser._actions if one.dest == row.name and row.flags[0] in one.option_strings)
    assert set(row.flags) <= set(action.option_strings)
    value = other_value(row)
    for flag in row.flags:
        line = ["x", *([flag] if row.type is bool else [flag, str(value)])]
        monkeypatch.setattr("sys.argv", ["script", *line])
        settings = settings_from_args(parser.parse_args())
        assert getattr(settings, row.name) == value
        assert row.name in given_flags(parser)
    if row.default not in (None, "", False):
        expected = f"{row.default:g}" if isinstance(row.default, (int, float)) else row.default
        assert action.help.endswith(f"(default: {expected})")


@pytest.mark.parametrize("row", [row for row in OPTIONS if row.infotext], ids=lambda row: row.name)
def test_infotext_is_written_and_read_back(row):
    settings = GenerationSettings(**SMALL | NEEDS.get(row.name, {}) | {row.name: other_value(row)})
    text = to_infotext(settings, 0, "", "", from_image=row.mode == "image")
    if row.name not in ("prompt", "negative_prompt"):
        assert f"{row.infotext.label}: " in text
    assert read_settings(text).values[row.name] == other_value(row)


def test_infotext_leaves_out_what_is_off():
    text = to_infotext(GenerationSettings(**SMALL), 0, "", "", from_image=False)
    labels = {part.split(":")[0] for part in text.split("\n")[-1].split(", ")}
    assert labels == {"Steps", "Sampler", "Schedule type", "CFG scale", "Seed", "Size", "RNG", "Version"}


def test_a_call_has_every_option_as_a_typed_parameter():
    parameters = inspect.signature(StableDiffusion.__call__).parameters
    assert not [one for one in parameters.values() if one.kind in (one.VAR_KEYWORD, one.VAR_POSITIONAL)]
    assert all(one.annotation is not one.empty for name, one in parameters.items() if name != "self")
    for field in dataclasses.fields(GenerationSettings):
        if field.name not in ("prompt", "negative_prompt"):  # each may be a list in a call
            assert parameters[field.name].default == field.default, field.name
            assert parameters[field.name].annotation == field.type, field.name


def test_two_flags_in_one(monkeypatch):
    parser = generation_parser("").parser
    monkeypatch.setattr("sys.argv", ["script", "x", "--guidance-interval", "0.1", "0.7", "--plms"])
    settings = settings_from_args(parser.parse_args())
    assert (settings.guidance_start, settings.guidance_end, settings.sampler) == (0.1, 0.7, "plms")
    assert {"guidance_start", "guidance_end", "sampler"} <= given_flags(parser)


def test_an_empty_prompt_is_a_prompt_and_none_is_refused():
    parser = generation_parser("").parser
    assert settings_from_args(parser.parse_args(["--prompt", ""])).prompt == ""
    assert settings_from_args(parser.parse_args(["a cat", "--prompt", ""])).prompt == ""
    with pytest.raises(UserError, match="missing prompt"):
        settings_from_args(parser.parse_args([]))


def test_choices_in_help_are_those_that_exist():
    text = generation_parser("").parser.format_help()
    assert all(name in text for name in SAMPLERS)
    assert options_of(GenerationSettings) == OPTIONS
