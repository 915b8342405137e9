"""What a whole image takes at v1-5's size: a process of its own, with random weights, tells its peak."""

import pytest
import torch

from benchmarks.runner import peak_in_child
from benchmarks.tasks import Options

HAS_BF16 = torch.ops.mkldnn._is_mkldnn_bf16_supported() and not torch.cpu._is_amx_tile_supported()


@pytest.mark.slow
@pytest.mark.skipif(not HAS_BF16, reason="measured where bf16 has dot products; AMX has layouts of its own")
def test_an_image_in_bf16_takes_less_than_3_gb():
    """The weights are 2.1 GB of it. Measured: 2.84 to 2.88."""
    peak = peak_in_child("txt2img", "ours", Options(dtype="bf16", size=512))
    assert peak is None or 2.1e9 < peak < 3e9  # None: only Linux says it
