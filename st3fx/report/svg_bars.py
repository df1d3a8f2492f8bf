"""Horizontal bars as SVG."""

from __future__ import annotations

from st3fx.report.chart import Bar, BarChart
from st3fx.report.markup import Markup, join, tag
from st3fx.report.scale import Scale, make_scale
from st3fx.report.svg import LETTER, WIDTH, box, drawing, horizontal_axis, legend, line, text
from st3fx.report.text import short_name

ROW = 17.0
_RIGHT = WIDTH - 14


def draw_bars(chart: BarChart) -> Markup:
    """A row for each bar: its name, the bar in its outline, its value."""
    left = 10 + LETTER * max((len(short_name(bar.label)) for bar in chart.bars), default=0)
    top = 26.0 if chart.legend or chart.line else 4.0
    bottom = top + ROW * len(chart.bars) + 2
    ends = [0.0] + [max(b.value, b.whole or 0, *(b.spread or (0,))) for b in chart.bars]
    room = 4 + LETTER * max((len(bar.text) for bar in chart.bars), default=0)
    # Beside the longest bar its value has to find room.
    x = make_scale(chart.x, ends, left, _RIGHT if chart.x.high is not None else _RIGHT - room, 4)
    parts = [horizontal_axis(chart.x, x, top, bottom)]
    if chart.line is not None:
        parts.append(line(x(chart.line[0]), top, x(chart.line[0]), bottom, "threshold"))
    rows = (_row(chart, bar, x, top + ROW * index) for index, bar in enumerate(chart.bars))
    return drawing(chart, bottom + 36, [*parts, *rows, _legend(chart, left)])


def _row(chart: BarChart, bar: Bar, x: Scale, top: float) -> Markup:
    y, height, start = top + 3, ROW - 4, x.start
    parts = [text(start - 6, y + 10, short_name(bar.label), class_="name end")]
    if bar.whole is not None:
        parts.append(box(start, y, x(bar.whole) - start, height, "outline"))
    parts.append(box(start, y, x(bar.value) - start, height, f"bar {bar.role}"))
    end = x(bar.value if bar.whole is None else max(bar.value, bar.whole))
    if bar.spread is not None:
        low, high = map(x, bar.spread)
        parts.append(line(low, y + height / 2, high, y + height / 2, "whisker"))
        end = max(end, high)
    # Bars up to the end of the axis leave no room beside them.
    inside = chart.x.high is not None and x(bar.value) - start > LETTER * len(bar.text) + 10
    place, side = (x(bar.value) - 5, "inside end") if inside else (end + 5, "value")
    parts.append(text(place, y + 10, bar.text, class_=side))
    whole = tag("rect", x=0, y=top, width=WIDTH, height=ROW, class_="hit")
    return tag("g", tag("title", bar.tip), *parts, whole, class_="row")


def _legend(chart: BarChart, left: float) -> Markup:
    marks = (box(0, -5, 18, 10, "bar main"), box(0, -5, 18, 10, "outline"))
    entries = list(zip(chart.legend, marks, strict=False))
    if chart.line is not None:
        entries.append((chart.line[1], line(0, 0, 18, 0, "threshold")))
    return legend(entries, min(left, 130.0), 12) if entries else join(())
