import pytest
import torch

from sd.denoiser import Denoiser, Guidance

SIGMA = 2.0
X = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
COND, UNCOND = torch.full((2, 3, 5), 0.3), torch.full((2, 3, 5), -0.1)


def unet(x, t, context):
    """It predicts something that depends on the text."""
    return torch.tanh(x + context.mean(dim=(1, 2)).view(-1, 1, 1, 1))


@pytest.mark.parametrize("scale", [0.0, 3.0, 7.5])
def test_it_is_the_formula(exercise, scale):
    cond, uncond = Denoiser(unet, COND)(X, SIGMA), Denoiser(unet, UNCOND)(X, SIGMA)
    found = exercise.guided(Guidance(unet, COND, UNCOND, scale), X, SIGMA)
    assert torch.allclose(found, uncond + scale * (cond - uncond), atol=1e-5)  # float32 rounding, times the scale


def test_scale_zero_ignores_the_prompt_and_one_is_the_prompt_alone(exercise):
    for scale, context in ((0.0, UNCOND), (1.0, COND)):
        found = exercise.guided(Guidance(unet, COND, UNCOND, scale), X, SIGMA)
        assert torch.allclose(found, Denoiser(unet, context)(X, SIGMA), atol=1e-5)
