"""A section of the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from st3fx.report.chart import Chart, FlowChart
from st3fx.report.flow_html import draw_flow
from st3fx.report.markup import EMPTY, Markup, join, tag
from st3fx.report.svg_chart import draw


@dataclass(frozen=True)
class Section:
    """A part of the story.

    Attributes:
        key: Anchor in the page, and name in the result.
        title: Its heading.
        lead: What is to be seen, in sentences.
        charts: Drawn side by side where there is room.
        rest: What follows them.
        missing: Where there is nothing to show: what gives it. Empty where there is.
    """

    key: str
    title: str
    lead: str = ""
    charts: tuple[Chart, ...] = ()
    rest: Markup = EMPTY
    missing: str = ""

    def to_html(self) -> Markup:
        """The section as an element."""
        body = [tag("p", with_code(self.missing), class_="missing")] if self.missing else [
            tag("p", self.lead, class_="lead") if self.lead else EMPTY,
            _figures(self.charts),
            self.rest,
        ]  # fmt: skip
        return tag("section", tag("h2", self.title), *body, id=self.key)


def with_code(text: str) -> Markup:
    """Text in which what stands between backticks is set as code."""
    parts = text.split("`")
    return join(tag("code", part) if index % 2 else part for index, part in enumerate(parts))


def facts_list(entries: Sequence[tuple[str, object]]) -> Markup:
    """Terms with what they are."""
    pairs = (tag("div", tag("dt", term), tag("dd", what)) for term, what in entries)
    return tag("dl", *pairs)


def _figures(charts: Sequence[Chart]) -> Markup:
    figures = [
        tag(
            "figure",
            tag("figcaption", chart.title),
            draw_flow(chart) if isinstance(chart, FlowChart) else draw(chart),
            class_="wide" if isinstance(chart, FlowChart) else None,
        )
        for chart in charts
    ]
    return tag("div", *figures, class_="charts") if figures else EMPTY
