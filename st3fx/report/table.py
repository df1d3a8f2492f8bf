"""Tables of the page: plain ones, and one that can be sorted and filtered."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from st3fx.report.markup import Markup, tag


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        name: Its head.
        number: Whether it holds numbers, which stand at the right.
        sort: Whether the table can be sorted by it.
        width: Letters for which it has room at least.
    """

    name: str
    number: bool = False
    sort: bool = True
    width: int | None = None


@dataclass(frozen=True)
class Cell:
    """What stands in a cell, and what it is sorted by.

    Attributes:
        content: Text or markup.
        value: A number or text to sort by; ``None``: the content.
    """

    content: object
    value: float | str | None = None


def plain_table(columns: Sequence[Column], rows: Iterable[Sequence[object]]) -> Markup:
    """A table in the order that is given; it scrolls within itself where it is too wide."""
    head = (tag("th", column.name, scope="col", class_=_class(column)) for column in columns)
    body = (
        tag("tr", *(_cell(column, cell) for column, cell in zip(columns, row, strict=True)))
        for row in rows
    )
    return _scrolled(tag("table", tag("thead", tag("tr", *head)), tag("tbody", *body)))


def sortable_table(columns: Sequence[Column], rows: Sequence[Sequence[Cell]], noun: str) -> Markup:
    """A table whose heads sort it, under a field that filters it by what its lines say."""
    head = tag("tr", *(_head(column) for column in columns))
    body = (
        tag("tr", *(_sort_cell(column, cell) for column, cell in zip(columns, row, strict=True)))
        for row in rows
    )
    label = f"Filter {noun}"
    field = tag("input", type="search", placeholder=f"{label}, e.g. layer3 3×3",
                aria_label=label, autocomplete="off", spellcheck="false")  # fmt: skip
    count = tag("output", f"{len(rows)} {noun}", aria_live="polite", data_noun=noun)
    table = tag("table", tag("thead", head), tag("tbody", *body))
    return tag("div", tag("div", field, count, class_="filter"), _scrolled(table, tall=True),
               class_="sortable")  # fmt: skip


def _head(column: Column) -> Markup:
    content: object = column.name
    if column.sort:
        content = tag("button", column.name, type="button")
    style = None if column.width is None else f"min-width:{column.width}ch"
    return tag("th", content, scope="col", class_=_class(column), style=style,
               data_kind="number" if column.number else "text")  # fmt: skip


def _cell(column: Column, content: object) -> Markup:
    return tag("td", content, class_=_class(column))


def _sort_cell(column: Column, cell: Cell) -> Markup:
    return tag("td", cell.content, class_=_class(column), data_v=cell.value)


def _class(column: Column) -> str | None:
    return "number" if column.number else None


def _scrolled(table: Markup, *, tall: bool = False) -> Markup:
    # A region that scrolls can be reached by the keyboard.
    return tag("div", table, class_="scroll tall" if tall else "scroll", tabindex=0, role="region",
               aria_label="table")  # fmt: skip
