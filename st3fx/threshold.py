"""The exact global threshold: one quantile over the weights of all sites, found without sorting.

``T`` is the s-quantile of ``{|w_i| / σ_l(i)}`` over all sites, linear between order statistics:
``idx = (N−1)·s``, ``T = v[⌊idx⌋] + (v[⌈idx⌉] − v[⌊idx⌋])·(idx − ⌊idx⌋)`` with ``v`` the sorted
scores. With costs (multiplications for each weight of a site), ``T`` is the smallest score up to
which the scores cost a share ``s`` or more of all.

One pass counts the scores below a narrow band around the value that is expected, and collects those
in it; where the rank falls outside, the band moves and widens. The band comes from the last result
and the density of scores there, the first time from a sample. It decides how many passes there are,
never the result. Sharded weights are counted where they are: only counts travel.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from st3fx.errors import StateError
from st3fx.scan import Count, Scores, Source, count, smallest_above
from st3fx.shards import Spread, local, spread_of

MARGIN = 0.005
"""Half the band's width, as a share of all scores."""

SAMPLE = 1 << 16
"""Scores in the first sample."""


@dataclass(frozen=True)
class _Site:
    """One site's scores here, how many there are in all, what each costs, who has the rest."""

    source: Source
    numel: int
    cost: int
    spread: Spread


@dataclass(frozen=True)
class _Band:
    """Scores between two ends, in all processes.

    Attributes:
        below: Cost of all scores below the band.
        inside: Cost of the scores in it.
        scores: Sorted scores in it that are here, by the processes that hold the others.
        costs: Their cumulative costs.
    """

    below: int
    inside: int
    scores: dict[Spread, Scores]
    costs: dict[Spread, NDArray[np.int64]]

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


class GlobalThreshold:
    """Finds the threshold again and again, faster where the last one is near."""

    def __init__(self) -> None:
        self._last: tuple[float, int, float] | None = None  # score, rank, cost for unit of score
        self._low: dict[int, float] = {}  # sites up to the last band's end -> largest score here
        self.passes = 0
        """Passes over the weights so far."""
        self.empty: list[int] = []
        """Sites none of whose scores is above the last threshold, by their position."""

    def find(
        self,
        weights: Sequence[Tensor],
        scales: Sequence[float],
        sparsity: float,
        costs: Sequence[int] | None = None,
    ) -> Tensor:
        """``T`` for a sparsity, and which sites it empties.

        Args:
            weights: The sites' weights, any shapes; DTensors are counted shard by shard.
            scales: ``σ_l`` of each site.
            sparsity: Above 0 and below 1.
            costs: What each weight of a site costs; ``None`` counts weights.

        Returns:
            0-dimensional fp32 tensor on the first weight's device; layer ``l`` has ``T·σ_l``. The
            same in all processes.

        Raises:
            StateError: If weights are NaN, or there are none.
        """
        sites = [
            _Site(Source(local(weight), scale), weight.numel(), cost, spread_of(weight))
            for weight, scale, cost in zip(weights, scales, costs or [1] * len(scales), strict=True)
        ]
        total = sum(site.numel * site.cost for site in sites)
        if total == 0:
            raise StateError("no weight to find a threshold over")
        if costs is not None:
            need = max(1, math.ceil(total * sparsity))
            result = torch.tensor(self._select(sites, need, total)[0], dtype=torch.float32)
        else:
            result = self._quantile(sites, (total - 1) * sparsity, total)
        level = result.item()
        self.empty = [
            i
            for i, largest in self._low.items()
            if sites[i].spread.reduce([largest], dist.ReduceOp.MAX)[0] <= level
        ]
        return result.to(weights[0].device)

    def _quantile(self, sites: Sequence[_Site], index: float, total: int) -> Tensor:
        """Linear between the order statistics next to ``index``."""
        rank = math.floor(index)
        score, upto, band = self._select(sites, rank + 1, total)
        low = torch.tensor(score, dtype=torch.float32)
        if index == rank:
            return low
        above = score if upto >= rank + 2 else band.above(score)
        if above == math.inf:
            above = min(_above(site, score) for site in sites)
        high = torch.tensor(above, dtype=torch.float32)
        return low + (high - low) * (index - rank)

    def _select(self, sites: Sequence[_Site], need: int, total: int) -> tuple[float, int, _Band]:
        """The smallest score up to which all scores cost ``need``, that cost, and its band."""
        limit = max(8 * SAMPLE, int(8 * MARGIN * total))
        search = _Search(self._guesses(sites, need, total))
        while True:
            low, high = search.band()
            band = self._count(sites, low, high, limit)
            if need <= band.below:
                search.is_below()
            elif need > band.below + band.inside:
                search.is_above()
            elif low < high and band.inside > limit:
                search.is_crowded()
            else:
                break
        score = low if low == high else _search(band, need - band.below, low, high)
        upto = band.below + (band.inside if low == high else int(band.up_to(_one(score))[0]))
        self._last = (score, need, band.inside / max(high - low, _TINY))
        return score, upto, band

    def _guesses(
        self, sites: Sequence[_Site], need: int, total: int
    ) -> Iterator[tuple[float, float]]:
        """Bands that most likely hold the score, the narrowest in passes first."""
        if self._last is not None:
            score, rank, density = self._last
            if abs(need - rank) <= 4 * MARGIN * total:
                shift = (need - rank) / density
                half = max(0.5 * abs(shift), MARGIN * total / density)
                yield score + shift - half, score + shift + half
                yield score, score  # many scores are equal
        low, middle, high = _from_sample(sites, need / total)
        yield low, high
        yield middle, middle

    def _count(self, sites: Sequence[_Site], low: float, high: float, limit: int) -> _Band:
        self.passes += 1
        counts = count([site.source for site in sites], low, high, limit)
        below = inside = 0
        self._low = {}
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
                    self._low[i] = counts[i].largest
            scores[spread], cumulative[spread] = _sorted(own)
        return _Band(below, inside, scores, cumulative)


