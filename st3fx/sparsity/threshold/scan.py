"""One pass over the scores of all sites: how many are below a band, and which lie in it.

A score is ``|w| / σ`` in fp32. For fp32 weights on a CPU the pass is the kernel library's, which
reads each weight once; for others, or without the library, it is several operators of torch.

The scores in a band around the threshold, over all sites and processes.

The order of single-precision floats ≥ 0, by their bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from st3fx.errors import StateError
from st3fx.native import latent
from st3fx.sparsity.digest import Digest
from st3fx.sparsity.shards import ALONE, Across, Spread
from st3fx.sparsity.stored import Lazy, give_back
from st3fx.sparsity.tally import Tally
from st3fx.tensors import in_memory_order
from st3fx.under_way import advance

TINY = float(np.finfo(np.float32).tiny)
LARGEST = float(np.finfo(np.float32).max)


def bits(score: float) -> int:
    """The position of a float ≥ 0 among all floats ≥ 0."""
    return int(np.float32(score).view(np.int32))


def from_bits(position: int) -> float:
    """The inverse of :func:`bits`."""
    return float(np.int32(position).view(np.float32))


def middle(low: float, high: float) -> float:
    """The float halfway between two, counted in floats."""
    return from_bits((bits(low) + bits(high)) // 2)


def before(score: float) -> float:
    """The next smaller float; negative below 0."""
    return float(np.nextafter(np.float32(score), np.float32(-1)))


def after(score: float) -> float:
    """The next larger float."""
    return from_bits(bits(score) + 1)


BLOCK = 1 << 20
"""Scores at a time, where each operator writes as many."""

Scores = NDArray[np.float32]
NONE: Scores = np.empty(0, np.float32)


@dataclass(frozen=True)
class Source:
    """The scores of one site.

    Attributes:
        weight: Any shape, dtype and device; of a sharded weight, the part that is here; of one in a
            file, a piece that is read whenever it is looked at, or what was counted of all.
        scale: ``σ``, above 0.
    """

    weight: Tensor | Lazy | Tally
    scale: float = 1.0

    def flat(self) -> Tensor:
        """The weight as a vector in any order, without a copy where its memory is dense."""
        if isinstance(self.weight, Tally):
            return torch.from_numpy(self.weight.values)
        # A column of a larger tensor gives a vector with gaps, of which an address says nothing.
        return in_memory_order(self.weight.detach()).reshape(-1).contiguous()

    def scores(self, part: Tensor) -> Tensor:
        """Scores of a part of :meth:`flat`."""
        magnitude = part.abs().float()
        return magnitude if self.scale == 1.0 else magnitude.div_(self.scale)

    def tally(self) -> Tally | None:
        """Scores that lie in a file, counted by their first bits at least; of others nothing."""
        if isinstance(self.weight, Lazy):
            return self.weight.tally(self.scale)
        if isinstance(self.weight, Tally):
            own = self.weight
            return Tally(self.scores(self.flat()).numpy(), own.counts, own.zeros)
        return None

    def sample(self, size: int) -> Scores:
        """About ``size`` scores, evenly spaced in memory."""
        flat = self.flat()
        scores: Scores = self.scores(flat[:: max(1, flat.numel() // max(1, size))]).cpu().numpy()
        return scores


class Around(NamedTuple):
    """What the sites have around a score, each an array with one value for each site.

    Attributes:
        lower: How many lower scores.
        equal: How many of that score.
        largest_lower: The largest of the lower ones that lie in the band; 0 if none does.
    """

    lower: NDArray[np.int64]
    equal: NDArray[np.int64]
    largest_lower: Scores


Ends = tuple[float, float]
"""Of a band, both included."""


class Counts:
    """What the sites have in a band.

    Attributes:
        below: Scores below the band, for each site.
        inside: Scores in it, both ends included.
        largest: The largest score of all; NaN if any is.
        digests: Of weights, by the positions of their sites, where they were asked for and cost no
            pass of their own.
    """

    def __init__(self, sites: int) -> None:
        self.digests: dict[int, Digest] = {}
        self.below = np.zeros(sites, np.int64)
        self.inside = np.zeros(sites, np.int64)
        self.largest = np.zeros(sites, np.float32)
        self._scores = [NONE]
        self._owners = [np.empty(0, np.int32)]
        self._times: list[tuple[int, NDArray[np.int64]]] = []  # where they begin among all scores
        self._merged = 0

    @property
    def wanted(self) -> int:
        """How many scores there are to collect: equal ones that were counted before are one."""
        return int(self.inside.sum()) - self._merged

    def add_tally(self, site: int, scores: Scores, times: NDArray[np.int64], band: Ends) -> None:
        """Take in all of a site's scores, in order, with how often each is there."""
        low, high = (np.float32(end) for end in band)
        first, last = np.searchsorted(scores, low), np.searchsorted(scores, high, side="right")
        own, found = times[first:last], scores[first:last]
        self._times.append((sum(map(len, self._scores)), own))
        self._merged += int(own.sum()) - len(own)
        largest = float(scores[-1]) if len(scores) else 0.0
        self.add(site, int(times[:first].sum()), int(own.sum()), largest, found)

    def times(self) -> NDArray[np.int64] | int:
        """How often each of the collected scores is there."""
        if not self._times:
            return 1
        found = np.ones(sum(map(len, self._scores)), np.int64)
        for begin, own in self._times:
            found[begin : begin + len(own)] = own
        return found

    def add(self, site: int, below: int, inside: int, largest: float, scores: Scores) -> None:
        """Take in what a part of a site has; ``scores`` may be empty if there are too many."""
        self.below[site] += below
        self.inside[site] += inside
        self.largest[site] = np.maximum(self.largest[site], largest)  # NaN if either is
        self.collect(scores, np.full(len(scores), site, np.int32))

    def collect(self, scores: Scores, owners: NDArray[np.int32]) -> None:
        """Keep scores in the band with the position of the site of each."""
        self._scores.append(scores)
        self._owners.append(owners)

    def collected(self) -> tuple[Scores, NDArray[np.int32]]:
        """The scores in the band, in any order, and the position of the site of each."""
        if len(self._scores) > 1:
            self._scores = [np.concatenate(self._scores)]
            self._owners = [np.concatenate(self._owners)]
        return self._scores[0], self._owners[0]

    def around(self, level: float) -> Around | None:
        """What each site has around a score in the band; ``None`` where some are missing."""
        scores, owners = self.collected()
        if len(scores) != self.inside.sum():
            return None
        under, sites = scores < np.float32(level), len(self.below)
        equal = scores == np.float32(level)
        largest = np.zeros(sites, np.float32)
        np.maximum.at(largest, owners[under], scores[under])
        lower = self.below + np.bincount(owners[under], minlength=sites)
        return Around(lower, np.bincount(owners[equal], minlength=sites), largest)


