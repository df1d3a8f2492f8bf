"""What a chart shows, as plain data, and the scales of its axes.

Two renderers draw the same: SVG for the page (``svg``), PNG for pictures (``png``).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal


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
    step = nice_step(high / ticks - low / ticks)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    low = first * step if axis.low is None else low
    high = min(last * step, sys.float_info.max) if axis.high is None else high
    steps = (_clean(k * step) for k in range(first, last + 1) if k * step <= sys.float_info.max)
    inside = tuple(mark for mark in steps if low - 1e-9 <= mark <= high + 1e-9 * abs(high))
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
    return _marks((power, power + 1), (1, 2, 5))


def _marks(powers: Iterable[int], factors: Sequence[int]) -> list[float]:
    """Round numbers, as far as there are numbers so large or so small."""
    marks = (_clean(f * 10.0**p) for p in powers if p < 309 for f in factors)
    return [mark for mark in marks if 0 < mark < math.inf]


def _log_ticks(low: float, high: float) -> tuple[float, ...]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    factors = (1, 2, 5) if last - first <= 3 else (1,)
    marks = _marks(range(first, last + 1), factors)
    return tuple(mark for mark in marks if low * (1 - 1e-9) <= mark <= high * (1 + 1e-9))


Role = Literal["main", "quiet", "goal"]
"""What a mark stands for, which decides its colour: the result, its background, what was asked."""

HUES = 8
"""Colours for lines that stand for different things, such as runs that are compared."""


@dataclass(frozen=True)
class Axis:
    """One direction of a chart.

    Attributes:
        label: What is measured, with its unit.
        low: Where it begins; ``None``: at the data.
        high: Where it ends; ``None``: at the data.
        log: Whether equal distances are equal ratios.
    """

    label: str
    low: float | None = None
    high: float | None = None
    log: bool = False


@dataclass(frozen=True)
class Series:
    """One line.

    Attributes:
        name: In the legend.
        points: (x, y) from left to right.
        role: What it stands for.
        unit: After a value, e.g. `` %``.
        dots: Whether each point is marked.
        hue: Which of many things it stands for, from 0: the colours of :data:`HUES`, then the same
            dashed, then dotted. ``None``: the colour of its role.
        labels: Beside the points, if anything is.
    """

    name: str
    points: tuple[tuple[float, float], ...]
    role: Role = "main"
    unit: str = ""
    dots: bool = False
    hue: int | None = None
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class LineChart:
    """Values over the course of training, or over another number.

    Attributes:
        key: Name of its picture.
        title: Above it.
        alt: What it shows, for those who do not see it.
        x: Horizontal axis.
        y: Vertical axis.
        series: Lines; the last is on top.
    """

    place: ClassVar[str] = ""
    key: str
    title: str
    alt: str
    x: Axis
    y: Axis
    series: tuple[Series, ...]


@dataclass(frozen=True)
class Bar:
    """One row of a bar chart.

    Attributes:
        label: Beside it.
        value: Its length.
        text: The value in words.
        tip: More about it.
        whole: Length of the outline behind it; ``None`` for none.
        spread: Ends of a thin line over it; ``None`` for none.
        role: What it stands for.
    """

    label: str
    value: float
    text: str
    tip: str
    whole: float | None = None
    spread: tuple[float, float] | None = None
    role: Role = "main"


@dataclass(frozen=True)
class BarChart:
    """Horizontal bars, one for each layer, block or variant.

    Attributes:
        key: Name of its picture.
        title: Above it.
        alt: What it shows.
        x: The bars' axis.
        bars: From top to bottom.
        line: A value to compare with, and its name; ``None`` for none.
        legend: What bar and outline stand for; empty where there is no outline.
    """

    place: ClassVar[str] = "tall"
    key: str
    title: str
    alt: str
    x: Axis
    bars: tuple[Bar, ...]
    line: tuple[float, str] | None = None
    legend: tuple[str, ...] = ()


@dataclass(frozen=True)
class Histogram:
    """How often which values occur, in two kinds that are stacked.

    Attributes:
        key: Name of its picture.
        title: Above it.
        alt: What it shows.
        x: Horizontal axis.
        edges: Of the bins, one more than there are bins.
        kept: How many values of each bin are kept.
        pruned: How many are pruned.
        lines: Where thresholds are.
        line_name: What is said of them.
    """

    place: ClassVar[str] = ""
    key: str
    title: str
    alt: str
    x: Axis
    edges: tuple[float, ...]
    kept: tuple[int, ...]
    pruned: tuple[int, ...]
    lines: tuple[float, ...] = ()
    line_name: str = ""


@dataclass(frozen=True)
class FlowRow:
    """A node of the dataflow, one on each row.

    Attributes:
        name: Of the site, join, input or output.
        kind: ``site``, ``add``, ``mul``, ``cat``, ``input``, ``output``.
        lane: Column in which it lies.
        detail: Operator and shape of a site.
        sparsity: Of a site; ``None`` where it is none, or not known.
        tip: What feeds it, and through what.
    """

    name: str
    kind: str
    lane: int
    detail: str = ""
    sparsity: float | None = None
    tip: str = ""


@dataclass(frozen=True)
class FlowChart:
    """Who feeds whom, from top to bottom, in the order of execution.

    Attributes:
        key: Name of its picture.
        title: Above it.
        alt: What it shows.
        rows: Nodes from top to bottom.
        edges: (row of the source, row of the target); the source's lane is free for it until there.
        lanes: How many lanes there are.
    """

    place: ClassVar[str] = "wide"
    key: str
    title: str
    alt: str
    rows: tuple[FlowRow, ...]
    edges: tuple[tuple[int, int], ...]
    lanes: int


Chart = LineChart | BarChart | Histogram | FlowChart
