"""What the tests of the samplers share: a nonlinear denoiser, a Gaussian one, and k-diffusion's sampling module."""

import importlib.util
import sys
import types

import pytest
import torch


def nonlinear(x, sigma):
    """A denoiser that is nonlinear in x, mixes places and depends on sigma."""
    scaled = x / (1 + sigma**2) ** 0.5
    eps = torch.tanh(scaled * 0.8 + 0.3 * torch.sin(3 * scaled.roll(1, -1))) * (1 - 0.2 / (1 + sigma))
    return x - sigma * eps


@pytest.fixture
def denoise():
    return nonlinear


def normal_tensors(count, shape=(2, 4, 8, 8), dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=dtype) for _ in range(count)]


@pytest.fixture
def tensors():
    return normal_tensors


@pytest.fixture(scope="session")
def k_sampling():
    """k-diffusion's `sampling.py`, loaded alone: the package's other modules need what no test here does.

    `pip install --no-deps k-diffusion==0.1.1.post1` is enough for it.
    """
    pytest.importorskip("scipy")
    spec = importlib.util.find_spec("k_diffusion")
    if spec is None:
        pytest.skip("k-diffusion is not installed: pip install --no-deps k-diffusion==0.1.1.post1")
    folder = spec.submodule_search_locations[0]
    package = types.ModuleType("k_diffusion_alone")
    package.__path__ = []
    utils = types.ModuleType("k_diffusion_alone.utils")
    utils.append_dims = lambda x, dims: x[(...,) + (None,) * (dims - x.ndim)]
    package.utils = utils
    stubs = {"k_diffusion_alone": package, "k_diffusion_alone.utils": utils}
    for name, attribute in (("torchdiffeq", "odeint"), ("torchsde", "BrownianTree")):
        if importlib.util.find_spec(name) is None:
            stubs[name] = types.ModuleType(name)
            setattr(stubs[name], attribute, None)
    before = {name: sys.modules.get(name) for name in stubs}
    sys.modules.update(stubs)
    try:
        spec = importlib.util.spec_from_file_location("k_diffusion_alone.sampling", f"{folder}/sampling.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        for name, old in before.items():
            if old is None:
                del sys.modules[name]
            else:
                sys.modules[name] = old
    return module
