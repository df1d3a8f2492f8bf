"""The tensors among an operator's arguments or results."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor


def tensors_in(values: Iterable[Any]) -> list[Tensor]:
    """All tensors, in lists and tuples too: an ATen operator knows no other containers.

    Many times faster than torch's pytree, which costs more than most operators.
    """
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += tensors_in(value)
    return found