def count(
    sources: Sequence[Source], low: float, high: float, limit: int, *, digest: bool = False
) -> Counts:
    """Count and collect the scores of each site in the band ``low ≤ score ≤ high``.

    Args:
        sources: The sites.
        low: Lower end, an fp32 number, 0 or more.
        high: Upper end, an fp32 number, at least ``low``.
        limit: If there are more scores in the band, some may be missing from those collected.
        digest: Whether weights that are read once for this are digested, too.
    """
    counts = Counts(len(sources))
    stored = [i for i, source in enumerate(sources) if isinstance(source.weight, Lazy)]
    here = [i for i, source in enumerate(sources) if isinstance(source.weight, Tensor)]
    # What lies in files is read one after the other.
    for index, source in enumerate(sources):
        if isinstance(source.weight, Tally):
            scores = source.scores(source.flat()).numpy()
            counts.add_tally(index, scores, source.weight.counts, (low, high))
    for indices in ([here] if here else []) + [[index] for index in stored]:
        _count_some(sources, indices, (low, high), limit, counts, digest=digest)
        if stored:
            advance()
    if stored:
        give_back()
    return counts


def _count_some(
    sources: Sequence[Source],
    which: Sequence[int],
    band: tuple[float, float],
    limit: int,
    counts: Counts,
    *,
    digest: bool,
) -> None:
    """Count some of the sites, whose weights are all in memory meanwhile."""
    native: dict[int, latent.Scored] = {}
    flats = [sources[i].flat() for i in which]  # a copy must live as long as its address
    if all(isinstance(sources[i].weight, Lazy) for i in which) and latent.available():
        flats = [flat if flat.dtype == torch.float64 else flat.float() for flat in flats]
    for index, flat in zip(which, flats, strict=True):
        source = sources[index]
        if flat.device.type == "cpu" and flat.dtype == torch.float32 and latent.available():
            native[index] = latent.Scored(flat.data_ptr(), flat.numel(), source.scale)
        else:
            for block in flat.split(BLOCK):
                _count_block(index, source.scores(block), band, limit, counts)
    if native:
        indices = np.array(list(native), np.int32)
        room = min(max(0, limit - counts.wanted), sum(flat.numel() for flat in flats))
        hashes: list[int] | None = [] if digest else None
        tallies, scores, owners = latent.count(list(native.values()), *band, room, hashes)
        counts.digests |= {i: (value,) for i, value in zip(native, hashes or (), strict=False)}
        counts.below[indices] = tallies["below"]
        counts.inside[indices] = tallies["inside"]
        counts.largest[indices] = tallies["largest"]
        if room > 2 * len(scores):
            scores = scores.copy()  # without the room for others, which pieces of files add up
        counts.collect(scores, indices[owners])


