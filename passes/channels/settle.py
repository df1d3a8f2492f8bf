"""Lets stay what a rule does not answer for: the one place where channels are pinned by default."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from st3fx.passes.channels.call import Call, size_of
from st3fx.passes.channels.coupling import Ids, Mark
from st3fx.passes.channels.fact import Fact
from st3fx.passes.channels.operand import Role


def settle(call: Call, results: Sequence[Fact], since: Mark) -> None:
    """Hold a rule to what it said of each axis of each tensor that its operator reads.

    An axis stays whole unless the rule asked for its channels; so do carried ones that no result
    has, and summed ones without a product. It does not matter which arguments a rule looks at.

    Args:
        call: The operator, after its rule.
        results: What the rule gives.
        since: Mark of the coupling before the rule.
    """
    _check(call, results)
    carried = _Carried(call, results, since)
    summed = len(call.coupling.products) > since.products
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


class _Carried:
    """Channels of results, and what the rule made one with them."""

    def __init__(self, call: Call, results: Sequence[Fact], since: Mark) -> None:
        self._ties = call.coupling.ties_since(since)
        self._arrays = [ids for fact in results for ids in fact.axes if ids is not None]
        self._same = {id(ids) for ids in self._arrays}
        for first, second in (*self._ties, *reversed(self._ties)):
            if id(first) in self._same or id(second) in self._same:
                self._same |= {id(first), id(second)}

    def __contains__(self, ids: Ids) -> bool:
        if id(ids) in self._same:
            return True
        # Put together anew: repeated, grouped, one behind the other.
        arrays = [*self._arrays, *(side for tie in self._ties for side in tie)]
        return bool(arrays) and bool(np.isin(ids, np.concatenate(arrays)).all())


def _check(call: Call, results: Sequence[Fact]) -> None:
    """A result has one channel for each of its indices."""
    value: Any = call.node.meta.get("val")
    values = value if isinstance(value, list | tuple) else [value]
    for fact, given in zip(results, values, strict=False):
        assert isinstance(given, Tensor), f"{call.node}: a fact of what is no tensor"
        assert fact.rank == given.dim(), f"{call.node}: {fact.rank} axes of {given.dim()}"
        for dim, ids in enumerate(fact.axes):
            if ids is not None:
                assert len(ids) == size_of(given.shape[dim]), f"{call.node}: axis {dim}"
