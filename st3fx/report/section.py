"""A section of the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from st3fx.report.chart import BarChart, Chart, FlowChart
from st3fx.report.flow import draw_flow
from st3fx.report.markup import EMPTY, Markup, join, tag
from st3fx.report.svg import draw

_PLACES: dict[type, str] = {FlowChart: "wide", BarChart: "tall"}
"""Charts that take more than a cell of the grid."""


@dataclass(frozen=True)
class Section:
    """A part of the story.

    Attributes:
        key: Anchor in the page, and name in the result.
        title: Its heading.
        lead: What is to be seen, in sentences.
        charts: Drawn side by side where there is room.
        beside: What stands under the last chart, or beside the only one.
        rest: What follows them.
        missing: Where there is nothing to show: what gives it. Empty where there is.
    """

    key: str
    title: str
    lead: str = ""
    charts: tuple[Chart, ...] = ()
    beside: Markup = EMPTY
    rest: Markup = EMPTY
    missing: str = ""

    def to_html(self) -> Markup:
        """The section as an element."""
        body = [tag("p", with_code(self.missing), class_="missing")] if self.missing else [
            tag("p", with_code(self.lead), class_="lead") if self.lead else EMPTY,
            _figures(self.charts, self.beside),
            self.rest,
        ]  # fmt: skip
        return tag("section", tag("h2", self.title), *body, id=self.key)


def with_code(text: str) -> Markup:
    """Text in which what stands between backticks is set as code."""
    parts = text.split("`")
    return join(tag("code", part) if index % 2 else part for index, part in enumerate(parts))


def facts_list(entries: Sequence[tuple[str, object]], class_: str | None = None) -> Markup:
    """Terms with what they are."""
    pairs = (tag("div", tag("dt", term), tag("dd", what)) for term, what in entries)
    return tag("dl", *pairs, class_=class_)


def _figures(charts: Sequence[Chart], beside: Markup) -> Markup:
    figures = [
        tag(
            "figure",
            tag("figcaption", chart.title),
            draw_flow(chart) if isinstance(chart, FlowChart) else draw(chart),
            class_=_PLACES.get(type(chart)),
        )
        for chart in charts
    ]
    if beside and len(figures) > 1:
        figures[-1] = tag("div", figures[-1], beside)
    elif beside:
        figures.append(tag("div", beside))
    return tag("div", *figures, class_="charts") if figures else EMPTY
