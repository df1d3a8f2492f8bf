"""A line chart as SVG."""

from __future__ import annotations

from bisect import bisect_left

from st3fx.report.chart import LineChart, Series
from st3fx.report.markup import Markup, join, tag
from st3fx.report.scale import Scale, make_scale
from st3fx.report.svg import WIDTH, drawing, horizontal_axis, legend, line, vertical_axis
from st3fx.report.text import three

_LEFT, _RIGHT, _TOP, _BOTTOM = 44.0, WIDTH - 14, 30.0, 186.0
_HEIGHT = 222.0
_STOPS = 120
"""Places along a chart where a tooltip says the values."""


def draw_lines(chart: LineChart) -> Markup:
    """Axes, lines, and a tooltip wherever the pointer is."""
    points = [point for series in chart.series for point in series.points]
    x = make_scale(chart.x, [px for px, _ in points], _LEFT, _RIGHT)
    y = make_scale(chart.y, [py for _, py in points], _BOTTOM, _TOP)
    parts = [
        horizontal_axis(chart.x, x, _TOP, _BOTTOM),
        vertical_axis(y, _LEFT, _RIGHT),
        *(_line(series, x, y) for series in chart.series),
        *_stops(chart, x),
    ]
    if len(chart.series) > 1:
        parts.append(legend([(one.name, _key(one)) for one in chart.series], _LEFT, 12))
    return drawing(chart, _HEIGHT, parts)


def _line(series: Series, x: Scale, y: Scale) -> Markup:
    places = [(x(px), y(py)) for px, py in series.points]
    path = "M" + "L".join(f"{px:.1f} {py:.1f}" for px, py in places)
    parts = [tag("path", d=path, class_=f"line {series.role}")]
    if series.dots or len(places) == 1:
        parts += [tag("circle", cx=px, cy=py, r=3, class_=f"dot {series.role}")
                  for px, py in places]  # fmt: skip
    return join(parts)


def _key(series: Series) -> Markup:
    return join([line(0, 0, 18, 0, f"line {series.role}"), *(
        [tag("circle", cx=9, cy=0, r=3, class_=f"dot {series.role}")] if series.dots else []
    )])  # fmt: skip


def _stops(chart: LineChart, x: Scale) -> list[Markup]:
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
            tag("rect", x=left, y=_TOP, width=right - left, height=_BOTTOM - _TOP),
            line(x(place), _TOP, x(place), _BOTTOM, "cursor"),
            class_="stop",
        ))  # fmt: skip
    return bands


def _near(series: Series, place: float) -> float:
    """The value of the point next to a place."""
    after = bisect_left(series.points, (place, float("-inf")))
    around = series.points[max(0, after - 1) : after + 1]
    return min(around, key=lambda point: abs(point[0] - place))[1]
