"""The exact global threshold: one quantile over the weights of all sites, found without sorting.

``T`` is the s-quantile of ``{|w_i| / σ_l(i)}`` over all sites, linear between order statistics:
``idx = (N−1)·s``, ``T = v[⌊idx⌋] + (v[⌈idx⌉] − v[⌊idx⌋])·(idx − ⌊idx⌋)`` with ``v`` the sorted
scores. With costs (multiplications for each weight of a site), ``T`` is the smallest score up to
which the scores cost a share ``s`` or more of all. So it is with groups of weights, too, each of
which has one score and costs as many weights as it has. Where so many scores are equal to ``T``
that it misses the share by more than one weight or group, ``ties`` splits them.

One pass counts the scores below a narrow band around the value that is expected, and collects those
in it; where the rank falls outside, the band moves and widens. The band comes from the last result
and the density of scores there, the first time from a sample. It decides how many passes there are,
never the result. Sharded weights are counted where they are: only counts travel.

Where to look for a score: the interval that it is known to be in, and the band to count next.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from st3fx.errors import StateError
from st3fx.sparsity import gpu
from st3fx.sparsity.digest import Digest
from st3fx.sparsity.granularity import Grouping, scores
from st3fx.sparsity.shards import ALONE, Across, Spread, local, spread_of, uncut
from st3fx.sparsity.stored import Stored, give_back
from st3fx.sparsity.tally import BINS, LOWER
from st3fx.sparsity.threshold import scan
from st3fx.sparsity.threshold.scan import (
    NONE,
    Band,
    NotFiniteError,
    ScoredSite,
    Source,
    count_band,
    smallest_above,
)
from st3fx.sparsity.threshold.ties import Layer, split
from st3fx.tensors import in_memory_order

SAMPLE = 1 << 16
"""Scores in a sample."""


ROOM = 1 << 24
"""Scores that are collected at most where weights are in files, because they are many."""


class Bracket:
    """The interval that a score is known to be in, and the band to look at next."""

    def __init__(self, guesses: Iterator[tuple[float, float]]) -> None:
        self._guesses = guesses
        self._first, self._last = 0.0, scan.LARGEST
        self._low, self._high = next(guesses)
        self._width = 0.0

    def band(self) -> tuple[float, float]:
        """Ends of the band, inside what is known."""
        self._low, self._high = (self._clip(end) for end in (self._low, self._high))
        self._width = max(self._width, self._high - self._low, self._high * 1e-3, scan.TINY)
        return self._low, self._high

    def is_below(self) -> None:
        """The score is below the band."""
        self._last = scan.before(self._low)
        self._next(self._last - 4 * self._width, self._last)

    def is_above(self) -> None:
        """The score is above the band."""
        if self._high >= scan.LARGEST:
            self._last = math.inf
        self._first = scan.after(self._high)
        self._next(self._first, self._first + 4 * self._width)

    def is_crowded(self) -> None:
        """The score is in the band, with too many others to collect."""
        self._first, self._last = self._low, self._high
        self._width = 0.0
        self._next(self._low, scan.middle(self._low, self._high))

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


def from_sample(
    sites: Sequence[ScoredSite], share: float, margin: float, across: Across = ALONE
) -> tuple[float, float, float]:
    """Quantiles of a sample below, at and above ``share``, the same in all processes."""
    held = sum(site.source.weight.numel() for site in sites)
    samples, weights = [NONE], [np.empty(0)]
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
        slack = margin + 3 * math.sqrt(share * (1 - share) / len(scores))
        shares = np.array([share - slack, share, share + slack])
        ends = np.searchsorted(cost, cost[-1] * shares)
        low, middle, high = (float(scores[min(int(end), len(scores) - 1)]) for end in ends)
    for spread in dict.fromkeys(site.spread for site in sites):
        low = spread.reduce([low], dist.ReduceOp.MIN)[0]
        middle, high = spread.reduce([middle, high], dist.ReduceOp.MAX)
    low = across.reduce([low], dist.ReduceOp.MIN)[0]
    middle, high = across.reduce([middle, high], dist.ReduceOp.MAX)
    return low, middle, high


def from_tallies(sites: Sequence[ScoredSite], need: int) -> tuple[float, float]:
    """The band of the first bits of the score up to which all scores cost ``need``.

    Args:
        sites: All sites, with weights in files: what nobody has counted yet is read.
        need: 1 or more.
    """
    total = np.zeros(BINS, np.int64)
    for site in sites:
        own = site.source.tally()
        if own is not None:
            np.add.at(total, own.values.view(np.int32) >> LOWER, own.counts * site.cost)
    give_back()
    infinite = scan.bits(np.inf) >> LOWER
    index = min(int(np.searchsorted(total.cumsum(), need)), infinite - 1)
    return scan.from_bits(index << LOWER), scan.from_bits(((index + 1) << LOWER) - 1)


MARGIN = 0.002
"""Half the band's width, as a share of all scores."""


