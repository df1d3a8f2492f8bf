"""What a chart shows, as plain data: two renderers (SVG for the page, PNG) draw the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Role = Literal["main", "quiet", "goal"]
"""What a mark stands for, which decides its colour: the result, its background, what was asked."""


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
    """

    name: str
    points: tuple[tuple[float, float], ...]
    role: Role = "main"
    unit: str = ""
    dots: bool = False


@dataclass(frozen=True)
class LineChart:
    """Values over the course of training.

    Attributes:
        key: Name of its picture.
        title: Above it.
        alt: What it shows, for those who do not see it.
        x: Horizontal axis.
        y: Vertical axis.
        series: Lines; the last is on top.
    """

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

    key: str
    title: str
    alt: str
    rows: tuple[FlowRow, ...]
    edges: tuple[tuple[int, int], ...]
    lanes: int


Chart = LineChart | BarChart | Histogram | FlowChart
