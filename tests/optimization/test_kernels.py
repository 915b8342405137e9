"""Private operators of PyTorch: a patch whose operators are missing, renamed or changed steps aside with a sentence."""

import pytest
import torch
from optimization.test_registry import distance, guided_inputs, small_networks
from torch import nn

from sd.optimization import fused_geglu, int8, kernels, prepacked_conv
from sd.optimization.registry import OPTIMIZATIONS, default_names, list_optimizations, optimize
from sd.unet import GEGLU
from sd.utils import device as devices
from sd.utils.device import cpu_has, find_private
from sd.utils.errors import UserError

CPU, FP32 = torch.device("cpu"), torch.float32
NEEDS = {
    "prepacked-conv": ("ops.mkldnn._convolution_pointwise", "_C._nn.mkldnn_reorder_conv2d_weight"),
    "fused-geglu": ("ops.mkldnn._linear_pointwise", "ops.mkldnn._linear_pointwise.binary"),
    "int8": (
        "ops.onednn.qlinear_prepack",
        "ops.onednn.qlinear_pointwise",
        "ops.onednn.qconv_prepack",
        "ops.onednn.qconv_pointwise",
    ),
}


@pytest.fixture(autouse=True)
def fresh_cache():
    """What is known of the operators is found again in each test, and after the last one."""
    caches = (kernels.find_kernel, kernels.trial_obstacle, kernels.onednn_obstacle)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


def hide(monkeypatch, *names: str) -> None:
    """As in a version of PyTorch that has no operators of these names."""
    monkeypatch.setattr(kernels, "find_private", lambda name: None if name in names else find_private(name))


def test_names_are_looked_up_below_torch():
    assert find_private("nn.functional.silu") is torch.nn.functional.silu
    for missing in ("ops.mkldnn._no_such_operator", "_no_such_module.function", "ops.no_such_library.operator"):
        assert find_private(missing) is None
        assert not cpu_has(missing)


def test_of_several_names_the_first_that_exists(monkeypatch):
    names = ("ops.aten.renamed", "ops.aten.relu")
    assert kernels.find_kernel(names) is torch.ops.aten.relu
    with pytest.raises(AttributeError, match=r"has no operator torch\.ops\.aten\.renamed"):
        kernels.find_kernel(("ops.aten.renamed",))


@pytest.mark.parametrize(("name", "operator"), [(name, one) for name, needs in NEEDS.items() for one in needs])
@torch.no_grad()
def test_without_its_operator_a_patch_steps_aside(name, operator, monkeypatch):
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this build of PyTorch has no oneDNN")
    monkeypatch.setattr(int8, "cpu_has_vnni", lambda: True)
    older = {"ops.onednn.qconv_pointwise": ("ops.onednn.qconv2d_pointwise",)}.get(operator, ())
    hide(monkeypatch, operator, *older)
    lines = {line.split()[0]: line for line in list_optimizations(CPU, FP32).splitlines()}
    assert lines[name].split()[1:3] == ["not", "here"]
    assert lines[name].endswith(f"Not here: PyTorch {torch.__version__} has no operator torch.{operator}.")
    assert name not in default_names(CPU, FP32)
    unet, vae = small_networks()
    expected = unet(*guided_inputs())
    assert name not in optimize(unet, vae)
    assert distance(unet(*guided_inputs()), expected) < 4e-6  # as in test_registry
    with pytest.raises(UserError, match=rf"{name} is not supported on this device and dtype \(PyTorch .* has no oper"):
        optimize(unet, vae, [name])


@torch.no_grad()
def test_an_operator_with_other_arguments_or_another_result_is_not_used(monkeypatch):
    def other_arguments(x, weight):
        raise AssertionError("never called")

    def other_result(*given):
        return 2 * torch.ops.mkldnn._linear_pointwise(*given)

    for found, reason in ((other_arguments, "takes 2 positional arguments"), (other_result, "not close")):
        kernels.find_kernel.cache_clear()
        kernels.trial_obstacle.cache_clear()
        monkeypatch.setattr(
            kernels, "find_private", lambda name, found=found: found if "linear" in name else find_private(name)
        )
        assert reason in fused_geglu.obstacle(CPU, FP32)
        layer = GEGLU(32, 64)
        x = torch.randn(1, 3, 32)
        expected = layer(x)
        fused_geglu.fuse_geglu(nn.Sequential(layer))
        assert torch.equal(layer(x), expected)


def test_a_trial_leaves_the_random_numbers_as_they_are():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    prepacked_conv.obstacle(CPU, FP32)
    fused_geglu.obstacle(CPU, FP32)
    kernels.trial_obstacle(int8.try_kernels, FP32)
    assert torch.equal(torch.rand(2), expected)


def test_a_build_without_the_predicates_has_no_bf16(monkeypatch):
    monkeypatch.setattr(devices, "find_private", lambda name: None)
    assert "bfloat16" in kernels.onednn_obstacle(CPU, torch.bfloat16)
    assert devices.dtype_of("autocast", CPU) == torch.float32


def test_each_optimization_says_why_it_is_not_here_or_is_here():
    for device, dtype in ((CPU, FP32), (CPU, torch.float64), (torch.device("cuda"), torch.float16)):
        for name, one in OPTIMIZATIONS.items():
            reason = one.obstacle(device, dtype)
            assert one.is_supported(device, dtype) == (not reason), name
            assert not reason or reason.endswith("."), name
