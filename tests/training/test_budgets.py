from __future__ import annotations

import dataclasses
import itertools
import tomllib
from pathlib import Path

import pytest

from st3fx.commands.budgets import BudgetResult
from st3fx.errors import MethodError
from st3fx.methods.targets import parse_targets
from st3fx.training.budgets import allocate, at, curve_of, hull, within
from st3fx.training.sensitivity import LayerSensitivity, Point, SensitivityResult
from st3fx.training.settings import from_dict, read_toml


def layer(
    name: str, rises: dict[float, float], weights: int = 100, cost: int = 1, zeros: int = 0
) -> LayerSensitivity:
    points = tuple(Point(s, round(s * weights), 1 + r, 0.5, r, r) for s, r in rises.items())
    return LayerSensitivity(name, (weights,), "linear", weights, zeros, cost, points)


def result(*layers: LayerSensitivity) -> SensitivityResult:
    return SensitivityResult("m", "d", 10, "st3", 0.0, 1.0, 0.5, 1.0, layers)


CHEAP = layer("cheap.weight", {0.5: 0.01, 0.9: 0.05, 0.98: 0.3})
DEAR = layer("dear.weight", {0.5: 0.2, 0.9: 1.0, 0.98: 3.0}, cost=9)


def test_all_layers_have_the_same_marginal_cost() -> None:
    """By brute force over a grid: no targets of the same total cost less."""
    odd = layer("odd.weight", {0.5: 0.4, 0.9: 0.2, 0.98: 0.5}, weights=50)
    found = result(CHEAP, DEAR, odd)
    curves = [hull(curve_of(one)) for one in found.layers]
    for sparsity in (0.3, 0.6, 0.9, 0.95):
        made = allocate(found, sparsity)
        assert made.sparsity == pytest.approx(sparsity, abs=1e-4)
        own = sum(at(c, t) for c, t in zip(curves, made.targets.values(), strict=True))
        steps = [k / 50 for k in range(50)]
        for first, second in itertools.product(steps, steps):
            third = (sparsity * 250 - 100 * (first + second)) / 50
            if 0 <= third <= 0.98:
                other = (first, second, third)
                assert own <= 1e-3 + sum(at(c, t) for c, t in zip(curves, other, strict=True))
    assert made.targets["cheap.weight"] > made.targets["dear.weight"]


def test_what_is_expected_is_on_the_measured_curves() -> None:
    made = allocate(result(CHEAP, DEAR), 0.5)
    assert made.uniform == pytest.approx(0.01 + 0.2)
    assert made.rise < made.uniform
    assert dict(made.targets) == {"cheap.weight": 0.9, "dear.weight": 0.1}
    assert made.rise == pytest.approx(0.05 + 0.04)
    assert made.macs == pytest.approx((90 + 9 * 10) / 1000)


def test_a_budget_of_multiplications_counts_them() -> None:
    made = allocate(result(CHEAP, DEAR), 0.5, macs=True)
    assert made.macs == pytest.approx(0.5, abs=1e-4)
    assert made.targets["dear.weight"] > 0.4


def test_only_the_lower_hull_is_ever_the_least() -> None:
    points = ((0.0, 0.0), (0.5, 0.4), (0.9, 0.2), (0.98, 0.5))
    assert hull(points) == ((0.0, 0.0), (0.9, 0.2), (0.98, 0.5))
    assert hull(((0.0, 0.0), (0.5, -0.1), (0.9, 0.0))) == ((0.0, 0.0), (0.5, -0.1), (0.9, 0.0))
    slopes = [(b - d) / (a - c) for (c, d), (a, b) in itertools.pairwise(hull(points))]
    assert slopes == sorted(slopes)


def test_a_layer_with_zeros_has_a_point_there() -> None:
    sparse = layer("s.weight", {0.5: 0.1, 0.95: 0.3}, zeros=80)
    assert curve_of(sparse) == ((0.0, 0.1), (0.5, 0.1), (0.8, 0.0), (0.95, 0.3))
    assert curve_of(layer("d.weight", {0.5: 0.1})) == ((0.0, 0.0), (0.5, 0.1))
    assert at(curve_of(sparse), 0.65) == pytest.approx(0.05)
    assert at(curve_of(sparse), 0.99) == 0.3


def test_more_than_was_measured_is_refused() -> None:
    with pytest.raises(MethodError, match=r"0\.985 is more than 0\.98, up to which"):
        allocate(result(CHEAP, DEAR), 0.985)
    with pytest.raises(MethodError, match="outside"):
        allocate(result(CHEAP, DEAR), 1.0)


def test_the_file_is_read_as_settings(tmp_path: Path) -> None:
    found = result(CHEAP, layer('od"d[0]*\\.weight', {0.9: 0.1}))
    made = allocate(found, 0.8)
    path = tmp_path / "budgets.toml"
    path.write_text(made.to_toml())
    settings = from_dict(read_toml(path), str(path))
    assert settings.sparsity == pytest.approx(0.8, abs=1e-4)
    targets = dict(parse_targets(settings.sparsity_of))
    assert list(targets.values()) == list(made.targets.values())
    assert list(targets) == ["cheap.weight", 'od"d[[]0][*]\\.weight']
    assert tomllib.loads(made.to_toml())["sparsity"] == settings.sparsity


def test_the_least_sparsity_within_a_cost() -> None:
    found = result(CHEAP, DEAR)

    def cost(targets: object) -> float:
        first, second = targets  # type: ignore[misc]
        return float(10 * (1 - first) + 1 - second)  # type: ignore[has-type]

    targets = within(found, cost, 3.0)
    assert targets is not None
    assert cost(targets) == pytest.approx(3.0, abs=1e-3)
    assert targets == pytest.approx([0.8, 0.0], abs=1e-3)
    assert within(found, cost, 20.0) == [0.0, 0.0]
    assert within(found, cost, 0.1) is None


def test_the_file_says_what_it_is_for(tmp_path: Path) -> None:
    made, path = allocate(result(CHEAP, DEAR), 0.5), tmp_path / "budgets.toml"
    timed = BudgetResult("ms", 2.0, 0.5, made, ms=1.9, dense_ms=3.0, cpu="CPU")
    for found, line in (
        (BudgetResult("macs", 0.75, 0.5, made), "# They leave 25 % of the multiplications."),
        (BudgetResult("weights", 0.5, 0.5, made), "# They leave 50 % of the weights."),
        (timed, "# For 2 ms of one sample on one thread with sparse kernels."),
        (
            dataclasses.replace(timed, budgets=None),
            "# Expected are 1.9 ms, 3 ms dense (CPU).",
        ),
    ):
        found.write(path)
        assert line in path.read_text("utf-8").splitlines()
        assert from_dict(read_toml(path), str(path)).sparsity == 0.5
