"""Layers of a large model put together by the modules that they are in."""

from __future__ import annotations

from collections.abc import Sequence

MOST = 60
"""Rows of a chart that can still be read."""


def grouped(names: Sequence[str], most: int = MOST) -> dict[str, list[str]]:
    """Names by the longest prefix that leaves at most ``most`` groups, in their order.

    Args:
        names: Full names of weights.
        most: Groups at most, unless there are more top-level modules than that.

    Returns:
        Group -> its names; a group of one has the full name.
    """
    deepest = max((name.count(".") for name in names), default=0)
    groups: dict[str, list[str]] = {name: [name] for name in names}
    while len(groups) > most and deepest > 0:
        groups = {}
        for name in names:
            groups.setdefault(".".join(name.split(".")[:deepest]), []).append(name)
        deepest -= 1
    return {inner[0] if len(inner) == 1 else name: inner for name, inner in groups.items()}
