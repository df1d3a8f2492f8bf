"""From values to places on a chart, and which values to write at its axes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from st3fx.report.chart import Axis


@dataclass(frozen=True)
class Scale:
    """A linear or logarithmic map of ``low``…``high`` onto ``start``…``end``.

    Attributes:
        low: Smallest value.
        high: Largest value; above ``low``.
        start: Place of ``low``.
        end: Place of ``high``.
        ticks: Values to write at the axis.
        log: Whether it is logarithmic.
    """

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]
    log: bool = False

    def __call__(self, value: float) -> float:
        """The place of a value; outside the range it is at the nearer end."""
        low, high, at = self.low, self.high, min(max(value, self.low), self.high)
        if self.log:
            low, high, at = math.log(low), math.log(high), math.log(at)
        return self.start + (at - low) / (high - low) * (self.end - self.start)


def make_scale(
    axis: Axis, values: Iterable[float], start: float, end: float, ticks: int = 5
) -> Scale:
    """The scale of an axis over the given values.

    Args:
        axis: Its ends where they are fixed, and whether it is logarithmic.
        values: What has to have a place; where an end is not fixed it is the next tick.
        start: Place of the low end.
        end: Place of the high end.
        ticks: About how many.
    """
    known = [value for value in values if math.isfinite(value)]
    low = min(known, default=0.0) if axis.low is None else axis.low
    high = max(known, default=1.0) if axis.high is None else axis.high
    if high <= low:
        high = low + (abs(low) or 1.0)
    if axis.log and low > 0:
        low, high = _log_ends(low, high)
        marks = _log_ticks(low, high)
        return Scale(low, high, start, end, marks, log=True)
    step = nice_step((high - low) / ticks)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    low = first * step if axis.low is None else low
    high = last * step if axis.high is None else high
    marks = tuple(_clean(k * step) for k in range(first, last + 1))
    inside = tuple(mark for mark in marks if low - 1e-9 <= mark <= high + 1e-9 * abs(high))
    return Scale(low, high, start, end, inside)


def nice_step(step: float) -> float:
    """The next number of 1, 2, 2.5, 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(power * f for f in (1, 2, 2.5, 5, 10) if power * f >= step * (1 - 1e-9))


def tick_text(value: float) -> str:
    """``0``, ``0.25``, ``1.5``, ``20``, ``30 k``, ``1e-05``."""
    if abs(value) >= 10_000:
        unit, size = ("k", 1e3) if abs(value) < 1e6 else ("M", 1e6) if abs(value) < 1e9 else (
            ("G", 1e9) if abs(value) < 1e12 else ("T", 1e12)
        )  # fmt: skip
        return f"{value / size:g} {unit}"
    return f"{value:g}".replace("-", "−", 1)


def _clean(value: float) -> float:
    """Without what rounding left: 0.30000000000000004 is 0.3."""
    return float(f"{value:.12g}")


def _log_ends(low: float, high: float) -> tuple[float, float]:
    return (
        max((m for m in _log_marks(low) if m <= low * (1 + 1e-9)), default=low),
        min((m for m in _log_marks(high) if m >= high * (1 - 1e-9)), default=high),
    )


def _log_marks(value: float) -> list[float]:
    power = math.floor(math.log10(value))
    return [_clean(f * 10.0**p) for p in (power, power + 1) for f in (1, 2, 5)]


def _log_ticks(low: float, high: float) -> tuple[float, ...]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    factors = (1, 2, 5) if last - first <= 3 else (1,)
    marks = (_clean(f * 10.0**p) for p in range(first, last + 1) for f in factors)
    return tuple(mark for mark in marks if low * (1 - 1e-9) <= mark <= high * (1 + 1e-9))
