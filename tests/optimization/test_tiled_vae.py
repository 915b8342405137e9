from itertools import pairwise

import torch

from sd.optimization.tiled_vae import OVERLAP, TILE, apply_in_tiles, decode_tiled, encode_tiled, tile_starts
from sd.pipeline.latents import decode_latent, encode_image


def test_tiles_cover_every_side_and_overlap():
    for length in range(1, 400):
        begins = tile_starts(length)
        assert begins[0] == 0
        assert begins[-1] + TILE >= length
        assert begins[-1] == max(0, length - TILE)
        assert all(b - a <= TILE - OVERLAP for a, b in pairwise(begins))


def test_a_network_that_sees_single_places_gives_the_same_in_tiles():
    x = torch.randn(2, 3, 8 * 100, 8 * 70)
    pooled = torch.nn.functional.avg_pool2d(x, 8)
    torch.testing.assert_close(apply_in_tiles(lambda t: torch.nn.functional.avg_pool2d(t, 8), x, 8, 1), pooled)
    grown = torch.nn.functional.interpolate(pooled, scale_factor=8)
    torch.testing.assert_close(
        apply_in_tiles(lambda t: torch.nn.functional.interpolate(t, scale_factor=8), pooled, 1, 8), grown
    )


def test_one_tile_is_the_vae_itself(pipe):
    latent, image = torch.randn(1, 4, 8, 16), torch.rand(1, 3, 64, 128)
    with torch.no_grad():
        torch.testing.assert_close(decode_tiled(pipe.vae, latent), pipe.vae.decode(latent))
        for ours, whole in zip(encode_tiled(pipe.vae, image), pipe.vae.encode(image)):
            torch.testing.assert_close(ours, whole)


def test_big_images_go_in_tiles(pipe, monkeypatch):
    monkeypatch.setattr("sd.pipeline.latents.TILED_FROM", 64 * 64)
    monkeypatch.setattr("sd.optimization.tiled_vae.TILE", 8)
    monkeypatch.setattr("sd.optimization.tiled_vae.OVERLAP", 2)
    sides = []
    pipe.vae.post_quant_conv.register_forward_pre_hook(lambda conv, args: sides.append(args[0].shape[-1]))
    with torch.no_grad():
        decode_latent(pipe.vae, torch.randn(1, 4, 8, 8))
        image = decode_latent(pipe.vae, torch.randn(1, 4, 20, 14))
        assert encode_image(pipe.vae, image).shape == (1, 4, 20, 14)
    assert image.shape == (1, 3, 160, 112)
    assert sides == [8] * (1 + 3 * 2)


def test_what_a_gpu_has_no_memory_for_goes_in_tiles(pipe, monkeypatch, capsys):
    latent = torch.randn(1, 4, 8, 16)

    def too_much(*_: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with torch.no_grad():
        image = decode_latent(pipe.vae, latent)
        again = encode_image(pipe.vae, image)
        monkeypatch.setattr("sd.pipeline.latents.decode_tiled", lambda vae, latent: type(vae).decode(vae, latent))
        monkeypatch.setattr("sd.pipeline.latents.encode_tiled", lambda vae, image: type(vae).encode(vae, image))
        pipe.vae.decode = pipe.vae.encode = too_much
        torch.testing.assert_close(decode_latent(pipe.vae, latent), image)
        torch.testing.assert_close(encode_image(pipe.vae, image), again)
    assert capsys.readouterr().err.count("too little memory for the whole image: the VAE works in tiles.") == 2


def test_the_heap_is_trimmed_before_each_level(pipe, monkeypatch):
    """So that the largest level does not come on top of what the smaller ones left."""
    sizes = []
    monkeypatch.setattr("sd.optimization.malloc_trim.trim_heap", lambda layer, args: sizes.append(args[0].shape[-1]))
    latent = torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        decode_latent(pipe.vae, latent)
        assert sizes == [8 * 2**i for i in range(len(pipe.vae.decoder.up))]
        pipe.vae.decode(latent)
    assert len(sizes) == len(pipe.vae.decoder.up)
