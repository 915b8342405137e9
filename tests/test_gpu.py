"""What only a GPU can show: that nothing in the loop waits for it, and that its patches give the same image."""

import pytest
import torch
from optimization.test_registry import distance

from sd.optimization.registry import EXACT
from sd.pipeline.init_image import InitImage
from sd.pipeline.noise import SeededNoise
from sd.pipeline.sampling_loop import sample, sigmas_for_passes
from sd.pipeline.settings import GenerationSettings
from sd.pipeline.stable_diffusion import StableDiffusion
from sd.samplers import SAMPLERS

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
ASKED = dict(prompt="a red apple, noto emoji", steps=6, sampler="dpmpp_2m", guidance_scale=3.0, seed=5)


@pytest.fixture(scope="module")
def pipe() -> StableDiffusion:
    return StableDiffusion.from_pretrained(device="cuda")


@pytest.mark.parametrize("sampler", SAMPLERS)
@torch.no_grad()
def test_no_step_waits_for_the_gpu(pipe, sampler):
    settings = GenerationSettings("a red apple", steps=4, sampler=sampler)
    contexts, noise = pipe.encode_prompts(settings), SeededNoise([1], (4, 16, 16), pipe.device)
    sigmas = sigmas_for_passes(settings, from_image=False)[0]
    steps = []

    def on_each(x0: torch.Tensor) -> None:
        torch.cuda.set_sync_debug_mode("error")  # from the first step's end on
        steps.append(x0)

    try:
        sample(pipe.unet, settings, sigmas, contexts, InitImage(), noise, on_each)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(steps) == len(sigmas) - 1


@pytest.mark.parametrize("patch", ["model-cpu-offload", "compile"])
def test_patches_of_the_gpu_generate_the_same_image(pipe, patch):
    pipe.optimizations = None
    expected = pipe(**ASKED).latents
    pipe.optimizations = [EXACT, patch]
    # fp16 rounds at 5e-4, and guidance multiplies what kernels that add in another order make of that.
    assert distance(pipe(**ASKED).latents, expected) < 3e-2
    pipe.optimizations = None
    assert torch.equal(pipe(**ASKED).latents, expected)


@torch.no_grad()
def test_one_network_at_a_time_takes_the_memory_of_one():
    every = StableDiffusion.from_pretrained(device="cuda")
    sizes = [sum(p.nbytes for p in network.parameters()) for network in (every.unet, every.clip, every.vae)]
    before = torch.cuda.memory_allocated()
    every.optimizations = [EXACT, "model-cpu-offload"]
    every(**ASKED | {"steps": 1})
    assert before - torch.cuda.memory_allocated() > 0.9 * (sum(sizes) - sizes[2])
