"""Charts as inline SVG: colours are CSS variables of the page, so that they follow its scheme.

They are drawn 400 units wide, which is a phone's width: text is legible there, and a wider page
puts charts side by side instead of enlarging them. A mark's ``<title>`` is its tooltip.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from markupsafe import Markup

from st3fx.report.chart import (
    HUES,
    Axis,
    Bar,
    BarChart,
    Chart,
    Histogram,
    LineChart,
    Scale,
    Series,
    make_scale,
    tick_text,
)
from st3fx.report.markup import EMPTY, join, short_name, tag, three

WIDTH = 400.0
LETTER = 6.4
"""Width of a letter of the charts' 11-unit text, on average."""


def drawing(chart: Chart, height: float, children: Sequence[Markup]) -> Markup:
    """The ``<svg>`` element of a chart."""
    return tag(
        "svg", *children, viewBox=f"0 0 {WIDTH:g} {height:g}", role="img", aria_label=chart.alt
    )


def text(x: float, y: float, content: object, **attributes: object) -> Markup:
    """Text at a place."""
    return tag("text", content, x=x, y=y, **attributes)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    """A straight line."""
    return tag("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def box(x: float, y: float, width: float, height: float, class_: str, tip: str = "") -> Markup:
    """A rectangle with a tooltip."""
    title = tag("title", tip) if tip else EMPTY
    return tag("rect", title, x=x, y=y, width=width, height=height, class_=class_)


def horizontal_axis(axis: Axis, x: Scale, top: float, bottom: float) -> Markup:
    """Ticks under a chart, with lines up through it, and what is measured."""
    marks = [line(x(tick), top, x(tick), bottom, "grid") for tick in x.ticks]
    marks += [text(x(t), bottom + 14, tick_text(t), class_="tick mid") for t in x.ticks]
    return join([*marks, text(x.end, bottom + 29, axis.label, class_="tick end")])


def vertical_axis(y: Scale, left: float, right: float) -> Markup:
    """Ticks to the left of a chart, with lines through it."""
    marks = [line(left, y(tick), right, y(tick), "grid") for tick in y.ticks]
    return join([*marks, *(text(left - 6, y(t) + 4, tick_text(t), class_="tick end")
                           for t in y.ticks)])  # fmt: skip


def legend(entries: Sequence[tuple[str, Markup]], x: float, y: float) -> Markup:
    """Names side by side, each after its mark, which is drawn around (0, 0), 18 units wide."""
    marks = []
    for name, mark in entries:
        marks.append(tag("g", mark, text(24, 4, name), transform=f"translate({x:g} {y:g})"))
        x += 24 + LETTER * len(name) + 14
    return tag("g", *marks, class_="legend")


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


_LEFT, _TOP, _FLOOR = 44.0, 30.0, 236.0
_SMALL = (96, 22)


def draw_histogram(chart: Histogram) -> Markup:
    """Kept values upon pruned ones in each bin, and the thresholds."""
    x = make_scale(chart.x, chart.edges, _LEFT, _RIGHT)
    totals = [kept + pruned for kept, pruned in zip(chart.kept, chart.pruned, strict=True)]
    y = make_scale(Axis("", low=0), totals, _FLOOR, _TOP, 4)
    bins = []
    for index, (kept, pruned) in enumerate(zip(chart.kept, chart.pruned, strict=True)):
        low, high = chart.edges[index : index + 2]
        left, width = x(low), max(0.5, x(high) - x(low) - 0.6)
        middle, tip = y(pruned), f"{three(low)} to {three(high)}\n"
        bins.append(tag(
            "g",
            tag("title", f"{tip}{pruned:,} pruned\n{kept:,} kept"),
            box(left, middle, width, _FLOOR - middle, "bar pruned"),
            box(left, y(kept + pruned), width, middle - y(kept + pruned), "bar main"),
            tag("rect", x=left, y=_TOP, width=width + 0.6, height=_FLOOR - _TOP, class_="hit"),
            class_="row",
        ))  # fmt: skip
    marks = [line(x(at), _TOP, x(at), _FLOOR, "threshold") for at in chart.lines]
    entries = [("kept", box(0, -5, 18, 10, "bar main")),
               ("pruned", box(0, -5, 18, 10, "bar pruned"))]  # fmt: skip
    if chart.lines:
        entries.append((chart.line_name, line(0, 0, 18, 0, "threshold")))
    parts = [vertical_axis(y, _LEFT, _RIGHT), horizontal_axis(chart.x, x, _FLOOR, _FLOOR),
             *bins, *marks, legend(entries, _LEFT, 12)]  # fmt: skip
    return drawing(chart, _FLOOR + 36, parts)


def draw_small(kept: Sequence[int], pruned: Sequence[int], label: str) -> Markup:
    """Draw a histogram without axes, in the height of a line of text."""
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


_BOTTOM = 186.0
_HEIGHT = 222.0
_KEY_ROW = 17.0
_KEY_NAME = 50
"""Letters of a name in a legend."""

_STOPS = 120
"""Places along a chart where a tooltip says the values."""


def draw_lines(chart: LineChart) -> Markup:
    """Axes, lines, and a tooltip wherever the pointer is."""
    points = [point for series in chart.series for point in series.points]
    x = make_scale(chart.x, [px for px, _ in points], _LEFT, _RIGHT)
    keys = _key_rows(chart.series) if len(chart.series) > 1 else []
    # Further lines of names move the chart down.
    top = _TOP + _KEY_ROW * max(0, len(keys) - 1)
    bottom = top + _BOTTOM - _TOP
    y = make_scale(chart.y, [py for _, py in points], bottom, top)
    parts = [
        horizontal_axis(chart.x, x, top, bottom),
        vertical_axis(y, _LEFT, _RIGHT),
        *(_line(series, x, y) for series in chart.series),
        *_stops(chart, x, top, bottom),
        *(legend(row, _LEFT, 12 + _KEY_ROW * index) for index, row in enumerate(keys)),
    ]
    return drawing(chart, _HEIGHT + top - _TOP, parts)


def _key_rows(series: Sequence[Series]) -> list[list[tuple[str, Markup]]]:
    """Names with their marks, as many beside each other as there is room for."""
    rows: list[list[tuple[str, Markup]]] = []
    room = 0.0
    for one in series:
        name = short_name(one.name, _KEY_NAME)
        width = 24 + LETTER * len(name) + 14
        if not rows or width > room + 14:
            rows.append([])
            room = _RIGHT - _LEFT
        rows[-1].append((name, _key(one)))
        room -= width
    return rows


def _style(series: Series) -> str:
    """Classes of the style sheet."""
    if series.hue is None:
        return series.role
    return f"{series.role} hue{series.hue % HUES + 1} dash{series.hue // HUES % 3}"


def _line(series: Series, x: Scale, y: Scale) -> Markup:
    places = [(x(px), y(py)) for px, py in series.points]
    path = "M" + "L".join(f"{px:.1f} {py:.1f}" for px, py in places)
    parts = [tag("path", d=path, class_=f"line {_style(series)}")]
    if series.dots or len(places) == 1:
        parts += [tag("circle", cx=px, cy=py, r=3, class_=f"dot {_style(series)}")
                  for px, py in places]  # fmt: skip
    for (px, py), label in zip(places, series.labels, strict=False):
        right = px > (_LEFT + _RIGHT) / 2  # towards the middle, where there is room
        parts.append(text(px - 6 if right else px + 6, py + 14, label,
                          class_="tick end" if right else "tick"))  # fmt: skip
    return join(parts)


def _key(series: Series) -> Markup:
    return join([line(0, 0, 18, 0, f"line {_style(series)}"), *(
        [tag("circle", cx=9, cy=0, r=3, class_=f"dot {_style(series)}")] if series.dots else []
    )])  # fmt: skip


def _stops(chart: LineChart, x: Scale, top: float, bottom: float) -> list[Markup]:
    """Bands side by side, invisible until pointed at, each with all values near it."""
    places = sorted({px for series in chart.series for px, _ in series.points})
    places = places[:: -(-len(places) // _STOPS)] if places else []
    bands = []
    for index, place in enumerate(places):
        left = _LEFT if index == 0 else (x(places[index - 1]) + x(place)) / 2
        right = _RIGHT if index == len(places) - 1 else (x(place) + x(places[index + 1])) / 2
        said = [f"{chart.x.label} {place:.3g}"]
        said += [f"{s.name}: {three(_near(s, place))}{s.unit}" for s in chart.series if s.points]
        bands.append(tag(
            "g",
            tag("title", "\n".join(said)),
            tag("rect", x=left, y=top, width=right - left, height=bottom - top),
            line(x(place), top, x(place), bottom, "cursor"),
            class_="stop",
        ))  # fmt: skip
    return bands


def _near(series: Series, place: float) -> float:
    """The value of the point next to a place."""
    after = bisect_left(series.points, (place, float("-inf")))
    around = series.points[max(0, after - 1) : after + 1]
    return min(around, key=lambda point: abs(point[0] - place))[1]


def draw(chart: LineChart | BarChart | Histogram) -> Markup:
    """The drawing of a chart."""
    if isinstance(chart, LineChart):
        return draw_lines(chart)
    return draw_bars(chart) if isinstance(chart, BarChart) else draw_histogram(chart)
