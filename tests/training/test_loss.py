"""The loss against its formulas, written out."""

import math

import pytest
import torch
from torch import nn

from sd.checkpoints.predictions import PREDICTIONS
from sd.pipeline.sampling.v_prediction import schedule_of
from sd.schedule import SD1_SCHEDULE
from sd.training.finetune.batch import DiffusionLoss, Example, TrainingSource, fixed_examples
from sd.training.loss import offset_noise, prediction_errors, snr_weights


class Guess(nn.Module):
    """A U-Net that says half of what it sees, plus what the text says."""

    def __init__(self):
        super().__init__()
        self.out = nn.ModuleList([nn.Identity(), nn.Identity(), nn.Conv2d(1, 1, 1)])
        self.sizes = []

    def forward(self, x, t, context):
        self.sizes.append(tuple(x.shape))
        return 0.5 * x + context.mean(dim=(1, 2))[:, None, None, None]


def contexts(texts):
    return torch.tensor([float(len(text)) for text in texts])[:, None, None].expand(-1, 2, 3)


def test_weights_without_bounds_are_ones():
    assert torch.equal(snr_weights(), torch.ones(1000))


def test_min_snr_is_hang_et_als():
    a = SD1_SCHEDULE.alphas_cumprod.double()
    snr = a / (1 - a)
    expected = torch.minimum(snr, torch.tensor(5.0)) / snr
    assert torch.allclose(snr_weights(highest=5.0).double(), expected, rtol=1e-5)  # fp32 of 1 - a near a = 1
    assert snr_weights(highest=5.0)[999] == 1
    assert snr_weights(highest=5.0)[0] < 0.01


def test_error_is_the_weighed_mean_square():
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 3, 4, 2, 2, generator=generator).unbind(0)
    t, weights = torch.tensor([3, 500, 999]), torch.arange(1000) / 100
    found = prediction_errors(Guess(), x0, noise, t, contexts(["", "a", "bb"]), weights)
    for i in range(3):
        a = SD1_SCHEDULE.alphas_cumprod[t[i]].item()
        seen = math.sqrt(a) * x0[i] + math.sqrt(1 - a) * noise[i]
        expected = weights[t[i]] * (0.5 * seen + i - noise[i]).square().mean()
        assert found[i].item() == pytest.approx(expected.item(), rel=1e-5)  # fp32


def test_noise_offset_adds_its_square_to_the_variance_of_the_means():
    generator = torch.Generator().manual_seed(0)
    noise = torch.stack([offset_noise((4, 8, 8), 0.5, generator) for _ in range(2000)])
    means = noise.mean(dim=(2, 3))  # of variance 1/64 + 0.25
    # 8,000 of them: the variance is known to 1.6 %, three times that is allowed.
    assert means.var().item() == pytest.approx(1 / 64 + 0.25, rel=0.05)
    assert (noise - means[..., None, None]).var().item() == pytest.approx(63 / 64, rel=0.02)
    plain = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(1))
    assert torch.equal(offset_noise((4, 8, 8), 0.0, torch.Generator().manual_seed(1)), plain)


class Latents:
    """Of image i: all i, wide for odd ones."""

    def sample(self, indices, generator):
        return [torch.full((4, 2, 4 if i % 2 else 2), float(i)) for i in indices]


class Texts:
    def sample(self, indices, generator):
        return ["x" * int(i) for i in indices]


def test_shapes_go_through_apart_and_the_prior_counts_with_its_weight():
    unet, weights = Guess(), snr_weights()
    subject = TrainingSource(Latents(), Texts(), indices=[0, 1, 2])
    prior = TrainingSource(Latents(), Texts(), indices=[4], weight=0.25)
    diffusion_loss = DiffusionLoss(unet, contexts, weights, subject, prior)

    def generators():
        return [torch.Generator().manual_seed(seed) for seed in (7, 8, 9)]

    found = diffusion_loss(None, torch.tensor([0, 1, 2]), generators())
    assert sorted(unet.sizes) == [(1, 4, 2, 4), (5, 4, 2, 2)]

    drawn = generators()
    examples = [subject.make_example(i, generator) for i, generator in enumerate(drawn)]
    for generator in drawn:
        torch.randint(1, (), generator=generator)
        examples.append(prior.make_example(0, generator))
    assert [one.weight for one in examples] == [1, 1, 1, 0.25, 0.25, 0.25]
    errors = []
    for one in examples:
        batch = one.x0[None], one.noise[None], torch.tensor([one.t])
        errors.append(one.weight * prediction_errors(unet, *batch, contexts([one.text]), weights).item())
    assert found.item() == pytest.approx(sum(errors) / 3, rel=1e-5)  # fp32 sums in another order


