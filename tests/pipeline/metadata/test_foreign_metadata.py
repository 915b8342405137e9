"""Settings as other programs write them into images."""

import json

import pytest
from foreign_images import (
    DRAW_THINGS,
    EASY,
    FOOOCUS,
    GRAPH,
    INVOKE,
    NOVELAI,
    SWARM,
    png_with,
    with_user_comment,
    xmp_packet,
)

from sd.pipeline.infotext import parse_infotext, read_infotext
from sd.pipeline.metadata.foreign_metadata import novelai_weights
from sd.pipeline.metadata.settings_infotext import form_values
from sd.utils.errors import UserError

COMMON = {"prompt": "a red apple", "negative_prompt": "ugly", "steps": 3, "width": 128, "height": 64}
WRITERS = {
    "InvokeAI 3": (
        png_with({"invokeai_metadata": INVOKE, "invokeai_graph": {"nodes": {}}}),
        {"prompt": "a red apple <lora:ink:0.75>", "sampler": "dpmpp_2m", "schedule": "karras", "seed": 7},
    ),
    "InvokeAI 2": (
        png_with(
            {
                "sd-metadata": {
                    "model": "stable diffusion",
                    "model_weights": "stable-diffusion-1.5",
                    "model_hash": "cc6cb27103",
                    "image": {
                        "prompt": [{"prompt": "a red apple [ugly]", "weight": 1}],
                        "steps": 3,
                        "cfg_scale": 7.5,
                        "seed": 9,
                        "width": 128,
                        "height": 64,
                        "sampler": "k_euler_a",
                        "perlin": 0,
                        "hires_fix": False,
                    },
                }
            }
        ),
        {"sampler": "euler_a", "seed": 9, "guidance_scale": 7.5},
    ),
    "InvokeAI 1": (
        png_with({"Dream": '"a red apple [ugly]" -s 3 -S 9 -W 128 -H 64 -C 7.5 -A k_heun'}),
        {"sampler": "heun", "seed": 9, "guidance_scale": 7.5},
    ),
    "Fooocus": (
        png_with({"parameters": FOOOCUS, "fooocus_scheme": "fooocus"}),
        {"sampler": "dpmpp_2m_sde", "schedule": "karras", "seed": 11, "guidance_scale": 4.0},
    ),
    "Easy Diffusion, PNG": (png_with(EASY), {"sampler": "euler_a", "seed": 5, "clip_skip": 2}),
    "Easy Diffusion, its older keys": (
        png_with(
            {
                "Prompt": "a red apple",
                "Negative Prompt": "ugly",
                "Seed": "5",
                "Stable Diffusion model": "sd-v1-4",
                "Sampler": "plms",
                "Width": "128",
                "Height": "64",
                "Steps": "3",
                "Guidance Scale": "7.5",
            }
        ),
        {"sampler": "plms", "seed": 5, "guidance_scale": 7.5},
    ),
    "Easy Diffusion, JPEG": (
        with_user_comment(b"UNICODE\0" + json.dumps(EASY).encode("utf-16-be")),
        {"sampler": "euler_a", "seed": 5, "clip_skip": 2},
    ),
    "NovelAI": (
        png_with({"Description": "a red apple", "Software": "NovelAI", "Comment": NOVELAI | {"uc": "ugly"}}),
        {"sampler": "euler_a", "seed": 3, "guidance_scale": 11.0, "clip_skip": 2},
    ),
    "Draw Things": (
        png_with({"XML:com.adobe.xmp": xmp_packet(DRAW_THINGS)}),
        {"sampler": "euler_a", "seed": 8, "guidance_scale": 7.5},
    ),
    "SwarmUI": (png_with({"parameters": {"sui_image_params": SWARM}}), {"sampler": "euler", "seed": 4}),
    "ComfyUI": (
        png_with({"prompt": GRAPH, "workflow": {"nodes": [], "links": []}}),
        {
            "prompt": "a red apple <lora:ink:0.5:0.8>",
            "sampler": "euler_a",
            "schedule": "karras",
            "seed": 2**63 + 5,
            "clip_skip": 2,
            "guidance_scale": 8.0,
        },
    ),
    "diffusers' own words": (
        png_with(
            {
                "parameters": {
                    "prompt": "a red apple",
                    "negative_prompt": "ugly",
                    "num_inference_steps": 3,
                    "guidance_scale": 6.5,
                    "seed": 2,
                    "width": 128,
                    "height": 64,
                    "scheduler": "EulerAncestralDiscreteScheduler",
                }
            }
        ),
        {"sampler": "euler_a", "seed": 2, "guidance_scale": 6.5},
    ),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_the_settings_of_another_programs_image_are_read(writer):
    file, expected = WRITERS[writer]
    file.seek(0)
    values, _ = form_values(read_infotext(file))
    expected = COMMON | expected
    assert {name: values.get(name) for name in expected} == expected


@pytest.mark.parametrize("writer", WRITERS)
def test_the_program_is_named(writer):
    file, _ = WRITERS[writer]
    file.seek(0)
    version = parse_infotext(read_infotext(file)).get("Version", "")
    assert version == "" if writer.startswith("diffusers") else writer.startswith(version)


def test_what_only_the_other_program_has_is_named_and_what_it_did_not_use_is_not():
    _, notes = form_values(read_infotext(png_with({"parameters": FOOOCUS | {"freeu": False}})))
    (labels,) = [note for note in notes if "not supported" in note]
    assert "sharpness, performance" in labels
    assert "freeu" not in labels


def test_an_image_that_another_program_made_from_an_image_says_so():
    for texts in (
        {"invokeai_metadata": INVOKE | {"init_image": "x.png", "strength": 0.6}},
        EASY | {"init_image": "abc"},
    ):
        values, notes = form_values(read_infotext(png_with(texts)))
        assert any("from another image" in note for note in notes)
        assert values["strength"] in (0.6, 0.8)


def graph_with(**nodes):
    return json.loads(json.dumps(GRAPH)) | nodes


def test_a_comfyui_graph_that_starts_from_an_image():
    graph = graph_with(**{"5": {"class_type": "VAEEncode", "inputs": {"pixels": ["12", 0]}}})
    _, notes = form_values(read_infotext(png_with({"prompt": graph})))
    assert any("from another image" in note for note in notes)


def test_a_comfyui_graph_with_a_second_sampler_is_read_as_far_as_its_first():
    second = {"class_type": "KSampler", "inputs": {"seed": 1, "steps": 9, "latent_image": ["3", 0]}}
    values, notes = form_values(read_infotext(png_with({"prompt": graph_with(**{"2": second})})))
    assert values["steps"] == 3
    assert any("several KSampler nodes" in note for note in notes)


@pytest.mark.parametrize(
    "texts",
    [
        {"prompt": {"1": {"class_type": "LoadImage", "inputs": {}}}},
        {"workflow": {"nodes": [], "links": []}},
        {"prompt": graph_with(**{"6": {"class_type": "SomebodysOwnNode", "inputs": {}}})},
    ],
)
def test_a_comfyui_graph_that_is_not_plain_is_called_one(texts):
    with pytest.raises(UserError, match="ComfyUI"):
        read_infotext(png_with(texts))


def test_a_graph_that_links_to_itself_ends():
    ring = {"class_type": "ConditioningCombine", "inputs": {"conditioning_1": ["6", 0]}}
    with pytest.raises(UserError, match="ComfyUI"):
        read_infotext(png_with({"prompt": graph_with(**{"6": ring})}))
    loop = {"class_type": "LoraLoader", "inputs": {"lora_name": 1, "model": ["8", 0]}}
    assert read_infotext(png_with({"prompt": graph_with(**{"8": loop})})).startswith("a red apple\n")


def test_comfyui_keeps_its_graph_in_the_exif_of_a_webp():
    from foreign_images import saved
    from PIL import Image

    exif = Image.Exif()
    exif[0x0110] = "prompt:" + json.dumps(GRAPH)
    file = saved(Image.new("RGB", (16, 16)), "WEBP", exif=exif)
    assert form_values(read_infotext(file))[0]["steps"] == 3


def test_the_webuis_text_goes_before_a_graph_in_the_same_file():
    text = "from the webui\nSteps: 9, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 64x64"
    assert read_infotext(png_with({"prompt": GRAPH, "parameters": text})) == text


def test_novelais_brackets():
    # 1.05 for each curly bracket, 1 / 1.05 for each square one; 1.05^2 = 1.1025
    assert novelai_weights("{{a}}, [b] (c)") == "(a:1.103), (b:0.9524) \\(c\\)"
    assert novelai_weights("plain, text") == "plain, text"
    assert novelai_weights("{unclosed") == "(unclosed:1.05)"


@pytest.mark.parametrize("text", ["{", "{}", '{"a": ' * 3000, '{"prompt": 1}', '{"seed": NaN}', "[1, 2]"])
def test_a_text_that_is_no_settings_is_none(text):
    with pytest.raises(UserError, match="holds no settings"):
        read_infotext(png_with({"Comment": text}))


def test_prompts_and_seeds_equal_those_of_an_independent_reader(tmp_path):
    sd_parsers = pytest.importorskip("sd_parsers")
    for name in ("InvokeAI 3", "InvokeAI 2", "InvokeAI 1", "Fooocus", "ComfyUI"):
        path = tmp_path / f"{name}.png"
        path.write_bytes(WRITERS[name][0].getvalue())
        theirs = sd_parsers.ParserManager().parse(path)
        values, _ = form_values(read_infotext(path))
        assert [str(one) for one in theirs.prompts] == [values["prompt"].partition(" <lora")[0]], name
        assert [str(one) for one in theirs.negative_prompts] == [values["negative_prompt"]], name
