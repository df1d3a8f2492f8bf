"""The projection of probabilities onto a budget.

The nearest point to ``z`` with ``0 ≤ p ≤ 1`` and ``Σ c·p ≤ K`` is ``min(1, max(0, z − v·c))``, with
the smallest ``v ≥ 0`` that keeps the budget (ProbMask, arXiv 2105.01571, where ``c`` is
1). The sum falls with ``v`` and is linear between kinks: Newton's steps find the root, in a
bracket that shrinks with each.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from st3fx.sparsity.shards import local, spread_of

_STEPS = 64
_TOLERANCE = 1e-6
"""Of the budget, which is never exceeded, that may be left over."""

_GRAIN = 2.0**-22
"""``v`` is no finer than fp32 is near 1: less of it may change nothing."""


@torch.no_grad()
def project(tensors: Sequence[Tensor], budget: float, costs: Sequence[float] = ()) -> float:
    """Move probabilities to the nearest ones within a budget, in place.

    Args:
        tensors: ``z`` by site, any shapes, fp32; sharded ones are summed where they are.
        budget: ``K ≥ 0``.
        costs: ``c > 0`` by site; by default 1.

    Returns:
        ``v``.
    """
    costs = costs or [1.0] * len(tensors)
    tensors = list(tensors)

    def measured(shift: float) -> tuple[float, float]:
        """The cost of all, and how much of it a unit of ``v`` takes away."""
        whole = slope = 0.0
        for tensor, cost in zip(tensors, costs, strict=True):
            moved = local(tensor) - shift * cost
            inside = int(((moved > 0) & (moved < 1)).sum())
            total = float(moved.clamp_(0.0, 1.0).sum(dtype=torch.float64))
            found = spread_of(tensor).reduce([total, float(inside)], dist.ReduceOp.SUM)
            whole, slope = whole + cost * found[0], slope + cost * cost * found[1]
        return whole, slope

    # Steps aim at a little less than the budget: from above, they would only come near it.
    goal = budget * (1 - _TOLERANCE / 2)
    low, high, shift = 0.0, _largest(tensors, costs), 0.0
    for _ in range(_STEPS):
        whole, slope = measured(shift)
        if whole > budget:
            low = shift
        else:
            high = shift
        if high - low <= _GRAIN or budget * (1 - _TOLERANCE) <= whole <= budget:
            break
        step = (whole - goal) / slope if slope else high
        step = max(step, _GRAIN) if whole > budget else min(step, -_GRAIN)
        shift = shift + step if low < shift + step < high else (low + high) / 2
    for tensor, cost in zip(tensors, costs, strict=True):
        local(tensor).sub_(high * cost).clamp_(0.0, 1.0)
    return high


def _largest(tensors: Sequence[Tensor], costs: Sequence[float]) -> float:
    """A ``v`` with which nothing is left."""
    found = 0.0
    for tensor, cost in zip(tensors, costs, strict=True):
        own = local(tensor)
        largest = float(own.max()) if own.numel() else 0.0
        found = max(found, spread_of(tensor).reduce([largest], dist.ReduceOp.MAX)[0] / cost)
    return found
