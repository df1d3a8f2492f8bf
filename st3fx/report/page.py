"""The page: one file, with its style and its script in it and nothing fetched from anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources

from st3fx.report import model_sections, run_sections
from st3fx.report.facts import Facts
from st3fx.report.headline import headline
from st3fx.report.markup import Markup, join, tag
from st3fx.report.section import Section
from st3fx.version import VERSION

STORY = (
    run_sections.training,
    model_sections.zeros,
    model_sections.compute,
    model_sections.sites,
    model_sections.dataflow,
    run_sections.latency,
    run_sections.sizes,
    run_sections.reproduce,
)
"""The sections in the order in which they are told."""

GENERATOR = "st3fx report"
"""Stands at the beginning of what ``st3fx report`` wrote, which it may replace."""

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
"""The browser itself refuses whatever would be fetched."""


def make_sections(facts: Facts) -> tuple[Section, ...]:
    """All sections, those without data too."""
    return tuple(make(facts) for make in STORY)


def make_page(facts: Facts, sections: Sequence[Section]) -> str:
    """The HTML document."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="generator", content=f"{GENERATOR} {VERSION}"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"{facts.name}: sparse training report"),
        tag("style", _asset("page.css")),
    )
    links = (tag("a", section.title, href=f"#{section.key}") for section in sections)
    body = tag(
        "body",
        headline(facts),
        tag("nav", *links, aria_label="Sections"),
        tag("main", *(section.to_html() for section in sections)),
        tag("footer", f"Written by st3fx {VERSION}."),
        tag("script", _asset("page.js")),
    )
    return join([Markup("<!DOCTYPE html>\n"), tag("html", head, body, lang="en"), Markup("\n")])


def _asset(name: str) -> Markup:
    return Markup((resources.files("st3fx.report") / name).read_text(encoding="utf-8"))
