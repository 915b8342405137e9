"""Accumulation, several processes, precision and hooks of the training loop, and its failures."""

import errno
import json
import math
import os
import socket
import threading
from dataclasses import replace

import pytest
import torch
from many_processes import together
from torch import nn

from sd.training.loop import TrainConfig, batch_indices, generator_for, lr_groups, train
from sd.training.train_state import TrainingState
from sd.utils.errors import UserError

pytestmark = pytest.mark.usefixtures("one_thread")

BASE = TrainConfig(steps=6, batch=2, lr=1e-2, warmup=0, ema=0, precision="fp32", by_example=True, save_minutes=60)


def line():
    torch.manual_seed(0)
    return nn.Linear(3, 1)


def noisy(model, indices, generators):
    """Fit the sum of three random numbers, with data and noise from each example's own generator."""
    x = torch.stack([torch.randn(3, generator=generator) for generator in generators]) + indices[:, None] / 10
    return (model(x)[:, 0] - x.sum(dim=1)).square().mean()


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def test_accumulation_and_processes_equal_one_large_batch(tmp_path):
    whole = train(line(), noisy, 10, tmp_path / "whole", replace(BASE, batch=4))
    parts = train(line(), noisy, 10, tmp_path / "parts", replace(BASE, batch=1, accumulate=4))

    def work():
        torch.save(train(line(), noisy, 10, tmp_path / "two", BASE).state_dict(), tmp_path / f"{os.environ['RANK']}.pt")

    assert together(work, 2, free_port()) == [0, 0]
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)
    # fp32 sums of four gradients in another order; Adam makes of 1e-7 in a gradient no more than 1e-6 in a weight.
    for key, weight in whole.state_dict().items():
        assert torch.allclose(parts.state_dict()[key], weight, atol=1e-5)
        assert torch.allclose(first[key], weight, atol=1e-5)
    assert not torch.allclose(whole.weight, line().weight, atol=1e-3)


def test_places_have_generators_of_their_own_however_the_batch_is_cut():
    def draws(settings, places):
        random = [one for place in places for one in generator_for(settings, 3, place)]
        return [torch.rand((), generator=one).item() for one in random]

    whole = draws(replace(BASE, batch=4), [0])
    assert len(set(whole)) == 4
    assert draws(replace(BASE, batch=1), range(4)) == draws(replace(BASE, batch=2), range(2)) == whole
    shared = [batch_indices(3, 2, 10, 0, rank, 2).tolist() for rank in range(2)]
    assert shared[0] + shared[1] == batch_indices(3, 4, 10, 0).tolist()


def test_constant_schedule_stays_after_its_warmup():
    settings = replace(BASE, steps=100, lr=2.0, warmup=4, schedule="constant")
    assert [settings.lr_at(step) for step in (0, 3, 4, 99)] == [0.5, 2.0, 2.0, 2.0]


def test_a_part_of_the_model_has_its_share_of_the_rate(tmp_path):
    model = nn.ModuleDict({"unet": nn.Linear(1, 1, bias=False), "clip": nn.Linear(1, 1, bias=False)})
    groups, lr_multipliers = lr_groups(model, {"clip": 0.5})
    assert [group["params"] for group in groups] == [[model.unet.weight], [model.clip.weight]]
    assert lr_multipliers == [1.0, 0.5]
    before = {name: model[name].weight.item() for name in model}
    settings = replace(BASE, steps=1, lr_multipliers={"clip": 0.5}, weight_decay=0.0)
    train(model, lambda model, *_: model.unet.weight.sum() + model.clip.weight.sum(), 4, tmp_path, settings)
    moved = {name: before[name] - model[name].weight.item() for name in model}
    # Adam's first step is lr, whatever the gradient; 1e-6 is fp32's rounding of weights of about 1.
    assert moved == pytest.approx({"unet": 1e-2, "clip": 5e-3}, abs=1e-6)


def test_without_an_average_the_model_itself_is_returned_and_saved_once(tmp_path):
    model = line()
    assert train(model, noisy, 10, tmp_path, BASE) is model
    assert set(torch.load(tmp_path / "state.pt")) == {"step", "settings", "model", "optimizer"}
    with pytest.raises(UserError, match="has no average"):
        train(line(), noisy, 10, tmp_path, replace(BASE, ema=0.9))


def test_fp16_scales_its_gradients_and_resumes_with_the_same_scale(tmp_path):
    settings = replace(BASE, precision="fp16", steps=12)
    whole = train(line(), noisy, 10, tmp_path / "whole", settings)
    assert 1 < torch.load(tmp_path / "whole" / "state.pt")["scaler"]["scale"] < 65536
    assert not torch.equal(whole.weight, line().weight)

    def stop(average, step, loss):
        if step == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(line(), noisy, 10, tmp_path / "parts", settings, on_step=stop)
    parts = train(line(), noisy, 10, tmp_path / "parts", settings)
    assert torch.equal(parts.weight, whole.weight)


