"""Take back what the trace of a submodule has added, when it fails."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import fx

from st3fx.passes.asked import Asked

Tables = tuple[dict[Any, Any], ...]
"""What grows while a trace goes on, each in the order of addition."""


class Mark(NamedTuple):
    """How far a trace was."""

    last: fx.Node | None
    answers: int
    sizes: list[int]


def mark(graph: fx.Graph, asked: Asked, tables: Tables) -> Mark:
    """Where a trace is now."""
    last = next(iter(reversed(graph.nodes)), None)
    return Mark(last, asked.mark(), [len(table) for table in tables])


def undo(graph: fx.Graph, asked: Asked, tables: Tables, before: Mark) -> None:
    """Back to a mark: nodes, answers and entries since then are dropped."""
    asked.undo(before.answers)
    for table, size in zip(tables, before.sizes, strict=True):
        while len(table) > size:
            table.popitem()
    for node in reversed(graph.nodes):
        if node is before.last:
            break
        asked.erase(node)
        graph.erase_node(node)
