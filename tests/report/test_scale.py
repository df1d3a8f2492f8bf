from __future__ import annotations

import pytest

from st3fx.report.chart import Axis, make_scale, nice_step, tick_text


def test_ends_are_the_next_ticks() -> None:
    scale = make_scale(Axis(""), [36.3, 77.3], 100, 0)
    assert (scale.low, scale.high, scale.ticks) == (30, 80, (30, 40, 50, 60, 70, 80))
    assert (scale(30), scale(80), scale(55)) == (100, 0, 50)


def test_fixed_ends_stay() -> None:
    scale = make_scale(Axis("", low=0, high=4), [1.0, 3.9], 0, 1)
    assert (scale.low, scale.high, scale.ticks) == (0, 4, (0, 1, 2, 3, 4))
    odd = make_scale(Axis("", low=-0.35, high=0.35), [], 0, 1)
    assert (odd.low, odd.high, odd.ticks) == (-0.35, 0.35, (-0.2, 0, 0.2))


def test_a_place_is_never_outside() -> None:
    scale = make_scale(Axis("", low=0, high=10), [], 0, 100)
    assert (scale(-5), scale(20)) == (0, 100)


@pytest.mark.parametrize("values", [[], [3.0], [0.0, 0.0], [float("nan"), 2.0], [float("inf")]])
def test_data_without_extent_has_a_scale(values: list[float]) -> None:
    scale = make_scale(Axis(""), values, 0, 100)
    assert scale.low < scale.high
    assert len(scale.ticks) >= 2


def test_logarithmic_ticks() -> None:
    scale = make_scale(Axis("", log=True), [0.03, 4.0], 0, 100)
    assert list(scale.ticks) == [0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5]
    assert scale(0.02) == 0
    assert scale(5) == pytest.approx(100)
    assert scale(0.2) - scale(0.1) == pytest.approx(scale(2) - scale(1))
    assert make_scale(Axis("", log=True), [1e-6, 10], 0, 1).ticks[:2] == (1e-6, 1e-5)


def test_nice_steps() -> None:
    assert [nice_step(x) for x in (0.07, 1.0, 1.2, 2.3, 4, 6)] == [0.1, 1, 2, 2.5, 5, 10]


def test_tick_texts() -> None:
    assert [tick_text(x) for x in (0, 0.25, -0.2, 5000, 15000, 2e6, 3e9)] == [
        "0", "0.25", "−0.2", "5000", "15 k", "2 M", "3 G",
    ]  # fmt: skip
