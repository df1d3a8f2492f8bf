"""Charts as inline SVG: colours are CSS variables of the page, so that they follow its scheme.

Drawn 400 units wide, which is a phone's width: text is legible there, and a wider page puts charts
side by side instead of enlarging them. A mark's ``<title>`` is its tooltip.
"""

from __future__ import annotations

from collections.abc import Sequence

from st3fx.report.chart import Axis, Chart
from st3fx.report.markup import EMPTY, Markup, join, tag
from st3fx.report.scale import Scale, tick_text

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