class Noted:
    """How many scores of the last search on a GPU were equal: copied without being waited for."""

    def __init__(self) -> None:
        self._need = 0
        self._host: Tensor | None = None  # pinned memory for two numbers
        self._event: torch.cuda.Event | None = None

    def take(self, found: Tensor, need: int) -> None:
        """The cost up to the threshold and of what is equal to it, on the device; and its need."""
        self._need = need
        if found.device.type != "cuda":  # where the kernels are interpreted
            self._host = found
            return
        if self._host is None:
            self._host = torch.empty(2, dtype=torch.int64, pin_memory=True)
        self._host.copy_(found, non_blocking=True)
        self._event = torch.cuda.Event()
        self._event.record(torch.cuda.current_stream(found.device))

    def is_tied(self, layers: Sequence[Layer]) -> bool:
        """Whether equal scores missed the last need, or there was no search yet."""
        if self._host is None:
            return True
        if self._event is not None:
            self._event.synchronize()  # of the step before: it has passed
        upto, equal = self._host.tolist()
        return _misses(layers, upto - self._need, equal)


class GlobalThreshold:
    """Finds the threshold again and again, faster where the last one is near."""

    def __init__(self) -> None:
        self._last: tuple[float, int, float] | None = None  # score, rank, cost for unit of score
        self.passes = 0
        """Passes over the weights so far."""
        self.empty: list[int] = []
        """Sites none of whose scores is above the last threshold, by their position. On a GPU
        nothing is said of that: it would have to be waited for. Of N of M none is ever empty."""
        self.ties: dict[int, Tensor] = {}
        """Thresholds of sites with scores equal to ``T``, by position, where these were split."""
        self._digests_wanted = False
        self.digests: dict[int, Digest] = {}
        """Of weights, by position, where the last search was asked for them and has read them."""
        self._noted = Noted()
        self._across = ALONE

    def find(
        self,
        weights: Sequence[Tensor | Stored],
        scales: Sequence[float],
        sparsity: float,
        costs: Sequence[int] | None = None,
        groupings: Sequence[Grouping | None] = (),
        *,
        wait: bool = True,
        digest: bool = False,
        across: Across = ALONE,
    ) -> Tensor:
        """``T`` for a sparsity, which sites it empties, and :attr:`ties`.

        Args:
            weights: The sites' weights, any shapes; DTensors are counted shard by shard, or are
                gathered where a group lies in several; those in files piece by piece.
            scales: ``σ_l`` of each site.
            sparsity: Above 0; of the weights that can go, so that 1 is possible for N of M.
            costs: What each weight of a site costs; ``None`` counts weights.
            groupings: The groups of each site; none where weights go one by one.
            wait: Else, on a GPU, equal scores are split from the search after the one that first
                meets them: nothing waits for the device. Elsewhere it changes nothing.
            digest: Whether :attr:`digests` are wanted.
            across: Who has other sites that share the threshold.

        Returns:
            0-dimensional fp32 tensor on the first weight's device; layer ``l`` has ``T·σ_l``. The
            same in all processes.

        Raises:
            StateError: If weights are NaN or too many infinite (not noticed on a GPU; there is
                :class:`NotFiniteError` for these), or there are none.
        """
        self._across = across
        plain = not across.any(costs is not None or any(groupings))
        owners, sites, layers = [], [], []
        for owner, (held, scale, cost) in enumerate(
            zip(weights, scales, costs or [1] * len(scales), strict=True)
        ):
            grouping = groupings[owner] if groupings else None
            weight = uncut(held, grouping) if grouping and isinstance(held, Tensor) else held
            own = _scored(weight, scale, cost, grouping)
            sites += own
            owners += [owner] * len(own)
            group = max((site.cost for site in own), default=cost) // cost
            layers.append(Layer(weight, scale, cost, grouping, group))
        (total,) = across.total([sum(site.numel * site.cost for site in sites)])
        if total == 0:
            raise StateError("no weight to find a threshold over")
        self.ties, self.digests, self._digests_wanted = {}, {}, digest
        index = (total - 1) * sparsity
        need = math.floor(index) + 1 if plain else max(1, math.ceil(total * sparsity))
        if across is ALONE and _fits_gpu(sites):
            return self._on_gpu(sites, layers, (total, sparsity, need), plain=plain, wait=wait)
        result, upto, equal, band = self._host(sites, owners, (total, index, need), plain=plain)
        single = {i for i, owner in enumerate(owners) if layers[owner].grouping is None}
        self.digests = {owners[i]: own for i, own in self.digests.items() if i in single}
        level = result.item()
        gone = {
            i
            for i, largest in band.low_sites.items()
            if sites[i].spread.reduce([largest], dist.ReduceOp.MAX)[0] <= level
        }
        left = {owner for i, owner in enumerate(owners) if i not in gone}
        kept = {i for i, grouping in enumerate(groupings) if grouping and grouping.kept}
        if level > 0 and _misses(layers, upto - need, equal, across):
            found = split(layers, level, need, band, across)
            self.ties = {i: site.threshold for i, site in found.items()}
            left |= {i for i, site in found.items() if not site.is_empty}
        self.empty = sorted(set(owners) - left - kept)
        return result.to(weights[0].device)

    def _host(
        self,
        sites: Sequence[ScoredSite],
        owners: Sequence[int],
        aim: tuple[int, float, int],
        *,
        plain: bool,
    ) -> tuple[Tensor, int, int, Band]:
        """``T``, the cost of all scores up to it, of those equal to it, and its band."""
        total, index, need = aim
        try:
            if plain:
                found = self._quantile(sites, index, total)
            else:
                score, upto, equal, band = self._select(sites, need, total)
                found = torch.tensor(score, dtype=torch.float32), upto, equal, band
            if not math.isfinite(found[0].item()):
                raise NotFiniteError("infinite", found[3].infinite)
        except NotFiniteError as error:
            self._last = None
            raise NotFiniteError(
                error.what, owners[error.site] if error.site >= 0 else -1
            ) from None
        return found

    def _on_gpu(
        self,
        sites: Sequence[ScoredSite],
        layers: Sequence[Layer],
        aim: tuple[int, float, int],
        *,
        plain: bool,
        wait: bool,
    ) -> Tensor:
        """``T``, on the device; what is equal to it is looked at later, unless one may wait."""
        from st3fx.sparsity.threshold import radix  # noqa: PLC0415 (Triton is not everywhere)

        groups, (total, sparsity, need) = radix.groups_of(sites), aim
        if plain:
            result, *costs = radix.located(groups, total, sparsity)
        else:
            bits, *costs = radix.select(groups, need)
            result = bits.view(torch.float32)
        # Before it is overwritten; the first search after a start does wait.
        look = self._noted.is_tied(layers) or wait
        found = torch.stack(costs)
        self._noted.take(found, need)
        if look:
            upto, equal = found.tolist()
            level = result.item()
            if level > 0 and _misses(layers, upto - need, equal):
                self.ties = {i: s.threshold for i, s in split(layers, level, need).items()}
        return result

    def _quantile(
        self, sites: Sequence[ScoredSite], index: float, total: int
    ) -> tuple[Tensor, int, int, Band]:
        """Linear between the order statistics next to ``index``; else as :meth:`_select`."""
        rank = math.floor(index)
        score, upto, equal, band = self._select(sites, rank + 1, total)
        low = torch.tensor(score, dtype=torch.float32)
        if index == rank:
            return low, upto, equal, band
        above = score if upto >= rank + 2 else band.above(score)
        if above == math.inf:
            above = min((_above(site, score) for site in sites), default=math.inf)
            above = self._across.reduce([above], dist.ReduceOp.MIN)[0]
        high = torch.tensor(above, dtype=torch.float32)
        result = low + (high - low) * (index - rank)
        if result == high and high > low:  # rounded: it is the next score
            inside = band.up_to(np.array([score, above], np.float32))
            equal = int(inside[1] - inside[0])
            equal = equal or count_band(sites, above, above, 0, across=self._across).inside
            upto += equal
        return result, upto, equal, band

    def _select(
        self, sites: Sequence[ScoredSite], need: int, total: int
    ) -> tuple[float, int, int, Band]:
        """The smallest score up to which all scores cost ``need``, that cost, its own, its band."""
        limit = max(4 * SAMPLE, int(12 * MARGIN * total))
        if not scan.is_here(sites):
            limit = ROOM
        bracket = Bracket(self._guesses(sites, need, total))
        while True:
            low, high = bracket.band()
            room = limit if low < high else 0
            band = count_band(
                sites, low, high, room, digest=self._digests_wanted, across=self._across
            )
            self.passes += 1
            if self._digests_wanted:
                self.digests, self._digests_wanted = band.counts.digests, False
            if need <= band.below:
                bracket.is_below()
            elif need > band.below + band.inside:
                bracket.is_above()
            elif low < high and band.crowd > limit:
                bracket.is_crowded()
            else:
                break
        if low == high:
            score, under, inside = low, 0, band.inside
        else:
            score = band.search(need - band.below, low, high)
            ends = np.array([scan.before(score), score], np.float32)
            under, inside = band.up_to(ends).tolist()
        self._last = (score, need, band.inside / max(high - low, scan.TINY))
        return score, band.below + inside, inside - under, band

    def _guesses(
        self, sites: Sequence[ScoredSite], need: int, total: int
    ) -> Iterator[tuple[float, float]]:
        """Bands that most likely hold the score, the narrowest in passes first."""
        if self._last is not None:
            score, rank, density = self._last
            if abs(need - rank) <= 4 * MARGIN * total:
                shift = (need - rank) / density
                half = max(0.5 * abs(shift), MARGIN * total / density)
                yield score + shift - half, score + shift + half
                yield score, score  # many scores are equal
        if not scan.is_here(sites):
            low, high = from_tallies(sites, need)
            yield low, high
            yield low, low  # as of weights that were in half precision once
            return
        low, middle, high = from_sample(sites, need / total, MARGIN, self._across)
        yield low, high
        yield middle, middle


