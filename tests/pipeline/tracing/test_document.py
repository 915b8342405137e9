"""A trace as JSON: what a browser reads is what was recorded; and the linear decoder of the previews."""

import base64
import json

import numpy as np
import pytest
import torch
from PIL import Image

from sd.pipeline.settings import GenerationSettings
from sd.pipeline.trace import Trace
from sd.pipeline.tracing.document import MAX_IMAGE, encode_array, image_url, plane, trace_document
from sd.pipeline.tracing.linear_decoder import fit_decoder
from sd.utils.images import from_tensor


def array_of(value):
    numbers = np.frombuffer(base64.b64decode(value["data"]), "<i2").astype(np.float32)
    return torch.from_numpy(numbers * np.float32(value["scale"])).reshape(value["shape"])


@pytest.fixture
def traced(pipe):
    trace = Trace()
    settings = GenerationSettings("a red apple", seed=3, steps=4, sampler="euler", guidance_scale=4.0)
    return trace, pipe.generate(settings, trace=trace)


def document_of(trace, output):
    return trace_document(trace, output.latents, output.images[0], "a red apple", output.infotexts[0])


def test_the_browser_reads_what_was_recorded(traced):
    trace, output = traced
    found = json.loads(json.dumps(document_of(trace, output)))
    latents = array_of(found["latents"])
    assert latents.shape == (4, 4, 4, 8, 8)
    # 16 bits of the largest value: half a step of it.
    close = dict(rtol=0, atol=0.6 * latents.abs().max().item() / 32767)
    for i, one in enumerate(trace.steps):
        for row, name in enumerate(("x", "guided", "cond", "uncond")):
            torch.testing.assert_close(latents[i, row], getattr(one, name).float(), **close)
    words = found["words"]
    assert words["entries"][1:4] == ["a", "red", "apple"]
    assert words["changed"] == [1, 2, 3]
    maps = array_of(words["attention"])
    torch.testing.assert_close(maps.mean((2, 3)), torch.tensor(words["shares"]), rtol=0, atol=2e-4)  # 4 digits
    assert array_of(words["changes"]).shape == (len(words["changed_steps"]), 3, 8, 8)
    assert [step["step"] for step in found["steps"]] == [1, 2, 3, 4]


def test_a_run_without_guidance_or_words_has_a_document_too(pipe):
    trace = Trace()
    output = pipe.generate(GenerationSettings("an [apple:pear:0.5]", seed=3, steps=2, guidance_scale=1), trace=trace)
    found = document_of(trace, output)
    assert found["words"] is None
    assert found["steps"][0]["guided"] is False
    assert found["steps"][0]["distance"] == 0
    assert len(found["notes"]) == 1


def test_the_plane_keeps_the_shape_of_what_lies_in_a_plane():
    generator = torch.Generator().manual_seed(0)
    axes = torch.linalg.qr(torch.randn(32, 2, generator=generator))[0].T
    flat = torch.tensor([[0.0, 0.0], [4.0, 0.0], [4.0, 3.0], [0.0, 3.0], [9.0, 1.0]])
    first, second = plane([(flat[:3] @ axes).reshape(3, 2, 16), (flat[3:] @ axes).reshape(2, 2, 16)])
    found = torch.tensor([*first, *second])
    distances, expected = torch.cdist(found, found), torch.cdist(flat, flat)
    # Four digits, and one unit for all.
    torch.testing.assert_close(distances / distances.max(), expected / expected.max(), rtol=0, atol=3e-4)


def test_equal_points_are_one_point():
    assert plane([torch.ones(3, 4)]) == [[[0.0, 0.0]] * 3]


def test_a_linear_decoder_is_found_again():
    """Where an image is an affine map of its latent, the decoder is that map, but for damping and 8 bits."""
    generator = torch.Generator().manual_seed(0)
    latent = torch.randn(1, 4, 32, 32, generator=generator)
    mix = torch.tensor([[0.2, 0.1, 0.0, 0.1], [0.0, 0.2, 0.1, 0.0], [0.1, 0.0, 0.1, -0.2]])
    pixels = torch.einsum("rc,bchw->brhw", mix, latent).repeat_interleave(8, 2).repeat_interleave(8, 3) + 0.1
    decoder = fit_decoder(latent, from_tensor(pixels)[0])
    assert decoder.block == 4
    assert decoder.error < 0.02
    expected = pixels[..., ::2, ::2].clamp(-1, 1)
    assert (decoder.run(latent) - expected).abs().mean() < 0.01  # ten positions' damping of 1,024, and what is clipped
    assert decoder.decode(latent)[0].size == (128, 128)
    assert torch.allclose(decoder.run(5 * latent), decoder.run(latent), atol=1e-4)  # larger ones are scaled down


@pytest.mark.parametrize(("side", "block"), [(8, 4), (32, 4), (64, 2), (128, 1), (256, 1)])
def test_previews_have_at_most_128_pixels_or_one_a_position(side, block):
    decoder = fit_decoder(torch.randn(1, 4, side, 8), Image.new("RGB", (64, 8 * side)))
    assert decoder.block == block


def test_large_images_are_reduced():
    url = image_url(Image.new("RGB", (2048, 1024)))
    assert url.startswith("data:image/png;base64,")
    assert max(2048, 1024) > MAX_IMAGE


def test_zeros_are_encoded():
    assert array_of(encode_array(torch.zeros(2, 3))).tolist() == [[0.0] * 3] * 2
