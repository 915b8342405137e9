"""The VAE layer by layer: the same bits, and the memory that it takes, counted tensor by tensor."""

import gc
import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sd.optimization.layerwise_vae import run_layerwise, run_whole_levels
from sd.optimization.registry import TRAINABLE, optimize
from sd.pipeline.stable_diffusion import StableDiffusion
from sd.unet import UNetModel
from sd.vae import AutoencoderKL

CHANNELS, SIZE = 32, 64
WIDEST = CHANNELS * 2 * SIZE * SIZE * 4  # bytes of the widest tensor: 64 channels at full size, in fp32


class MemoryCount(TorchDispatchMode):
    """The largest number of bytes that tensors made inside it occupied at one time."""

    def __init__(self):
        super().__init__()
        self.live, self.peak = {}, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                place, size = storage.data_ptr(), storage.nbytes()
                count = self.live.get(place, (0, size))[0]
                self.live[place] = (count + 1, size)
                weakref.finalize(tensor, self.release, place)
        self.peak = max(self.peak, sum(size for _, size in self.live.values()))
        return made

    def release(self, place: int) -> None:
        count, size = self.live[place]
        if count == 1:
            del self.live[place]
        else:
            self.live[place] = (count - 1, size)


def peak(run) -> int:
    gc.collect()
    with MemoryCount() as memory:
        run()
    return memory.peak


@pytest.fixture
def vae() -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(channels=CHANNELS, channel_mult=(1, 2, 2), num_res_blocks=2).eval()


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    image = torch.rand(1, 3, SIZE, SIZE, generator=generator) * 2 - 1
    return image, torch.randn(1, 4, SIZE // 4, SIZE // 4, generator=generator)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_values_are_the_same_bits(vae, dtype):
    vae.to(dtype)
    image, latent = (x.to(dtype) for x in inputs())
    expected = *vae.encode(image), vae.decode(latent)
    run_layerwise(vae)
    found = *vae.encode(image), vae.decode(latent)
    assert all(torch.equal(a, b) for a, b in zip(found, expected))
    run_whole_levels(vae)
    again = *vae.encode(image), vae.decode(latent)
    assert all(torch.equal(a, b) for a, b in zip(again, expected))


def test_gradients_are_the_same_bits(vae):
    found = []
    for patch in (run_whole_levels, run_layerwise):
        vae.zero_grad()
        patch(vae)
        image, latent = inputs()
        mean, logvar = vae.encode(image.requires_grad_())
        (mean.square().sum() + logvar.sum() + vae.decode(latent).square().sum()).backward()
        found.append([image.grad, *(parameter.grad.clone() for parameter in vae.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*found))


@torch.no_grad()
def test_decoding_peaks_at_two_and_a_half_of_the_widest_tensor(vae):
    """Where the decoder is widest, its first block at full size holds three tensors: its input and the norm of it, both
    of 64 channels, and the first convolution's output, of 32. Two and a half times the widest; a little for the rest.
    """
    _, latent = inputs()
    run_layerwise(vae)
    assert peak(lambda: vae.decode(latent)) < 2.6 * WIDEST
    run_whole_levels(vae)
    plain = peak(lambda: vae.decode(latent))
    run_layerwise(vae)
    assert peak(lambda: vae.decode(latent)) <= plain


@torch.no_grad()
def test_encoding_peaks_at_four_tensors_of_full_size(vae):
    """In a block: its input, what the first convolution gave, the norm of that, and the second convolution's output."""
    image, _ = inputs()
    run_layerwise(vae)
    assert peak(lambda: vae.encode(image)) < 2.1 * WIDEST
    run_whole_levels(vae)
    plain = peak(lambda: vae.encode(image))
    run_layerwise(vae)
    assert peak(lambda: vae.encode(image)) <= plain


def test_it_is_on_in_a_pipeline_and_while_training():
    asked = dict(prompt="a red apple", steps=2, seed=5)
    pipe = StableDiffusion.from_pretrained()
    pipe.optimizations = ()
    plain = pipe(**asked).images[0]
    kinds = [type(layer) for layer in pipe.vae.modules()]
    pipe.optimizations = ["layerwise-vae"]
    assert pipe(**asked).images[0].tobytes() == plain.tobytes()
    assert [type(layer) for layer in pipe.vae.modules()] != kinds
    assert "layerwise-vae" in optimize(pipe.unet, pipe.vae)
    assert "layerwise-vae" in optimize(pipe.unet, pipe.vae, TRAINABLE)
    optimize(pipe.unet, pipe.vae, ())
    assert [type(layer) for layer in pipe.vae.modules()] == kinds
    assert type(pipe.unet) is UNetModel
