"""A section of the page as plain data: charts, and blocks that the template knows how to show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from st3fx.report.chart import Chart


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


@dataclass(frozen=True)
class Table:
    """A table in the order that is given; it scrolls within itself where it is too large.

    Attributes:
        columns: Its heads.
        rows: A text for each column, or a :class:`Cell` where it can be sorted.
        noun: What its rows are: it can be sorted and filtered. Empty: it cannot.
        example: Words that a reader may filter by.
    """

    kind: ClassVar[str] = "table"
    columns: Sequence[Column]
    rows: Sequence[Sequence[object]]
    noun: str = ""
    example: str = "layer3 3×3"


@dataclass(frozen=True)
class Terms:
    """Terms with what they are; under a title they are folded away until they are asked for."""

    kind: ClassVar[str] = "terms"
    entries: Sequence[tuple[str, str]]
    title: str = ""


@dataclass(frozen=True)
class Items:
    """Sentences, one line each; ``look`` is their class in the style sheet."""

    kind: ClassVar[str] = "items"
    lines: Sequence[str]
    look: str = "note"


@dataclass(frozen=True)
class Note:
    """A sentence in small letters, and a command that it ends with."""

    kind: ClassVar[str] = "note"
    text: str
    command: str = ""


@dataclass(frozen=True)
class Code:
    """Lines of commands."""

    kind: ClassVar[str] = "code"
    text: str


Block = Table | Terms | Items | Note | Code


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
    beside: tuple[Block, ...] = ()
    rest: tuple[Block, ...] = ()
    missing: str = ""
