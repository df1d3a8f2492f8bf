"""A training that starts from the zeros of a model that is sparse already."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import st3fx
from st3fx.methods import DST, GMP, STR, Feather

X = torch.randn(16, 8, generator=torch.Generator().manual_seed(6))
METHODS: dict[str, Any] = {
    "st3": st3fx.ST3(0.9), "gmp": GMP(0.9), "feather": Feather(0.9), "dst": DST(1e-3), "str": STR(),
}  # fmt: skip


def folded(sparsity: float = 0.8) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.Linear(32, 4))
    converted, sparsifier = st3fx.convert(model, X, verify=False)
    sparsifier.set_sparsity(sparsity)
    return st3fx.fold(converted)


def zeros(model: nn.Module) -> dict[str, Tensor]:
    return {name: p == 0 for name, p in model.named_parameters() if p.dim() > 1}


def train(model: nn.Module, sparsifier: st3fx.Sparsifier, steps: int = 30) -> list[float]:
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=1e-3)
    seen = []
    for _ in range(steps):
        optimizer.zero_grad()
        (model(X)[:, 0].mean() + model(X).square().mean() + sparsifier.penalty()).backward()
        optimizer.step()
        sparsifier.step()
        seen.append(sparsifier.sparsity)
    return seen


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_no_zero_is_lost_while_the_sparsity_rises(method: Any) -> None:
    start = folded()
    model, sparsifier = st3fx.convert(start, X, method, total_steps=30)
    assert torch.equal(model(X), start(X))
    seen = train(model, sparsifier)
    end = zeros(st3fx.fold(model))
    assert all(bool(end[name][zero].all()) for name, zero in zeros(start).items())
    assert min(seen) > 0.799
    if sparsifier.target is not None:
        assert seen[-1] == pytest.approx(0.9, abs=0.005)
        assert seen == sorted(seen)
    assert not sparsifier.frozen


@pytest.mark.parametrize("method", [st3fx.ST3(0.9), GMP(0.9)])
def test_zeros_may_come_back_where_they_are_let(method: Any) -> None:
    start = folded()
    model, sparsifier = st3fx.convert(start, X, method, total_steps=30, keep_zeros=False)
    seen = train(model, sparsifier)
    assert min(seen) == pytest.approx(0.8, abs=0.005)
    assert seen[-1] == pytest.approx(0.9, abs=0.005)
    end = zeros(st3fx.fold(model))
    assert any(bool((~end[name][zero]).any()) for name, zero in zeros(start).items())


def test_a_target_below_the_zeros_keeps_them() -> None:
    model, sparsifier = st3fx.convert(folded(), X, st3fx.ST3(0.5), total_steps=30)
    assert train(model, sparsifier)[-1] == pytest.approx(0.8, abs=0.005)


def test_zeros_that_are_no_sparsity() -> None:
    """A layer that begins at zero, and single zeros."""
    model: Any = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    nn.init.zeros_(model[1].weight)
    with torch.no_grad():
        model[0].weight[0, 0] = 0
    converted, sparsifier = st3fx.convert(model, X, total_steps=20)
    assert sparsifier.run.floor == 0
    converted(X).sum().backward()
    assert bool(converted.get_parameter("1.weight").grad.any())  # type: ignore[union-attr]


def test_a_training_goes_on_from_its_state() -> None:
    start = folded()
    model, sparsifier = st3fx.convert(start, X, total_steps=30)
    train(model, sparsifier, 10)
    other, its = st3fx.convert(start, X, total_steps=30)
    other.load_state_dict(model.state_dict())
    its_state, state = its.state_dict(), sparsifier.state_dict()
    assert its_state["floor"] == state["floor"] == pytest.approx(0.8, abs=0.001)
    its.step()
    sparsifier.step()
    assert its.thresholds == sparsifier.thresholds
    third, driver = st3fx.convert(start, X, total_steps=30, keep_zeros=False)
    third.load_state_dict(
        {k: v for k, v in model.state_dict().items() if "st3fx" not in k}, strict=False
    )
    driver.load_state_dict(sparsifier.state_dict())
    assert driver.thresholds == sparsifier.thresholds
    assert torch.equal(third(X), model(X))
