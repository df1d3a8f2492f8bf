"""A histogram as SVG, and a small one for a line of a table."""

from __future__ import annotations

from collections.abc import Sequence

from st3fx.report.chart import Axis, Histogram
from st3fx.report.markup import Markup, tag
from st3fx.report.scale import make_scale
from st3fx.report.svg import WIDTH, box, drawing, horizontal_axis, legend, line, vertical_axis
from st3fx.report.text import three

_LEFT, _RIGHT, _TOP, _BOTTOM = 44.0, WIDTH - 14, 30.0, 236.0
_SMALL = (96, 22)


def draw_histogram(chart: Histogram) -> Markup:
    """Kept values upon pruned ones in each bin, and the thresholds."""
    x = make_scale(chart.x, chart.edges, _LEFT, _RIGHT)
    totals = [kept + pruned for kept, pruned in zip(chart.kept, chart.pruned, strict=True)]
    y = make_scale(Axis("", low=0), totals, _BOTTOM, _TOP, 4)
    bins = []
    for index, (kept, pruned) in enumerate(zip(chart.kept, chart.pruned, strict=True)):
        low, high = chart.edges[index : index + 2]
        left, width = x(low), max(0.5, x(high) - x(low) - 0.6)
        middle, tip = y(pruned), f"{three(low)} to {three(high)}\n"
        bins.append(tag(
            "g",
            tag("title", f"{tip}{pruned:,} pruned\n{kept:,} kept"),
            box(left, middle, width, _BOTTOM - middle, "bar pruned"),
            box(left, y(kept + pruned), width, middle - y(kept + pruned), "bar main"),
            tag("rect", x=left, y=_TOP, width=width + 0.6, height=_BOTTOM - _TOP, class_="hit"),
            class_="row",
        ))  # fmt: skip
    marks = [line(x(at), _TOP, x(at), _BOTTOM, "threshold") for at in chart.lines]
    entries = [("kept", box(0, -5, 18, 10, "bar main")),
               ("pruned", box(0, -5, 18, 10, "bar pruned"))]  # fmt: skip
    if chart.lines:
        entries.append((chart.line_name, line(0, 0, 18, 0, "threshold")))
    parts = [vertical_axis(y, _LEFT, _RIGHT), horizontal_axis(chart.x, x, _BOTTOM, _BOTTOM),
             *bins, *marks, legend(entries, _LEFT, 12)]  # fmt: skip
    return drawing(chart, _BOTTOM + 36, parts)


def draw_small(kept: Sequence[int], pruned: Sequence[int], label: str) -> Markup:
    """The same without axes, in the height of a line of text."""
    width, height = _SMALL
    most = max((k + p for k, p in zip(kept, pruned, strict=True)), default=0) or 1
    step = width / max(1, len(kept))
    upper, lower = "", ""
    for index, (k, p) in enumerate(zip(kept, pruned, strict=True)):
        left, low, high = index * step, height * p / most, height * k / most
        # A path of bars: one element, however many bins.
        lower += _bar(left, height, step, low)
        upper += _bar(left, height - low, step, high)
    paths = [tag("path", d=d, class_=f"bar {kind}")
             for d, kind in ((lower, "pruned"), (upper, "main")) if d]  # fmt: skip
    return tag("svg", *paths, viewBox=f"0 0 {width} {height}", class_="small", role="img",
               aria_label=label, width=width, height=height)  # fmt: skip


def _bar(left: float, bottom: float, width: float, height: float) -> str:
    if height < 0.05:
        return ""
    return f"M{left:.4g} {bottom:.3g}h{width:.3g}v-{height:.3g}h-{width:.3g}z"
