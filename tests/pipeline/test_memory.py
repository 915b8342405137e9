"""What images take, told by processes of their own: a whole one at v1-5's size, and a large one beside its networks."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.runner import peak_in_child
from benchmarks.tasks import Options
from sd.utils.device import cpu_has_amx, cpu_has_bf16

HAS_BF16 = cpu_has_bf16() and not cpu_has_amx()


@pytest.mark.slow
@pytest.mark.skipif(not HAS_BF16, reason="measured where bf16 has dot products; AMX has layouts of its own")
def test_an_image_in_bf16_takes_less_than_3_gb():
    """The weights are 2.1 GB of it. Measured: 2.84 to 2.88."""
    peak = peak_in_child("txt2img", "ours", Options(dtype="bf16", size=512))
    assert peak is None or 2.1e9 < peak < 3e9  # None: only Linux says it


LARGE = """
import gc, torch
from PIL import Image
from sd.pipeline.init_image import prepare_init_image
from sd.pipeline.latents import decode_latent
from sd.utils.images import from_tensor

class Nearest(torch.nn.Module):  # a VAE that takes no memory of its own
    downsample = 8
    def __init__(self):
        super().__init__()
        self.post_quant_conv, self.decoder = torch.nn.Conv2d(4, 4, 1), torch.nn.Module()
        self.decoder.up = []
    def encode(self, image):
        mean = torch.nn.functional.avg_pool2d(image, 8)[:, [0, 1, 2, 0]]
        return mean, mean
    def decode(self, latent):
        return torch.nn.functional.interpolate(latent[:, :3], scale_factor=8)

class UNet:
    in_channels = 4

def megabytes():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))

def run(side):
    image = Image.new("RGB", (side, side), "teal")
    init = prepare_init_image(UNet(), Nearest(), image, None, side, side)
    return from_tensor(decode_latent(Nearest(), init.init_latent))[0]

with torch.no_grad():
    run(1040)
    before = megabytes()
    assert run(4096).getpixel((4095, 7)) == (0, 128, 128)
    print(megabytes() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux says the peak of a process")
def test_a_large_image_is_held_in_fp32_once():
    """Beside the networks, 4,096x4,096 pixels take 192 MB in fp32, a third more for the tiles' weights, 48 MB as bytes.

    Measured: 357 MB, since the image to start from is there as bytes too; with two copies in fp32, 600 MB.
    """
    ran = subprocess.run([sys.executable, "-c", LARGE], check=True, capture_output=True, text=True)
    assert 192 < float(ran.stdout) < 480