_NONE = np.empty(0, np.float32)
_TINY = float(np.finfo(np.float32).tiny)


class _Search:
    """The interval that a score is known to be in, and the band to look at next."""

    def __init__(self, guesses: Iterator[tuple[float, float]]) -> None:
        self._guesses = guesses
        self._first, self._last = 0.0, float(np.finfo(np.float32).max)
        self._low, self._high = next(guesses)
        self._width = 0.0

    def band(self) -> tuple[float, float]:
        """Ends of the band, inside what is known."""
        self._low, self._high = (self._clip(end) for end in (self._low, self._high))
        self._width = max(self._width, self._high - self._low, self._high * 1e-3, _TINY)
        return self._low, self._high

    def is_below(self) -> None:
        """The score is below the band."""
        self._last = _before(self._low)
        self._next(self._last - 4 * self._width, self._last)

    def is_above(self) -> None:
        """The score is above the band."""
        if self._high >= np.finfo(np.float32).max:
            self._last = math.inf
        self._first = _after(self._high)
        self._next(self._first, self._first + 4 * self._width)

    def is_crowded(self) -> None:
        """The score is in the band, with too many others to collect."""
        self._first, self._last = self._low, self._high
        self._width = 0.0
        self._next(self._low, _middle(self._low, self._high))

    def _next(self, low: float, high: float) -> None:
        """A guess that says something new, else the given band, wider each time."""
        self._width *= 4
        for guess in self._guesses:
            if guess[0] <= self._last and guess[1] >= self._first:
                low, high = guess
                break
        self._low, self._high = low, high

    def _clip(self, score: float) -> float:
        return float(np.float32(min(max(score, self._first), self._last)))


def _sorted(own: Sequence[tuple[_Site, Count]]) -> tuple[Scores, NDArray[np.int64]]:
    """The collected scores in order, with their cumulative costs."""
    scores = [np.concatenate([*count.values, _NONE]) for _, count in own]
    joined = np.concatenate(scores)
    costs = {site.cost for site, _ in own}
    if len(costs) == 1:
        joined.sort()
        return joined, np.arange(1, len(joined) + 1) * costs.pop()
    order = np.argsort(joined)
    each = np.concatenate([np.full(len(s), o.cost) for s, (o, _) in zip(scores, own, strict=True)])
    return joined[order], np.cumsum(each[order], dtype=np.int64)


def _search(band: _Band, need: int, low: float, high: float) -> float:
    """The smallest score in a band up to which its scores cost ``need``.

    Bisects over the bits of the floats, 255 values at a time: four rounds of counts at most,
    whatever is distributed over however many processes.
    """
    first, last = _bits(low), _bits(high)
    while first < last:
        edges = np.unique(np.linspace(first, last, 257)[:-1].astype(np.int64))
        enough = band.up_to(edges.astype(np.int32).view(np.float32)) >= need
        index = int(np.argmax(enough)) if enough.any() else len(edges)
        last = int(edges[index]) if index < len(edges) else last
        first = int(edges[index - 1]) + 1 if index else last
    return float(np.int32(last).view(np.float32))


def _from_sample(sites: Sequence[_Site], share: float) -> tuple[float, float, float]:
    """Quantiles of a sample below, at and above ``share``, the same in all processes."""
    held = sum(site.source.weight.numel() for site in sites)
    samples, weights = [_NONE], [np.empty(0)]
    for site in sites:
        numel = site.source.weight.numel()
        if numel:
            scores = site.source.sample(math.ceil(SAMPLE * numel / held))
            samples.append(scores)
            weights.append(np.full(len(scores), site.cost * numel / len(scores)))
    scores, cost = np.concatenate(samples), np.cumsum(np.concatenate(weights))
    low, middle, high = math.inf, 0.0, 0.0
    if len(scores):
        order = np.argsort(scores)
        scores, cost = scores[order], np.cumsum(np.concatenate(weights)[order])
        slack = MARGIN + 3 * math.sqrt(share * (1 - share) / len(scores))
        shares = np.array([share - slack, share, share + slack])
        ends = np.searchsorted(cost, cost[-1] * shares)
        low, middle, high = (float(scores[min(int(end), len(scores) - 1)]) for end in ends)
    for spread in dict.fromkeys(site.spread for site in sites):
        low = spread.reduce([low], dist.ReduceOp.MIN)[0]
        middle, high = spread.reduce([middle, high], dist.ReduceOp.MAX)
    return low, middle, high


def _above(site: _Site, score: float) -> float:
    return site.spread.reduce([smallest_above(site.source, score)], dist.ReduceOp.MIN)[0]


def _bits(score: float) -> int:
    """The position of a float ≥ 0 among all floats ≥ 0."""
    return int(np.float32(score).view(np.int32))


def _middle(low: float, high: float) -> float:
    return float(np.int32((_bits(low) + _bits(high)) // 2).view(np.float32))


def _before(score: float) -> float:
    return float(np.nextafter(np.float32(score), np.float32(-1)))


def _after(score: float) -> float:
    return float(np.int32(_bits(score) + 1).view(np.float32))


def _one(score: float) -> Scores:
    return np.array([score], np.float32)


def global_threshold(weights: Sequence[Tensor], scales: Sequence[float], sparsity: float) -> Tensor:
    """``T`` for a sparsity, found once; see :meth:`GlobalThreshold.find`."""
    return GlobalThreshold().find(weights, scales, sparsity)
