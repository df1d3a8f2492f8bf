"""HTML and SVG elements, in which every text is escaped unless it is markup already.

Tables of the page: plain ones, and one that can be sorted and filtered.

Numbers and names as a person reads them; a number and its unit stay on one line.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


class Markup(str):
    """Text that stands in a page as it is."""

    __slots__ = ()


EMPTY = Markup("")

_VOID = frozenset({"br", "input", "meta", "wbr"})


def tag(name: str, /, *children: object, **attributes: object) -> Markup:
    """One element.

    Args:
        name: Of the element.
        children: Its content in order; whatever is no :class:`Markup` is escaped.
        attributes: Their values are escaped. ``class_`` is ``class`` and other underscores are
            dashes; ``None`` and ``False`` leave an attribute out, ``True`` gives it no value.
    """
    parts = [f"<{name}"]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        attribute = key.rstrip("_").replace("_", "-")
        parts.append(f" {attribute}" if value is True else f' {attribute}="{_value(value)}"')
    parts.append(">")
    if name not in _VOID:
        parts += [join(children), f"</{name}>"]
    return Markup("".join(parts))


def join(children: Iterable[object]) -> Markup:
    """Pieces side by side; whatever is no :class:`Markup` is escaped."""
    return Markup("".join(c if isinstance(c, Markup) else html.escape(str(c)) for c in children))


def _value(value: object) -> str:
    """An attribute's value; numbers of a drawing have two digits, which is sharp enough."""
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".")
    return html.escape(str(value))


SPACE = "\u00a0"
"""Between a number and its unit."""


def percent(share: float, digits: int = 1) -> str:
    """``61.7 %``; shares that are not all or nothing are never rounded to 0 or 100 %."""
    text = f"{100 * share:.{digits}f}"
    least = 10.0**-digits
    if 0 < share < 1 and float(text) in (0.0, 100.0):
        return f"<{SPACE}{least:g}{SPACE}%" if share < 0.5 else f">{SPACE}{100 - least:g}{SPACE}%"
    return f"{text}{SPACE}%"


def count(number: float) -> str:
    """``4.09 G``, ``118 M``, ``512``: three digits."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(number) >= 0.9995 * size:
            return f"{three(number / size)}{SPACE}{unit}"
    return f"{number:.0f}" if float(number).is_integer() else three(number)


def size(amount: int) -> str:
    """``152 kB``, ``1.09 MB``."""
    return f"{amount}{SPACE}B" if amount < 1000 else f"{count(amount)}B"


def milliseconds(value: float) -> str:
    """``12.4 ms``, ``840 µs``."""
    return f"{three(value)}{SPACE}ms" if value >= 1 else f"{three(1000 * value)}{SPACE}µs"


def times(ratio: float) -> str:
    """``2.31 ×``."""
    return f"{three(ratio)}{SPACE}×"


def three(value: float) -> str:
    """Three digits: ``4.09``, ``61.7``, ``118``; the smallest as a power of ten."""
    if value and abs(value) < 0.001:
        return f"{value:.2g}"
    digits = max(0, 3 - len(f"{abs(value):.0f}")) if abs(value) >= 0.9995 else 3
    return f"{value:.{digits}f}"


def shape(sizes: Sequence[int]) -> str:
    """``64×3×7×7``."""
    return "×".join(map(str, sizes)) or "scalar"


def plural(number: int, noun: str) -> str:
    """``1 site``, ``20 sites``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def short_name(name: str, limit: int = 26) -> str:
    """A weight's name without its last part ``weight``, cut in the middle where it is too long."""
    text = name.removesuffix(".weight")
    if len(text) <= limit:
        return text
    head = (limit - 1) // 3
    return f"{text[:head]}…{text[head + 1 - limit :]}"


def listed(names: Sequence[str], limit: int = 6) -> str:
    """``a, b and c``; of more than ``limit`` the first, and how many more."""
    if len(names) > limit:
        return f"{', '.join(names[:limit])} and {len(names) - limit} more"
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


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