def test_fixed_examples_stay_the_same_and_cover_the_times():
    source = TrainingSource(Latents(), Texts(), indices=[2, 3])
    first, again = fixed_examples(source), fixed_examples(source)
    assert [one.t for one in first] == [62, 187, 312, 437, 562, 687, 812, 937]
    assert [one.text for one in first] == ["xx", "xxx"] * 4
    assert all(torch.equal(a.noise, b.noise) for a, b in zip(first, again))
    diffusion_loss = DiffusionLoss(Guess(), contexts, snr_weights(highest=5.0), source)
    plain = [diffusion_loss.total_loss([one], torch.ones(1000)).item() for one in first]
    assert diffusion_loss.fixed_loss(first) == pytest.approx(sum(plain) / 8)


class VGuess(Guess):
    """The same estimate of the noise, as the v that goes with it: sqrt(1 + sigma²) * eps - sigma * x."""

    def forward(self, x, t, context):
        sigma = SD1_SCHEDULE.sigmas.float()[t].view(-1, 1, 1, 1)
        return (1 + sigma**2).sqrt() * super().forward(x, t, context) - sigma * x


def test_the_held_out_loss_is_that_of_the_noise_whatever_the_model_predicts():
    source = TrainingSource(Latents(), Texts(), indices=[2, 3])
    examples = fixed_examples(source)
    eps = DiffusionLoss(Guess(), contexts, snr_weights(), source).fixed_loss(examples)
    v = DiffusionLoss(VGuess(), contexts, snr_weights(), source, prediction=PREDICTIONS["v"]).fixed_loss(examples)
    assert v == pytest.approx(eps, rel=1e-4)  # fp32: at t = 937 v is a difference of numbers ten times as large


def test_an_example_takes_its_time_from_the_generator_even_where_it_is_given():
    """So that a given time does not change the noise."""
    source = TrainingSource(Latents(), Texts(), indices=[0])
    free, given = (source.make_example(0, torch.Generator().manual_seed(4), t) for t in (None, 10))
    assert isinstance(free, Example)
    assert given.t == 10
    assert torch.equal(free.noise, given.noise)


@pytest.mark.parametrize("prediction", [PREDICTIONS["v"], PREDICTIONS["v-zero-snr"]], ids=lambda one: one.name)
def test_the_error_in_v_is_its_definition(prediction):
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 3, 4, 2, 2, generator=generator).unbind(0)
    t = torch.tensor([3, 500, 999])
    weights = snr_weights(prediction=prediction)
    assert torch.equal(weights, torch.ones(1000))
    found = prediction_errors(Guess(), x0, noise, t, contexts(["", "a", "bb"]), weights, prediction)
    for i in range(3):
        a = schedule_of(prediction).alphas_cumprod[t[i]].item()
        seen = math.sqrt(a) * x0[i] + math.sqrt(1 - a) * noise[i]
        v = math.sqrt(a) * noise[i] - math.sqrt(1 - a) * x0[i]
        assert found[i].item() == pytest.approx((0.5 * seen + i - v).square().mean().item(), rel=1e-4)  # fp32


def test_min_snr_for_v_is_hang_et_als():
    a = SD1_SCHEDULE.alphas_cumprod.double()
    snr = a / (1 - a)
    expected = torch.minimum(snr, torch.tensor(5.0)) / (snr + 1)
    found = snr_weights(highest=5.0, prediction=PREDICTIONS["v"])
    assert torch.allclose(found.double(), expected, rtol=1e-5)  # fp32 of 1 - a near a = 1