def test_fp16_leaves_out_a_step_that_overflows(tmp_path):
    """65536 times this gradient is beyond fp16's 65504: the scale halves until it fits, the weight waits meanwhile."""
    model = nn.Linear(1, 1, bias=False)
    before = model.weight.item()
    seen = []
    x = torch.full((1, 1), 100.0)
    on_step = lambda average, step, loss: seen.append(model.weight.item())  # noqa: E731
    settings = replace(BASE, precision="fp16", steps=12)
    train(model, lambda model, *_: model(x).sum(), 10, tmp_path, settings, on_step=on_step)
    assert seen[0] == before
    assert seen[-1] != before
    assert math.isfinite(seen[-1])


def test_the_hook_sees_every_step_and_its_measures_are_logged(tmp_path):
    seen = []

    def hook(average, step, loss):
        seen.append((step, loss))
        return {"held_out": 0.5, "nearest": ["dög"]} if step == 3 else None

    train(line(), noisy, 10, tmp_path, BASE, on_step=hook)
    assert [step for step, _ in seen] == [1, 2, 3, 4, 5, 6]
    (logged,) = [json.loads(text) for text in (tmp_path / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert (logged["step"], logged["held_out"], logged["nearest"]) == (3, 0.5, ["dög"])
    assert logged["loss"] == pytest.approx(sum(loss for _, loss in seen[:3]) / 3, abs=1e-6)  # written with 6 digits


def test_a_line_of_the_log_that_a_kill_cut_off_is_left_out(tmp_path):
    train(line(), noisy, 10, tmp_path, replace(BASE, steps=2), on_step=lambda *_: {"held_out": 1.0})
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"step": 2, "lo')
    train(line(), noisy, 10, tmp_path, replace(BASE, steps=3), on_step=lambda *_: {"held_out": 1.0})
    assert [json.loads(text)["step"] for text in (tmp_path / "log.jsonl").read_text().splitlines()] == [1, 2, 3]


def test_it_runs_and_stops_in_a_thread_that_is_not_the_main_one(tmp_path):
    stopped = []

    def stop(average, step, loss):
        raise KeyboardInterrupt

    def work():
        try:
            train(line(), noisy, 10, tmp_path, BASE, on_step=stop)
        except KeyboardInterrupt:
            stopped.append(torch.load(tmp_path / "state.pt")["step"])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert stopped == [1]


def breaks_at(step, value):
    """As `noisy`, but the step's loss is multiplied by `value`."""
    calls = []

    def loss(model, indices, generators):
        calls.append(1)
        return noisy(model, indices, generators) * (value if len(calls) == step + 1 else 1.0)

    return loss


def test_a_broken_loss_leaves_the_last_good_file(tmp_path):
    with pytest.raises(UserError, match=r"loss is not finite at step 3: .*state\.pt keeps step 3; .*--lr"):
        train(line(), breaks_at(3, math.nan), 10, tmp_path, replace(BASE, save_minutes=0))
    saved = torch.load(tmp_path / "state.pt")
    assert saved["step"] == 3
    assert saved["model"]["weight"].isfinite().all()
    train(line(), noisy, 10, tmp_path, BASE)
    with pytest.raises(UserError, match="at step 0: nothing was saved yet"):
        train(line(), breaks_at(0, math.inf), 10, tmp_path / "other", BASE)


def test_a_broken_gradient_changes_nothing(tmp_path):
    """The square root's slope at 0 is infinite while its value is 0."""
    model = line()
    before = model.weight.clone()
    with pytest.raises(UserError, match="gradient is not finite at step 0"):
        train(model, lambda model, *_: (0 * model.weight).sum().sqrt() * 1.0, 10, tmp_path, BASE)
    assert torch.equal(model.weight, before)


def test_a_full_disk_loses_no_earlier_save_and_is_one_sentence(tmp_path, monkeypatch):
    train(line(), noisy, 10, tmp_path, replace(BASE, steps=2))
    kept = (tmp_path / "state.pt").read_bytes()

    def full(content, file):
        file.write(b"half")
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError:
            raise RuntimeError("unexpected pos 64 vs 0")  # noqa: B904 - as torch does it

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match=r"state\.pt could not be written: No space left on device; what was there"):
        train(line(), noisy, 10, tmp_path, BASE)
    assert (tmp_path / "state.pt").read_bytes() == kept
    assert sorted(path.name for path in tmp_path.iterdir() if "tfevents" not in path.name) == ["log.jsonl", "state.pt"]
    monkeypatch.undo()
    train(line(), noisy, 10, tmp_path, BASE)


def test_a_log_that_cannot_be_written_is_one_sentence(tmp_path):
    def hook(average, step, loss):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(UserError, match=r"cannot be written to \(No space left on device\): nothing was saved yet"):
        train(line(), noisy, 10, tmp_path, BASE, on_step=hook)


def test_a_state_holds_what_it_is_given_and_nothing_else(tmp_path):
    model = line()
    state = TrainingState(tmp_path, {"model": model}, BASE)
    state.step = 5
    state.save()
    other = TrainingState(tmp_path, {"model": nn.Linear(3, 1)}, BASE)
    other.resume()
    assert other.step == 5
    assert torch.equal(other.parts["model"].weight, model.weight)
    assert other.describe_saved() == f"{tmp_path / 'state.pt'} keeps step 5"
