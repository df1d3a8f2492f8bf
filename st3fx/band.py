"""The scores in a band around the threshold, over all sites and processes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch.distributed as dist
from numpy.typing import NDArray

from st3fx import floats
from st3fx.errors import StateError
from st3fx.scan import Count, Scores, Source, count
from st3fx.shards import Spread

NONE = np.empty(0, np.float32)


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
    below = inside = 0
    low_sites: dict[int, float] = {}
    scores: dict[Spread, Scores] = {}
    cumulative: dict[Spread, NDArray[np.int64]] = {}
    for spread in dict.fromkeys(site.spread for site in sites):
        indices = [i for i, site in enumerate(sites) if site.spread == spread]
        own = [(sites[i], counts[i]) for i in indices]
        here = [c.below for _, c in own] + [c.inside for _, c in own]
        invalid = sum(math.isnan(c.largest) for _, c in own)
        *there, invalid_there = spread.reduce([*here, invalid], dist.ReduceOp.SUM)
        if invalid_there:
            raise StateError("some weights are NaN: the training has diverged")
        for i, under, within in zip(indices, there, there[len(own) :], strict=False):
            below += int(under) * sites[i].cost
            inside += int(within) * sites[i].cost
            if under + within == sites[i].numel:
                low_sites[i] = counts[i].largest
        scores[spread], cumulative[spread] = _sorted(own)
    return Band(below, inside, scores, cumulative, low_sites)


def _sorted(own: Sequence[tuple[ScoredSite, Count]]) -> tuple[Scores, NDArray[np.int64]]:
    """The collected scores in order, with their cumulative costs."""
    scores = [np.concatenate([*count.values, NONE]) for _, count in own]
    joined = np.concatenate(scores)
    costs = {site.cost for site, _ in own}
    if len(costs) == 1:
        joined.sort()
        return joined, np.arange(1, len(joined) + 1) * costs.pop()
    order = np.argsort(joined)
    each = np.concatenate([np.full(len(s), o.cost) for s, (o, _) in zip(scores, own, strict=True)])
    return joined[order], np.cumsum(each[order], dtype=np.int64)
