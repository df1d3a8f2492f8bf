"""The console, and the two kinds of tables that all views are made of.

Names come from files of anybody. The console writes nothing that steers a terminal but what rich
itself makes: the rest is shown as escapes.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Literal, TextIO

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.padding import Padding
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from st3fx.errors import printable

_PIPE_WIDTH = 10_000
"""Columns where the output is no terminal: a line of a table is never broken in a file."""


class Terminal(Console):
    """A console for texts of others': no markup, no emoji, no control characters."""

    def __init__(
        self,
        file: TextIO | None = None,
        *,
        stderr: bool = False,
        width: int | None = None,
        force_terminal: bool | None = None,
    ) -> None:
        super().__init__(
            file=file, stderr=stderr, width=width, force_terminal=force_terminal,
            markup=False, highlight=False, emoji=False,
        )  # fmt: skip

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Segments of which only those that rich made to steer the terminal do so."""
        found = self._printable(renderable, options)
        return found if self.is_terminal else _without_ends(found)

    def _printable(
        self, renderable: RenderableType, options: ConsoleOptions | None
    ) -> Iterator[Segment]:
        for segment in super().render(renderable, options):
            plain = printable(segment.text, lines=True)
            if segment.control or plain == segment.text:
                yield segment
            else:
                yield Segment(plain, segment.style)

    def on_broken_pipe(self) -> None:
        """What is written to knows what to do (``cli.terminal.Output``)."""
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


def _without_ends(segments: Iterable[Segment]) -> Iterator[Segment]:
    """Without the spaces that fill a line up: in a file they make lines of a table's full width."""
    spaces: list[Segment] = []
    for segment in segments:
        if segment.control:
            yield segment
        elif not segment.text.strip(" "):
            spaces.append(segment)
        else:
            if not segment.text.startswith("\n"):
                yield from spaces
            spaces = []
            text = re.sub(" +\n", "\n", segment.text)
            kept = text.rstrip(" ")
            yield Segment(kept, segment.style)
            if kept != text:
                spaces = [Segment(text[len(kept) :], segment.style)]


def console(file: TextIO | None = None, *, stderr: bool = False) -> Terminal:
    """The console on ``file``, on stderr, or on stdout."""
    terminal = Terminal(file, stderr=stderr)
    return terminal if terminal.is_terminal else Terminal(file, stderr=stderr, width=_PIPE_WIDTH)


class Fitted(Table):
    """A table that becomes a list where its columns find no room side by side.

    So a name is never folded into a column of few letters, and a number never loses its unit. What
    stands above may be wider than the table, which rich's own titles may not.

    Attributes:
        heading: What stands above.
        spare: Heads of columns that are left out, in this order, before anything is folded.
    """

    heading: str | None = None
    spare: Sequence[str] = ()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The table, or a heading and lines for each of its rows."""
        if self.heading:
            yield Text(self.heading, style="italic")
        columns, gone = self.columns, list[str]()
        for name in self.spare:
            if self._widest(console, options) > options.max_width:
                gone.append(name)
                kept = (column for column in self.columns if column.header != name)
                self.columns = [replace(each, _index=index) for index, each in enumerate(kept)]
        if not self.row_count or self._least(console, options) <= options.max_width:
            yield from super().__rich_console__(console, options)
            self.columns = columns
        else:
            self.columns, gone = columns, []
            yield from self._list()
        if gone:
            yield Text(f"no room for {', '.join(gone)}", style="dim")

    def _widths(self, console: Console, options: ConsoleOptions) -> list[int]:
        """What each column takes if nothing is folded."""
        room = options.update(width=_PIPE_WIDTH)
        return [
            max(
                Measurement.get(console, room, cell).maximum
                for cell in (Text(str(column.header)), *column.cells)
            )
            for column in self.columns
        ]

    def _widest(self, console: Console, options: ConsoleOptions) -> int:
        """With three columns of the terminal between two of its own, and one at each end."""
        return sum(self._widths(console, options)) + 3 * len(self.columns) - 1

    def _least(self, console: Console, options: ConsoleOptions) -> int:
        widths = zip(self.columns, self._widths(console, options), strict=True)
        total = sum(width if column.no_wrap else min(width, _FOLDED) for column, width in widths)
        return total + 3 * len(self.columns) - 1

    def _list(self) -> RenderResult:
        heads = [str(column.header) for column in self.columns[1:]]
        for first, *rest in zip(*(column.cells for column in self.columns), strict=True):
            name, said = Text(str(first), style="bold"), [Text(str(cell)) for cell in rest]
            name.overflow = "fold"
            if name.plain:
                yield name
            lines = [
                (Text(head, style="dim"), cell)
                for head, cell in zip(heads, said, strict=True)
                if cell.plain
            ]
            yield Padding(make_grid(lines), (0, 0, 0, 2))
        yield Text()


_FOLDED = 16
"""Columns of the terminal that a name gets at least, if it is as long."""


def make_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    numbers: Collection[str] = (),
    whole: Collection[str] = (),
    title: str | None = None,
    spare: Sequence[str] = (),
) -> Table:
    """A table under its heads.

    Args:
        columns: Heads.
        rows: A text for each column. It is folded where there is no room, never cut: names are what
            other commands take.
        numbers: Heads of columns at the right.
        whole: Heads of columns that are not folded.
        title: Stands above it.
        spare: Heads of columns that are left out, in this order, before anything is folded.
    """
    table = Fitted(box=box.SIMPLE_HEAD, pad_edge=False)
    table.heading, table.spare = title, spare
    for name in columns:
        justify: Literal["left", "right"] = "right" if name in numbers else "left"
        table.add_column(name, justify=justify, overflow="fold", no_wrap=name in whole)
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    return table


def make_grid(rows: Iterable[Sequence[str | Text]], *, padding: int = 2, width: int = 0) -> Table:
    """Columns without heads, of which the last is folded where there is no room.

    Args:
        rows: A text for each column.
        padding: Columns of the terminal between two of its own.
        width: Least width of the last column but one.
    """
    grid = Table.grid(padding=(0, padding))
    lines = [
        [Text(printable(cell, lines=True)) if isinstance(cell, str) else cell for cell in row]
        for row in rows
    ]
    for left in range(max(map(len, lines), default=1) - 1, 0, -1):
        grid.add_column(no_wrap=True, min_width=width if left == 1 else None)
    grid.add_column(overflow="fold")
    for line in lines:
        grid.add_row(*line)
    return grid