def _count_block(
    site: int, scores: Tensor, band: tuple[float, float], limit: int, counts: Counts
) -> None:
    if not len(scores):
        return
    low, high = band
    under, inside = scores < low, (scores >= low) & (scores <= high)
    within = int(inside.sum())
    wanted = 0 < within <= limit and counts.wanted + within <= limit
    found = scores[inside].cpu().numpy() if wanted else NONE
    counts.add(site, int(under.sum()), within, float(scores.max()), found)


def smallest_above(source: Source, score: float) -> float:
    """The smallest score of a site above ``score``; infinity if there is none."""
    scores = source.scores(source.flat())
    return float(torch.where(scores > score, scores, torch.inf).min()) if len(scores) else np.inf


@dataclass(frozen=True)
class ScoredSite:
    """One site's scores here, how many there are in all, what each costs, who has the rest."""

    source: Source
    numel: int
    cost: int
    spread: Spread


class NotFiniteError(StateError):
    """Weights are NaN, or too many of them infinite.

    Attributes:
        site: The position of a site that has such weights; -1 if it is not known here.
    """

    def __init__(self, what: str, site: int = -1) -> None:
        super().__init__(f"some weights are {what}: the training has diverged")
        self.what, self.site = what, site


@dataclass(frozen=True)
class Band:
    """Scores between two ends, in all processes.

    Attributes:
        below: Cost of all scores below the band.
        inside: Cost of the scores in it.
        scores: Sorted scores in it that are here, by the processes that hold the others.
        costs: Their cumulative costs.
        low_sites: Sites without a score above the band, by position, with their largest score here.
        infinite: A site with an infinite score here; -1 if there is none.
        ends: The band's ends.
        counts: What is here, site by site; of scores in the band some may be missing.
        crowd: How many scores there are to collect; of weights that are here all along, their cost.
        across: Who has other sites.
    """

    below: int
    inside: int
    scores: dict[Spread, Scores]
    costs: dict[Spread, NDArray[np.int64]]
    low_sites: dict[int, float]
    infinite: int
    ends: tuple[float, float]
    counts: Counts
    crowd: int
    across: Across = ALONE

    def up_to(self, scores: Scores) -> NDArray[np.int64]:
        """Cost of the scores in the band up to each of some values."""
        total = np.zeros(len(scores), np.int64)
        for spread, own in self.scores.items():
            costs = np.concatenate([[0], self.costs[spread]])
            here = costs[np.searchsorted(own, scores, side="right")]
            total += np.array(spread.reduce(here.tolist(), dist.ReduceOp.SUM), np.int64)
        return np.array(self.across.total(total.tolist()), np.int64)

    def above(self, score: float) -> float:
        """The smallest score in the band above ``score``; infinity if there is none."""
        best = math.inf
        for spread, own in self.scores.items():
            index = int(np.searchsorted(own, np.float32(score), side="right"))
            here = float(own[index]) if index < len(own) else math.inf
            best = min(best, spread.reduce([here], dist.ReduceOp.MIN)[0])
        return self.across.reduce([best], dist.ReduceOp.MIN)[0]

    def search(self, need: int, low: float, high: float) -> float:
        """The smallest score in the band, between its ends, up to which its scores cost ``need``.

        Bisects over the bits of the floats, 255 values at a time: four rounds of counts at most,
        whatever is distributed over however many processes.
        """
        first, last = bits(low), bits(high)
        while first < last:
            edges = np.unique(np.linspace(first, last, 257)[:-1].astype(np.int64))
            enough = self.up_to(edges.astype(np.int32).view(np.float32)) >= need
            index = int(np.argmax(enough)) if enough.any() else len(edges)
            last = int(edges[index]) if index < len(edges) else last
            first = int(edges[index - 1]) + 1 if index else last
        return from_bits(last)


