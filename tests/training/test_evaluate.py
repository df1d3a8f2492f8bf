"""Scores, batch-norm statistics taken anew, averaged weights."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F

import st3fx
from st3fx.commands.train import train_spec
from st3fx.training.evaluate import evaluate, recalibrated
from st3fx.training.log import Running
from st3fx.training.machine import release
from st3fx.training.saving import load_checkpoint
from st3fx.training.session import Average
from tests.nets import Net, image
from tests.training.runs import Recorder, folder_of, settings


@pytest.fixture
def accelerator() -> Any:
    release()
    yield Accelerator(cpu=True)
    release()


def test_scores_are_those_of_all_samples(accelerator: Accelerator) -> None:
    """Batches of different sizes weigh by their samples."""
    table = torch.randn(50, 8)
    targets = torch.randint(0, 8, (50,))
    model = nn.Sequential(nn.Dropout(0.9)).train()
    batches = [
        (table[:30], targets[:30]),
        (table[30:49], targets[30:49]),
        (table[49:], targets[49:]),
    ]
    seen = []
    scores = evaluate(
        model, batches, accelerator, to_format=lambda x: x * 2, between=lambda: seen.append(1)
    )
    logits = 2 * table
    assert scores.samples == 50
    assert scores.loss == pytest.approx(F.cross_entropy(logits, targets).item(), rel=1e-6)
    assert scores.top1 == (logits.argmax(1) == targets).double().mean().item()
    five = logits.topk(5, 1).indices == targets[:, None]
    assert scores.top5 == pytest.approx(five.any(1).float().mean().item())
    assert len(seen) == 3
    assert model.training  # and evaluated without dropout
    few = evaluate(model, [(table[:, :5], targets.clamp(max=4))], accelerator)
    assert few.top5 is None


def test_running_sums(accelerator: Accelerator) -> None:
    running = Running(accelerator)
    logits = torch.tensor([[2.0, 1.0], [0.0, 1.0], [3.0, 0.0]])
    running.add(torch.tensor(0.5), logits, torch.tensor([0, 1, 1]))
    saved = running.state()
    running.add(torch.tensor(2.0), logits[:1], torch.tensor([0]))
    assert list(running.read()) == pytest.approx([(3 * 0.5 + 2.0) / 4, 3 / 4])
    assert running.read() == (0.0, 0.0)
    running.load(saved)
    assert list(running.read()) == pytest.approx([0.5, 2 / 3])


def test_statistics_are_plain_means_over_the_batches() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5), nn.BatchNorm1d(3)).train()
    model(torch.randn(20, 3) * 9)
    model[1].eval()
    before = copy.deepcopy(model.state_dict())
    batches = [(torch.randn(10, 3) + 5, None), (torch.randn(10, 3) - 1, None)]
    with recalibrated(model, batches, lambda x: x, keep=False):
        norm = model[0]
        assert isinstance(norm, nn.BatchNorm1d)
        means = torch.stack([x.mean(0) for x, _ in batches]).mean(0)
        variances = torch.stack([x.var(0) for x, _ in batches]).mean(0)
        torch.testing.assert_close(norm.running_mean, means)
        torch.testing.assert_close(norm.running_var, variances)
        assert norm.momentum == 0.1
    # Modes and statistics of training are back.
    assert [module.training for module in model] == [True, False, True]
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    with recalibrated(model, batches, lambda x: x, keep=True):
        pass
    torch.testing.assert_close(model[0].running_mean, means)


@pytest.mark.slow
def test_stale_statistics_are_not_what_is_scored(tmp_path: Path) -> None:
    """While thresholds rise, the running means lag behind; taken anew they do not."""
    losses, states = [], []
    for count in (0, 4):
        one = settings(tmp_path, epochs=1, bn_recalibrate=count, ramp=(0.0, 1.0), sparsity=0.8,
                       output_dir=str(tmp_path / str(count)))  # fmt: skip
        losses.append(train_spec(one).scores.loss)
        states.append(load_checkpoint(folder_of(one).last).model)
        bundle = st3fx.load_bundle(folder_of(one).bundle).state_dict()
        kept = torch.equal(bundle["norm.running_var"], states[-1]["norm.running_var"])
        assert kept == (count == 0)  # the model that is kept is the one that was scored
    assert losses[1] < losses[0] - 0.05
    # Training itself did not notice.
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


def _converted() -> tuple[nn.Module, st3fx.Sparsifier]:
    method = st3fx.ST3(0.7, schedule=st3fx.CubicSchedule(0.0, 0.5))
    return st3fx.convert(Net(), image(), method, total_steps=8)


def test_latent_weights_are_averaged_then_thresholded() -> None:
    model, sparsifier = _converted()
    average = Average(model, 0.5)
    expected: dict[str, Tensor] = {k: v.clone() for k, v in model.named_parameters()}
    for step in range(1, 7):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
        sparsifier.step()
        average.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        for key, value in model.named_parameters():
            expected[key] = decay * expected[key] + (1 - decay) * value.detach()
    for key, value in average.model.named_parameters():
        torch.testing.assert_close(value, expected[key], rtol=1e-5, atol=1e-6)
    its = average.threshold()
    assert its.steps == sparsifier.steps == 6
    assert its.sparsity == pytest.approx(0.7, abs=2e-3)
    # The thresholds are those of the averaged weights, not averages or copies of thresholds.
    assert its.thresholds != sparsifier.thresholds
    twin, twins = _converted()
    twin.load_state_dict(average.model.state_dict())
    twins.set_sparsity(0.7)
    assert twins.thresholds == its.thresholds
    # An average of the effective weights would have been less sparse.
    assert sparsifier.sparsity == pytest.approx(0.7, abs=2e-3)
    assert not any(parameter.requires_grad for parameter in average.model.parameters())


@pytest.mark.slow
def test_the_average_is_what_is_scored_and_kept(tmp_path: Path) -> None:
    one = settings(tmp_path, model_ema=True, model_ema_decay=0.8, bn_recalibrate=0)
    report = Recorder()
    result = train_spec(one, report=report)
    saved = load_checkpoint(folder_of(one).last)
    assert saved.average is not None
    bundle = st3fx.load_bundle(folder_of(one).bundle)
    assert torch.equal(bundle.get_parameter("head.weight"), saved.average["head.weight"])
    assert not torch.equal(saved.average["head.weight"], saved.model["head.weight"])
    assert st3fx.Sparsifier(bundle).sparsity == result.sparsity == report.scores[-1].sparsity
    assert result.scores.top1 == report.scores[-1].top1
    assert result.sparsity == pytest.approx(0.9, abs=1e-3)
