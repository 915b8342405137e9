from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderTiny
from reference_models import randomize
from safetensors.torch import load_file, save_file

from sd.pipeline.taesd import TAESD, load_taesd
from sd.utils.errors import UserError

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "taesd"
BOTH = ("encoder", "decoder")


@pytest.fixture(scope="module")
def ours():
    return randomize(TAESD(), seed=3)


@pytest.fixture
def folder(ours, tmp_path):
    for part in BOTH:
        save_file(getattr(ours, part).state_dict(), tmp_path / f"taesd_{part}.safetensors")
    return tmp_path


def diffusers_keys(part, tensors):
    """The peer's own renaming, by its documented difference: the decoder's clamp has no place in its sequence."""
    places = {key: key.split(".", 1) for key in tensors}
    return {f"layers.{int(n) - (part == 'decoder')}.{rest}": tensors[key] for key, (n, rest) in places.items()}


def peer_of(tensors):
    peer = AutoencoderTiny().eval()
    for part in BOTH:
        getattr(peer, part).load_state_dict(diffusers_keys(part, tensors[part]))
    return peer


@torch.no_grad()
def assert_equal_to_peer(ours, peer):
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(2, 3, 40, 64, generator=generator) * 2 - 1
    latent = torch.randn(2, 4, 5, 8, generator=generator) * 2  # 2: far enough out for the clamp to matter
    # The same fp32 convolutions in the same order.
    theirs = peer.encode(image).latents
    assert ours.encode(image).shape == (2, 4, 5, 8)
    assert torch.allclose(ours.encode(image), theirs, rtol=1e-5, atol=1e-5 * theirs.abs().max().item())
    theirs = peer.decode(latent).sample
    assert ours.decode(latent).shape == (2, 3, 40, 64)
    assert torch.allclose(ours.decode(latent), theirs, rtol=1e-5, atol=1e-5 * theirs.abs().max().item())


def test_random_weights_against_diffusers(ours):
    assert_equal_to_peer(ours, peer_of({part: getattr(ours, part).state_dict() for part in BOTH}))


@pytest.mark.skipif(not REAL.is_dir(), reason="the published TAESD files are not here")
def test_real_weights_against_diffusers():
    tensors = {part: load_file(REAL / f"taesd_{part}.safetensors") for part in BOTH}
    assert_equal_to_peer(load_taesd(REAL), peer_of(tensors))


@pytest.mark.skipif(not REAL.is_dir(), reason="the published TAESD files are not here")
@torch.no_grad()
def test_real_weights_keep_an_image_and_use_scaled_latents():
    taesd = load_taesd(REAL)
    y, x = torch.meshgrid(torch.linspace(-1, 1, 128), torch.linspace(-1, 1, 128), indexing="ij")
    image = torch.stack([x, y, (x * y * 3).sin()])[None]  # (1, 3, 128, 128)
    latent = taesd.encode(image)
    # Scaled: unscaled latents of SD 1.x have a standard deviation of about 5.
    assert 0.3 < latent.std() < 2
    # A lossy code, 0.06 of the range of 2 off on this image; with LATENT_SCALE applied either way it is 0.43 off.
    assert (taesd.decode(latent) - image).abs().mean() < 0.1


@pytest.mark.parametrize("name", [".", "taesd_encoder.safetensors", "taesd_decoder.safetensors"])
def test_published_files(ours, folder, name):
    loaded = load_taesd(folder / name)
    assert all(torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), ours.state_dict().values(), strict=True))
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


@pytest.mark.parametrize("name", [".", "diffusion_pytorch_model.safetensors"])
def test_diffusers_files(ours, tmp_path, name):
    peer_of({part: getattr(ours, part).state_dict() for part in BOTH}).save_pretrained(tmp_path)
    loaded = load_taesd(tmp_path / name, dtype=torch.float16)
    assert loaded.decoder[1].weight.dtype == torch.float16
    for key, tensor in ours.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], tensor.half()), key


@torch.no_grad()
def test_decoder_alone(ours, folder):
    (folder / "taesd_encoder.safetensors").unlink()
    loaded = load_taesd(folder / "taesd_decoder.safetensors")
    latent = torch.ones(1, 4, 2, 2)
    assert torch.equal(loaded.decode(latent), ours.decode(latent))
    with pytest.raises(UserError, match="can only decode"):
        loaded.encode(torch.zeros(1, 3, 16, 16))


def test_wrong_files(folder):
    with pytest.raises(UserError, match="file not found"):
        load_taesd(folder / "none.safetensors")
    (folder / "empty").mkdir()
    with pytest.raises(UserError, match="holds no TAESD"):
        load_taesd(folder / "empty")
    decoder = folder / "taesd_decoder.safetensors"
    whole = decoder.read_bytes()
    for broken in (b"", b"<html>not found</html>", whole[: len(whole) // 2]):
        decoder.write_bytes(broken)
        with pytest.raises(UserError, match="not a whole file"):
            load_taesd(decoder)
    decoder.unlink()
    with pytest.raises(UserError, match="holds no TAESD decoder"):
        load_taesd(folder)
    other = {"encoder.weight": torch.zeros(2)}
    save_file(other, decoder)
    with pytest.raises(UserError, match="another model"):
        load_taesd(decoder)


def test_sd3s_tiny_autoencoder_is_refused(folder):
    decoder = folder / "taesd_decoder.safetensors"
    save_file(load_file(decoder) | {"1.weight": torch.zeros(64, 16, 3, 3)}, decoder)
    with pytest.raises(UserError, match="not TAESD for SD 1"):
        load_taesd(folder)
