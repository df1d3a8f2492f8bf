"""Lets stay what a rule does not answer for: the one place where channels are pinned by default."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from st3fx.passes.channels.call import Call, facts_of, size_of
from st3fx.passes.channels.fact import Fact, Ids, Mark, Mask
from st3fx.passes.channels.operand import Role


def settle(call: Call, found: Any, since: Mark) -> Any:
    """Hold a rule to what it said of each axis of each tensor that its operator reads or gives.

    An axis stays whole unless the rule asked for its channels; so do carried ones that no result
    has, and summed ones without a product. It does not matter which arguments a rule looks at.

    Args:
        call: The operator, after its rule.
        found: What the rule gives: a fact, or a tuple of them.
        since: Mark of the coupling before the rule.

    Returns:
        The same, where what has to stay is marked.
    """
    value: Any = call.node.meta.get("val")
    if isinstance(found, Fact):
        found = _sized(call, found, value)
    else:
        values = value if isinstance(value, list | tuple) else (value,)
        found = tuple(_sized(call, fact, item) for fact, item in zip(found, values, strict=False))
    carried = _Carried(call, facts_of(found), since)
    summed = call.coupling.has_product_since(since)
    for operand, fact in call.read():
        for dim, ids in enumerate(fact.axes):
            if ids is None:
                continue
            role = Role.WHOLE if operand is None else operand.roles[dim]
            if (
                role is Role.WHOLE
                or (role is Role.CARRIED and ids not in carried)
                or (role is Role.SUMMED and not summed)
            ):
                call.coupling.pin(ids, call.reason)
    return found


def _sized(call: Call, fact: Fact, value: Tensor) -> Fact:
    """A result with one channel for each of its indices; all stay where the size is free."""
    assert fact.rank == value.dim(), f"{call.node}: {fact.rank} axes of {value.dim()}"
    axes = list(fact.axes)
    for dim, ids in enumerate(axes):
        size = size_of(value.shape[dim])
        if ids is not None and not isinstance(size, int):
            call.coupling.pin(ids, call.reason)
            axes[dim] = None
        held = axes[dim]
        assert held is None or len(held) == size, f"{call.node}: axis {dim}"
    return dataclasses.replace(fact, axes=tuple(axes))


class _Carried:
    """Channels of results, and what the rule made one with them."""

    def __init__(self, call: Call, results: Sequence[Fact], since: Mark) -> None:
        self._size = call.coupling.size
        self._ties = call.coupling.ties_since(since)
        self._arrays = [ids for fact in results for ids in fact.axes if ids is not None]
        self._same = {id(ids) for ids in self._arrays}
        for first, second in (*self._ties, *reversed(self._ties)):
            if id(first) in self._same or id(second) in self._same:
                self._same |= {id(first), id(second)}

    def __contains__(self, ids: Ids) -> bool:
        return id(ids) in self._same or bool(self._mask[ids].all())

    @functools.cached_property
    def _mask(self) -> Mask:
        """By channel, for arrays that were put together anew: repeated, grouped, concatenated."""
        mask: Mask = np.zeros(self._size, dtype=bool)
        for ids in (*self._arrays, *(side for tie in self._ties for side in tie)):
            mask[ids] = True
        return mask
