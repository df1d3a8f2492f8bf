"""``y += x`` and its like as nodes of a graph.

A tensor is written to, a number is not: the code that torch.fx writes for ``operator.iadd`` binds
the name of the left side anew, which other nodes may go on using.
"""

from __future__ import annotations

from typing import Any


def iadd(left: Any, right: Any) -> Any:
    """``left += right``."""
    left += right
    return left


def isub(left: Any, right: Any) -> Any:
    """``left -= right``."""
    left -= right
    return left


def imul(left: Any, right: Any) -> Any:
    """``left *= right``."""
    left *= right
    return left


def itruediv(left: Any, right: Any) -> Any:
    """``left /= right``."""
    left /= right
    return left
