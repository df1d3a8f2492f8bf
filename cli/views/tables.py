"""The console, and the two kinds of tables that all views are made of."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Literal, TextIO

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

_PIPE_WIDTH = 10_000
"""Columns where the output is no terminal: a line of a table is never broken in a file."""


def console(file: TextIO | None = None) -> Console:
    """The console on ``file``, or on stdout."""
    terminal = Console(file=file, markup=False, highlight=False)
    if terminal.is_terminal:
        return terminal
    return Console(file=file, markup=False, highlight=False, width=_PIPE_WIDTH)


def make_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    numbers: Collection[str] = (),
    whole: Collection[str] = (),
    title: str | None = None,
) -> Table:
    """A table under its heads.

    Args:
        columns: Heads.
        rows: A text for each column. It is folded where there is no room, never cut: names are what
            other commands take.
        numbers: Heads of columns at the right.
        whole: Heads of columns that are not folded.
        title: Stands above it.
    """
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        justify: Literal["left", "right"] = "right" if name in numbers else "left"
        table.add_column(name, justify=justify, overflow="fold", no_wrap=name in whole)
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def make_grid(rows: Iterable[Sequence[str | Text]], *, padding: int = 2, width: int = 0) -> Table:
    """Columns without heads, of which the last is folded where there is no room.

    Args:
        rows: A text for each column.
        padding: Columns of the terminal between two of its own.
        width: Least width of the last column but one.
    """
    grid = Table.grid(padding=(0, padding))
    lines = [[Text(cell) if isinstance(cell, str) else cell for cell in row] for row in rows]
    for left in range(max(map(len, lines), default=1) - 1, 0, -1):
        grid.add_column(no_wrap=True, min_width=width if left == 1 else None)
    grid.add_column(overflow="fold")
    for line in lines:
        grid.add_row(*line)
    return grid
