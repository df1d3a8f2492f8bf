"""What a conversion did, as a person reads it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, TextIO

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from st3fx.core.sites import IslandInfo, SparsityPlan

_PIPE_WIDTH = 10_000
"""Columns where the output is no terminal: a line of a table is never broken in a file."""


def console(file: TextIO | None = None) -> Console:
    """The console on ``file``, or on stdout."""
    terminal = Console(file=file, markup=False, highlight=False)
    if terminal.is_terminal:
        return terminal
    return Console(file=file, markup=False, highlight=False, width=_PIPE_WIDTH)


def print_plan(plan: SparsityPlan, out: Console) -> None:
    """Sites, islands, what was skipped and what kept its own forward."""
    out.print(_site_table(plan))
    out.print(island_line(plan.islands), soft_wrap=True)
    if plan.skipped:
        rows = [(s.name, s.op, _shape(s.shape), f"{s.numel:,}", s.reason) for s in plan.skipped]
        out.print(_table("skipped", ("parameter", "op", "shape", "parameters", "reason"), rows))
    if plan.opaque:
        rows_opaque = [(m.name or "(the model)", m.type, m.reason) for m in plan.opaque]
        out.print(
            _table(
                "own forward kept, with effective weights inside",
                ("module", "type", "reason"),
                rows_opaque,
            )
        )


def island_line(islands: Sequence[IslandInfo]) -> str:
    """``1 island, 2 graphs (train, eval), 174 nodes``."""
    words = {"both": "train and eval in one"}
    modes = Counter(words.get(mode, mode) for island in islands for mode in island.modes)
    graphs = sum(modes.values())
    if not islands:
        return "no island: every module keeps its own forward"
    if max(modes.values()) == 1:
        kinds = ", ".join(modes)
    else:
        kinds = ", ".join(f"{count} {mode}" for mode, count in modes.items())
    nodes = sum(island.nodes for island in islands)
    return f"{_count(len(islands), 'island')}, {_count(graphs, 'graph')} ({kinds}), {nodes:,} nodes"


def total_line(plan: SparsityPlan) -> str:
    """What the plan means for the whole model."""
    share = plan.numel / plan.total_parameters if plan.total_parameters else 0.0
    if plan.target is None:
        rest = f"{plan.method} learns how many to leave"
    else:
        left = round(plan.numel * (1 - plan.target))
        rest = f"{plan.method} at {plan.target:.4g} sparsity leaves about {left:,} of them"
    return (
        f"{_count(len(plan.sites), 'site')} with {plan.numel:,} of {plan.total_parameters:,} "
        f"parameters ({share:.1%}); {rest}"
    )


def _site_table(plan: SparsityPlan) -> Table:
    whole = plan.numel or 1
    above = ("", *(site.name for site in plan.sites))
    rows = [
        (s.name, s.op, _shape(s.shape), f"{s.numel:,}", f"{s.numel / whole:.2%}",
         _sources(plan.fed_by(s.name), above[index]))
        for index, s in enumerate(plan.sites)
    ]  # fmt: skip
    return _table("sites", ("name", "op", "shape", "parameters", "share", "fed by"), rows)


def _sources(names: Sequence[str], above: str) -> str:
    """What feeds a site: an arrow for the site in the row above, at most two names."""
    shown = ["↑" if name == above else name for name in names]
    more = f", {len(shown) - 2} more" if len(shown) > 2 else ""
    return ", ".join(shown[:2]) + more


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        number = name in ("parameters", "share")
        # Names are folded, never cut: they are what --exclude takes.
        table.add_column(name, justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
