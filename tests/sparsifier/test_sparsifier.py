"""The sparsifier: steps, schedule, thresholds, states."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import st3fx
from st3fx.errors import MethodError, StateError
from tests.nets import Net, image

SITES = ["stem.weight", "block.conv1.weight", "block.conv2.weight", "fc.weight", "head.weight"]


def converted(**options: Any) -> tuple[nn.Module, st3fx.Sparsifier]:
    method = options.pop("method", st3fx.ST3(0.8, schedule=st3fx.CubicSchedule(0.2, 0.6)))
    return st3fx.convert(Net(), image(), method, verify=False, **options)


def test_it_starts_inactive() -> None:
    model, sparsifier = converted()
    assert (sparsifier.steps, sparsifier.sparsity, sparsifier.target) == (0, 0.0, 0.8)
    assert list(sparsifier.thresholds) == SITES
    assert all(value < 0 for value in sparsifier.thresholds.values())
    for name, weight in sparsifier.effective_weights().items():
        assert torch.equal(weight, model.get_parameter(name))
        assert not weight.requires_grad


def test_it_follows_the_schedule() -> None:
    _, sparsifier = converted(total_steps=10)
    schedule = st3fx.CubicSchedule(0.2, 0.6)
    for step in range(1, 13):
        sparsifier.step()
        assert sparsifier.steps == step
        expected = schedule.sparsity(step, 10, 0.8)
        total = sparsifier.plan.numel
        assert sparsifier.sparsity == pytest.approx(expected, abs=1.5 / total)
        assert (min(sparsifier.thresholds.values()) < 0) is (expected == 0)
    assert sparsifier.sparsity == pytest.approx(0.8, abs=1.5 / total)


def test_a_step_without_total_steps_says_what_to_do() -> None:
    _, sparsifier = converted()
    with pytest.raises(StateError, match="give total_steps= to convert, or use set_sparsity"):
        sparsifier.step()
    assert sparsifier.steps == 0


@pytest.mark.parametrize("normalize", [None, "sigma"])
def test_the_threshold_is_the_global_quantile(normalize: Any) -> None:
    model, sparsifier = converted(method=st3fx.ST3(normalize=normalize))
    sparsifier.set_sparsity(0.7)
    weights = {name: model.get_parameter(name).detach() for name in SITES}
    scale = {
        name: 1.0 if normalize is None else sum(weight.shape) ** -0.5
        for name, weight in weights.items()
    }
    scores = [w.abs().double().numpy().ravel() / scale[name] for name, w in weights.items()]
    level = np.quantile(np.concatenate(scores), 0.7)
    for name, threshold in sparsifier.thresholds.items():
        assert threshold == pytest.approx(level * scale[name], rel=1e-6)


def test_sparsity_may_go_up_and_down() -> None:
    _, sparsifier = converted()
    dense = sparsifier.effective_weights()
    values: dict[float, dict[str, torch.Tensor]] = {}
    for sparsity in (0.9, 0.3, 0.0, 0.9, 0.0):
        sparsifier.set_sparsity(sparsity)
        values.setdefault(sparsity, sparsifier.effective_weights())
        assert sparsifier.sparsity == pytest.approx(sparsity, abs=0.002)
        for name, weight in sparsifier.effective_weights().items():
            assert torch.equal(weight, values[sparsity][name])
    assert all(torch.equal(dense[name], weight) for name, weight in values[0.0].items())


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 1.1, float("nan")])
def test_a_sparsity_outside_its_range_changes_nothing(sparsity: float) -> None:
    _, sparsifier = converted()
    sparsifier.set_sparsity(0.5)
    before = sparsifier.thresholds
    with pytest.raises(MethodError, match=r"outside \[0, 1\)"):
        sparsifier.set_sparsity(sparsity)
    assert sparsifier.thresholds == before


def test_thresholds_follow_the_weights() -> None:
    model, sparsifier = converted()
    sparsifier.set_sparsity(0.5)
    before = sparsifier.thresholds
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0)
    assert sparsifier.thresholds == before
    sparsifier.set_sparsity(0.5)
    assert sparsifier.thresholds == pytest.approx({n: 2 * v for n, v in before.items()})


def test_the_penalty_is_zero_and_can_be_added() -> None:
    _, sparsifier = converted()
    penalty = sparsifier.penalty()
    assert (penalty.item(), penalty.shape) == (0.0, ())


def test_its_state_goes_into_another() -> None:
    _, sparsifier = converted(total_steps=10)
    for _ in range(5):
        sparsifier.step()
    state = copy.deepcopy(sparsifier.state_dict())
    _, other = converted(total_steps=10)
    other.load_state_dict(state)
    assert other.steps == 5
    assert other.thresholds == sparsifier.thresholds
    assert other.state_dict() == state
    other.step()
    sparsifier.step()
    assert other.steps == sparsifier.steps == 6


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda s: s["thresholds"].pop("fc.weight"), "1 sites differ, for example fc.weight"),
        (lambda s: s["thresholds"].update(odd=1.0), "for example odd"),
        (lambda s: s.pop("thresholds"), "state is of another model"),
    ],
)
def test_a_state_of_another_model(spoil: Any, message: str) -> None:
    _, sparsifier = converted()
    sparsifier.set_sparsity(0.5)
    before = sparsifier.thresholds
    state = copy.deepcopy(sparsifier.state_dict())
    spoil(state)
    with pytest.raises(StateError, match=message):
        sparsifier.load_state_dict(state)
    assert sparsifier.thresholds == before


def test_a_state_without_its_step() -> None:
    _, sparsifier = converted()
    state = sparsifier.state_dict()
    del state["step"]
    with pytest.raises(StateError):
        sparsifier.load_state_dict(state)


def test_only_a_converted_model_can_be_driven() -> None:
    with pytest.raises(StateError, match="Linear is not a converted model"):
        st3fx.Sparsifier(nn.Linear(2, 2))


def test_a_new_sparsifier_goes_on_where_the_model_is() -> None:
    model, sparsifier = converted(total_steps=10)
    for _ in range(4):
        sparsifier.step()
    other = st3fx.Sparsifier(model)
    assert other.steps == 4
    assert other.thresholds == sparsifier.thresholds


def test_the_same_seed_gives_the_same_weights() -> None:
    results = []
    for _ in range(2):
        torch.manual_seed(0)
        model, sparsifier = converted(total_steps=6)
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        torch.manual_seed(1)
        for _ in range(6):
            optimizer.zero_grad()
            model(image()).square().sum().backward()
            optimizer.step()
            sparsifier.step()
        results.append(model.state_dict())
    assert all(torch.equal(value, results[1][key]) for key, value in results[0].items())
