"""A training that starts from the zeros of a model that is sparse already."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import st3fx
from st3fx.errors import EmptyLayerWarning
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


def pruned(shares: tuple[float, ...]) -> nn.Module:
    """Layers that have lost shares of their weights."""
    model = folded(0.0)
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    with torch.no_grad():
        for layer, share in zip(layers, shares, strict=True):
            scores = layer.weight.abs().flatten()
            count = round(share * scores.numel())
            layer.weight.view(-1)[scores.argsort()[:count]] = 0
    return model


def require_kept(model: nn.Module, start: nn.Module) -> None:
    end = zeros(st3fx.fold(model))
    assert all(bool(end[name][zero].all()) for name, zero in zeros(start).items())


@pytest.mark.filterwarnings("ignore::st3fx.errors.TargetWarning")
def test_few_zeros_and_a_site_without_any_weight_in_a_sparse_model() -> None:
    start = pruned((0.04, 0.6, 1.0))
    with pytest.warns(EmptyLayerWarning, match="3.weight has no weight but zeros .* keeps them"):
        model, sparsifier = st3fx.convert(start, X, st3fx.ST3(0.9), total_steps=30, verify=False)
    train(model, sparsifier, 2)
    require_kept(model, start)
    again, _ = st3fx.convert(start, X, keep_zeros=False, verify=False)
    again(X).sum().backward()
    assert bool(again.get_parameter("3.weight").grad.any())  # type: ignore[union-attr]


@pytest.mark.filterwarnings("ignore::st3fx.errors.TargetWarning")
@pytest.mark.parametrize("how", ["loaded", "assigned", "meta", "filled"])
def test_zeros_of_weights_that_come_after_the_conversion(how: str) -> None:
    start: Any = folded()
    given: Any = pruned((0.0, 0.0, 0.0))
    if how in ("meta", "filled"):
        given = given.to("meta")
    method = st3fx.ST3(0.9)
    model, sparsifier = st3fx.convert(given, X.to(given[0].weight.device), method, total_steps=30)
    if how == "filled":
        model.to_empty(device="cpu")
        with torch.no_grad():
            for ours, theirs in zip(model.parameters(), start.parameters(), strict=True):
                ours.copy_(theirs)
    else:
        state = {key: value.clone() for key, value in start.state_dict().items()}
        model.load_state_dict(state, assign=how != "loaded")
    assert torch.equal(model(X), start(X))
    assert sparsifier.run.floor == pytest.approx(0.8, abs=0.001)
    train(model, sparsifier, 3)
    require_kept(model, start)


def test_dense_weights_that_are_loaded_before_the_first_step_have_no_zeros_to_keep() -> None:
    model, sparsifier = st3fx.convert(folded(), X, st3fx.ST3(0.9), total_steps=30)
    model.load_state_dict(pruned((0.0, 0.0, 0.0)).state_dict())
    assert (sparsifier.run.floor, sparsifier.sparsity) == (0.0, 0.0)
    assert train(model, sparsifier)[-1] == pytest.approx(0.9, abs=0.002)


def test_latent_weights_that_move_under_a_mask_do_not_count() -> None:
    """Noise on gradients, momentum, decay: what is held at zero ranks as zero."""
    model, sparsifier = st3fx.convert(folded(0.6), X, st3fx.ST3(0.8), total_steps=10)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    assert train(model, sparsifier, 10)[-1] == pytest.approx(0.8, abs=0.002)
