"""The scores in a band around the threshold, over all sites and processes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch.distributed as dist
from numpy.typing import NDArray

from st3fx.core import floats
from st3fx.core.scan import Scores, Source, count
from st3fx.core.shards import Spread
from st3fx.errors import StateError


@dataclass(frozen=True)
class ScoredSite:
    """One site's scores here, how many there are in all, what each costs, who has the rest."""

    source: Source
    numel: int
    cost: int
    spread: Spread


@dataclass(frozen=True)
class Band:
    """Scores between two ends, in all processes.

    Attributes:
        below: Cost of all scores below the band.
        inside: Cost of the scores in it.
        scores: Sorted scores in it that are here, by the processes that hold the others.
        costs: Their cumulative costs.
        low_sites: Sites without a score above the band, by position, with their largest score here.
    """

    below: int
    inside: int
    scores: dict[Spread, Scores]
    costs: dict[Spread, NDArray[np.int64]]
    low_sites: dict[int, float]

    def up_to(self, scores: Scores) -> NDArray[np.int64]:
        """Cost of the scores in the band up to each of some values."""
        total = np.zeros(len(scores), np.int64)
        for spread, own in self.scores.items():
            costs = np.concatenate([[0], self.costs[spread]])
            here = costs[np.searchsorted(own, scores, side="right")]
            total += np.array(spread.reduce(here.tolist(), dist.ReduceOp.SUM), np.int64)
        return total

    def above(self, score: float) -> float:
        """The smallest score in the band above ``score``; infinity if there is none."""
        best = math.inf
        for spread, own in self.scores.items():
            index = int(np.searchsorted(own, np.float32(score), side="right"))
            here = float(own[index]) if index < len(own) else math.inf
            best = min(best, spread.reduce([here], dist.ReduceOp.MIN)[0])
        return best

    def search(self, need: int, low: float, high: float) -> float:
        """The smallest score in the band, between its ends, up to which its scores cost ``need``.

        Bisects over the bits of the floats, 255 values at a time: four rounds of counts at most,
        whatever is distributed over however many processes.
        """
        first, last = floats.bits(low), floats.bits(high)
        while first < last:
            edges = np.unique(np.linspace(first, last, 257)[:-1].astype(np.int64))
            enough = self.up_to(edges.astype(np.int32).view(np.float32)) >= need
            index = int(np.argmax(enough)) if enough.any() else len(edges)
            last = int(edges[index]) if index < len(edges) else last
            first = int(edges[index - 1]) + 1 if index else last
        return floats.from_bits(last)


def count_band(sites: Sequence[ScoredSite], low: float, high: float, limit: int) -> Band:
    """Count the scores around a band and collect those in it, in one pass.

    Args:
        sites: All sites.
        low: Lower end, an fp32 number.
        high: Upper end, an fp32 number, at least ``low``.
        limit: Scores to collect before only counting goes on.

    Raises:
        StateError: If weights are NaN.
    """
    counts = count([site.source for site in sites], low, high, limit)
    everything, owners = counts.collected()
    prices = np.array([site.cost for site in sites], np.int64)
    below = inside = 0
    low_sites: dict[int, float] = {}
    scores: dict[Spread, Scores] = {}
    cumulative: dict[Spread, NDArray[np.int64]] = {}
    spreads = [site.spread for site in sites]
    for spread in dict.fromkeys(spreads):
        indices = np.array([i for i, other in enumerate(spreads) if other == spread])
        own = counts.below[indices], counts.inside[indices]
        invalid = int(np.isnan(counts.largest[indices]).sum())
        here = [*own[0].tolist(), *own[1].tolist(), invalid]
        *there, invalid_there = spread.reduce(here, dist.ReduceOp.SUM)
        if invalid_there:
            raise StateError("some weights are NaN: the training has diverged")
        for i, under, within in zip(indices.tolist(), there, there[len(indices) :], strict=False):
            below += int(under) * sites[i].cost
            inside += int(within) * sites[i].cost
            if under + within == sites[i].numel:
                low_sites[i] = float(counts.largest[i])
        mine = np.isin(owners, indices) if len(indices) < len(sites) else slice(None)
        scores[spread], cumulative[spread] = _sorted(everything[mine], prices[owners[mine]])
    return Band(below, inside, scores, cumulative, low_sites)


def _sorted(scores: Scores, costs: NDArray[np.int64]) -> tuple[Scores, NDArray[np.int64]]:
    """Scores in order, with their cumulative costs."""
    if not len(costs) or costs.min() == costs.max():
        return np.sort(scores), np.cumsum(costs)
    order = np.argsort(scores)
    return scores[order], np.cumsum(costs[order])
