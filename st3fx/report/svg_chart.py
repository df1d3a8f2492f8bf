"""Any chart with axes as SVG."""

from __future__ import annotations

from st3fx.report.chart import BarChart, Histogram, LineChart
from st3fx.report.markup import Markup
from st3fx.report.svg_bars import draw_bars
from st3fx.report.svg_histogram import draw_histogram
from st3fx.report.svg_lines import draw_lines


def draw(chart: LineChart | BarChart | Histogram) -> Markup:
    """The drawing of a chart."""
    if isinstance(chart, LineChart):
        return draw_lines(chart)
    return draw_bars(chart) if isinstance(chart, BarChart) else draw_histogram(chart)
