"""The graphs of a converted model as text that a person can read."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def print_graphs(islands: Iterable[Any]) -> str:
    """The readable code of every graph, with a header line each.

    Args:
        islands: fx graph modules, with the name of their module (``st3fx_name``) and whether they
            are its train graph, its eval graph or both (``st3fx_mode``).
    """
    parts = []
    for graph in islands:
        name = graph.st3fx_name or "(the model)"
        code = graph.print_readable(print_output=False)
        parts.append(f"# island {name}, mode {graph.st3fx_mode}\n{code.strip()}\n")
    return "\n\n".join(parts) or "# no module was captured as a graph\n"
