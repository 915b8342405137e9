import torch

from sd.schedule import SD1_SCHEDULE
from tour.figure import Models
from tour.short_training import FALLS_BELOW, STEPS, ten_names, train_briefly


class Half(torch.nn.Module):
    """A U-Net that says half of what it sees."""

    def __init__(self):
        super().__init__()
        self.out = torch.nn.ModuleList([torch.nn.Identity(), torch.nn.Identity(), torch.nn.Linear(1, 1)])

    def forward(self, x, t, context):
        return x / 2


def test_it_is_the_weighted_mean_square(exercise):
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 3, 4, 8, 8, generator=generator).unbind(0)
    t, weights = torch.tensor([3, 500, 999]), torch.arange(1000) / 100
    found = exercise.prediction_errors(Half(), x0, noise, t, torch.zeros(3, 2, 5), weights)
    assert found.shape == (3,)
    for i in range(3):
        seen = SD1_SCHEDULE.add_noise(x0[i : i + 1], noise[i : i + 1], t[i : i + 1])[0]
        expected = weights[t[i]] * (seen / 2 - noise[i]).square().mean()
        assert torch.allclose(found[i], expected, rtol=1e-4)  # float32


def test_two_hundred_steps_on_ten_names_lower_it(exercise, tmp_path):
    _, losses = train_briefly(*ten_names(Models()), tmp_path, exercise.prediction_errors)
    assert len(losses) == STEPS == 200
    # A new network answers 0, and the noise of ten latents has a mean square of 1 to four standard errors, 0.11.
    assert abs(losses[0] - 1) < 0.12
    assert sum(losses[-50:]) / 50 < FALLS_BELOW