def count_band(
    sites: Sequence[ScoredSite],
    low: float,
    high: float,
    limit: int,
    *,
    digest: bool = False,
    across: Across = ALONE,
) -> Band:
    """Count the scores around a band and collect those in it, in one pass.

    Args:
        sites: All sites.
        low: Lower end, an fp32 number.
        high: Upper end, an fp32 number, at least ``low``.
        limit: Scores to collect before only counting goes on.
        digest: As of :func:`count`.
        across: Who has other sites.

    Raises:
        NotFiniteError: If weights are NaN, of whichever stage.
    """
    counts = count([site.source for site in sites], low, high, limit, digest=digest)
    everything, owners = counts.collected()
    prices = np.array([site.cost for site in sites], np.int64)
    owned = prices[owners] * counts.times()
    below = inside = 0
    diverged = -1
    low_sites: dict[int, float] = {}
    scores: dict[Spread, Scores] = {}
    cumulative: dict[Spread, NDArray[np.int64]] = {}
    spreads = [site.spread for site in sites]
    for spread in dict.fromkeys(spreads):
        indices = np.array([i for i, other in enumerate(spreads) if other == spread])
        own = counts.below[indices], counts.inside[indices]
        lost = np.isnan(counts.largest[indices]).astype(int)
        here = [*own[0].tolist(), *own[1].tolist(), *lost.tolist()]
        there = spread.reduce(here, dist.ReduceOp.SUM)
        if any(there[2 * len(indices) :]) and diverged < 0:
            diverged = int(indices[int(np.argmax(there[2 * len(indices) :]))])
        for i, under, within in zip(indices.tolist(), there, there[len(indices) :], strict=False):
            below += int(under) * sites[i].cost
            inside += int(within) * sites[i].cost
            if under + within == sites[i].numel:
                low_sites[i] = float(counts.largest[i])
        mine = np.isin(owners, indices) if len(indices) < len(sites) else slice(None)
        scores[spread], cumulative[spread] = _sorted(everything[mine], owned[mine])
    below, inside, invalid = across.total([below, inside, int(diverged >= 0)])
    if invalid:
        raise NotFiniteError("NaN", diverged)
    infinite = np.flatnonzero(np.isinf(counts.largest))
    first = int(infinite[0]) if len(infinite) else -1
    crowd, ends = inside if is_here(sites) else counts.wanted, (low, high)
    return Band(below, inside, scores, cumulative, low_sites, first, ends, counts, crowd, across)


def is_here(sites: Sequence[ScoredSite]) -> bool:
    """Whether all weights are in memory, or on their devices."""
    return all(isinstance(site.source.weight, Tensor) for site in sites)


def _sorted(scores: Scores, costs: NDArray[np.int64]) -> tuple[Scores, NDArray[np.int64]]:
    """Scores in order, with their cumulative costs."""
    if not len(costs) or costs.min() == costs.max():
        return np.sort(scores), np.cumsum(costs)
    order = np.argsort(scores)
    return scores[order], np.cumsum(costs[order])
