"""The cubic schedule: values, clamping, errors."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from st3fx import CubicSchedule, St3fxError
from st3fx.errors import MethodError
from st3fx.sparsity.schedule import cubic_sparsity


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 0.0), (1, 0.0), (99, 0.0), (100, 0.0),
        (200, 0.8 * (1 - 0.75**3)), (300, 0.8 * 0.875), (400, 0.8 * (1 - 0.25**3)),
        (500, 0.8), (501, 0.8), (1000, 0.8), (5000, 0.8),
    ],
)  # fmt: skip
def test_values(step: int, expected: float) -> None:
    schedule = CubicSchedule(begin=0.1, end=0.5)
    assert schedule.sparsity(step, 1000, 0.8) == pytest.approx(expected, rel=1e-12, abs=0)


def test_the_target_is_met_exactly() -> None:
    assert CubicSchedule().sparsity(10_000, 10_000, 0.9) == 0.9


def test_it_never_falls() -> None:
    values = [CubicSchedule().sparsity(step, 200, 0.9) for step in range(250)]
    assert values == sorted(values)
    assert values[0] == 0.0


@pytest.mark.parametrize(("power", "half"), [(1.0, 0.5), (2.0, 0.75), (3.0, 0.875)])
def test_the_power_bends_the_ramp(power: float, half: float) -> None:
    assert cubic_sparsity(0.5, power) == half
    assert CubicSchedule(0.0, 1.0, power).sparsity(50, 100, 1.0) == half


def test_a_single_step_reaches_the_target() -> None:
    assert CubicSchedule(0.0, 1.0).sparsity(1, 1, 0.7) == 0.7


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"begin": -0.1}, "0 <= begin < end <= 1"),
        ({"begin": 0.5, "end": 0.5}, "0 <= begin < end <= 1"),
        ({"begin": 0.6, "end": 0.5}, "0 <= begin < end <= 1"),
        ({"end": 1.1}, "0 <= begin < end <= 1"),
        ({"begin": float("nan")}, "0 <= begin < end <= 1"),
        ({"power": 0.0}, "power above 0"),
        ({"power": -3.0}, "power above 0"),
        ({"power": float("nan")}, "power above 0"),
        ({"draw": (0.9, 0.5)}, "0 <= least < largest < 1"),
        ({"draw": (0.5, 1.0)}, "0 <= least < largest < 1"),
        ({"draw": (0.5,)}, "0 <= least < largest < 1"),
        ({"draw": ("a", 0.9)}, "0 <= least < largest < 1"),
        ({"draw": 0.9}, "0 <= least < largest < 1"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(MethodError, match=message) as caught:
        CubicSchedule(**settings)
    assert isinstance(caught.value, St3fxError)
    assert isinstance(caught.value, ValueError)


def test_it_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        CubicSchedule().begin = 0.2  # type: ignore[misc]


def test_what_is_drawn_depends_on_seed_and_step_alone() -> None:
    schedule = CubicSchedule(draw=(0.5, 0.95), seed=3)
    torch.manual_seed(0)
    first = [schedule.drawn(step) for step in range(1, 50)]
    torch.manual_seed(1)
    assert [schedule.drawn(step) for step in reversed(range(1, 50))] == first[::-1]
    assert CubicSchedule(draw=(0.5, 0.95), seed=4).drawn(1) != first[0]
    assert CubicSchedule().drawn(1) is None


def test_each_halving_of_what_is_left_is_as_likely() -> None:
    schedule = CubicSchedule(draw=(0.5, 0.96875))
    drawn = [schedule.drawn(step) or 0.0 for step in range(4000)]
    assert 0.5 <= min(drawn) < 0.51
    assert 0.967 < max(drawn) <= 0.96875
    halvings = [sum(a <= s < (1 + a) / 2 for s in drawn) for a in (0.5, 0.75, 0.875, 0.9375)]
    assert all(abs(count - 1000) < 120 for count in halvings)
