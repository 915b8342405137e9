"""Class images, and what is left of them by a Ctrl-C."""

from types import SimpleNamespace

import pytest
from PIL import Image

from sd.training.finetune.prior_preservation import generate_class_images


class FakePipe:
    """Paints each seed in its own color; a Ctrl-C comes with the seed `stop_at`."""

    path = None

    def __init__(self, stop_at=None):
        self.stop_at, self.seeds = stop_at, []

    def __call__(self, prompt, seed, width, height):
        if seed == self.stop_at:
            raise KeyboardInterrupt
        self.seeds.append(seed)
        return SimpleNamespace(images=[Image.new("RGB", (width, height), (seed, 0, 0))])


def test_an_interrupted_run_keeps_its_class_images_and_says_so(tmp_path, capsys):
    with pytest.raises(KeyboardInterrupt):
        generate_class_images(FakePipe(stop_at=2), "a dog", 4, tmp_path, 8)
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == "to go on: run the same command, which keeps the finished class images"
    rest = FakePipe()
    folder = generate_class_images(rest, "a dog", 4, tmp_path, 8)
    assert rest.seeds == [2, 3]
    assert [Image.open(path).getpixel((0, 0)) for path in sorted(folder.iterdir())] == [(k, 0, 0) for k in range(4)]
