import torch

from sd.evaluation.memorization import COPY_THRESHOLD


def pictures(seed):
    return torch.rand(8, 192, generator=torch.Generator().manual_seed(seed))


def count(exercise, generated, training):
    similarity = exercise.standardize(generated) @ exercise.standardize(training).T
    return int((similarity.amax(dim=1) >= COPY_THRESHOLD).sum())


def test_rows_have_no_mean_and_length_one(exercise):
    rows = exercise.standardize(pictures(0).view(2, 4, 192))
    assert rows.shape == (2, 4, 192)
    assert rows.mean(dim=-1).abs().max() < 1e-6
    assert (rows.norm(dim=-1) - 1).abs().max() < 1e-5  # float32


def test_a_constant_row_correlates_with_nothing(exercise):
    assert torch.equal(exercise.standardize(torch.zeros(1, 5)), torch.zeros(1, 5))


def test_the_count(exercise):
    training = pictures(0)
    assert count(exercise, training, training) == 8
    assert count(exercise, pictures(1), training) == 0
    brighter_and_paler = 0.2 + 0.5 * training[:3]
    noisy = training[3:5] + 0.03 * torch.randn(2, 192, generator=torch.Generator().manual_seed(2))
    assert count(exercise, torch.cat([brighter_and_paler, noisy, pictures(3)]), training) == 5
