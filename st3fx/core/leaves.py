"""The tensors among an operator's arguments or results, and those inside of objects."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from st3fx.core.same import is_value


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


def tensors_inside(thing: Any) -> list[Tensor]:
    """All tensors in an object that is no container, and in the objects that it has."""
    found: list[Tensor] = []
    opened: dict[int, Any] = {}
    pending = [thing]
    while pending:
        owner = pending.pop()
        if id(owner) in opened or not _has_state(owner):
            continue
        opened[id(owner)] = owner
        leaves = pytree.tree_leaves(list(vars(owner).values()))
        found += [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        pending += reversed(leaves)
    return found


def _has_state(thing: Any) -> bool:
    known = isinstance(thing, Tensor | nn.Module | type) or callable(thing) or is_value(thing)
    return not known and hasattr(thing, "__dict__")
