"""The number format that this machine computes in fastest, from what PyTorch says about its processor."""

import pytest

from sd.utils import device as devices

ONEDNN, AVX512, BF16, AMX = (
    "ops.mkldnn._is_mkldnn_bf16_supported",
    "cpu._is_avx512_supported",
    "cpu._is_avx512_bf16_supported",
    "cpu._is_amx_tile_supported",
)


@pytest.mark.parametrize(
    ("true", "missing", "expected"),
    [
        ({ONEDNN, AVX512}, set(), "fp32"),  # Cascade Lake: oneDNN converts around each product
        ({ONEDNN, AVX512, BF16}, set(), "bf16"),  # Zen 4
        ({ONEDNN, AVX512, AMX}, set(), "bf16"),
        ({ONEDNN}, set(), "bf16"),  # an ARM processor with bf16
        (set(), set(), "fp32"),  # AVX2
        ({ONEDNN, AVX512}, {BF16}, "bf16"),  # a version of PyTorch that does not say more
        (set(), {ONEDNN, AVX512, BF16, AMX}, "fp32"),
    ],
)
def test_bf16_where_the_processor_multiplies_in_it(true, missing, expected, monkeypatch):
    monkeypatch.setattr(devices, "find_private", lambda name: None if name in missing else lambda: name in true)
    assert devices.best_precision("cpu") == expected