def _scored(
    weight: Tensor | Stored, scale: float, cost: int, grouping: Grouping | None
) -> list[ScoredSite]:
    """The scores of one site: of its weights, or of its groups by their size."""
    if isinstance(weight, Stored):
        return [
            ScoredSite(Source(values, scale), count, cost * gone, Spread())
            for values, count, gone in weight.scored(grouping)
        ]
    spread = spread_of(weight)
    if grouping is None:
        return [ScoredSite(Source(local(weight), scale), weight.numel(), cost, spread)]
    return [
        ScoredSite(Source(values, scale), groups, cost * gone, spread)
        for values, groups, gone in scores(local(weight), weight.shape, grouping)
    ]


def _misses(layers: Sequence[Layer], over: int, equal: int, across: Across = ALONE) -> bool:
    """Whether a threshold misses its need by more than one weight or group that costs most.

    Args:
        layers: The sites.
        over: Cost of the scores up to it, less the need.
        equal: Cost of those equal to it. With a scale, or in double precision, they may be on
            either side of their layer's threshold.
        across: Who has other sites.
    """
    one = max((layer.cost * layer.group for layer in layers), default=0)
    rounded = any(layer.scale != 1.0 or layer.weight.dtype == torch.float64 for layer in layers)
    most = across.reduce([one, int(rounded)], dist.ReduceOp.MAX)
    return over > most[0] or (bool(most[1]) and equal > 2 * most[0])


def _fits_gpu(sites: Sequence[ScoredSite]) -> bool:
    """Whether all weights lie in full precision on one GPU, each in one piece of memory."""
    weights = [site.source.weight for site in sites]
    device = weights[0].device
    return gpu.available(device) and all(
        isinstance(weight, Tensor)
        and weight.device == device
        and weight.dtype == torch.float32
        and in_memory_order(weight).is_contiguous()
        for weight in weights
    )


def _above(site: ScoredSite, score: float) -> float:
    return site.spread.reduce([smallest_above(site.source, score)], dist.ReduceOp.MIN)[0]


def global_threshold(weights: Sequence[Tensor], scales: Sequence[float], sparsity: float) -> Tensor:
    """``T`` for a sparsity, found once; see :meth:`GlobalThreshold.find`."""
    return GlobalThreshold().find(weights, scales, sparsity)
