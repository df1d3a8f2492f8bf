"""Thresholds of single sites where many scores are equal to the global threshold.

The global threshold ``T`` is a score, and ``need`` what all that goes should cost. Of the scores
equal to ``T`` each site gives the same share, rounded to whole weights (groups) with what rounding
leaves carried to the next site; which of a site's go is the rule of
:mod:`st3fx.sparsity.ties`. A site with a few of them gives all or none, and keeps one number as its
threshold: ties by chance, as any large model has, change no shape. Sites come in the order of what
their equal ones cost, the last being the one with most of them, and sites alike in the plan's
order. Sharded weights are counted where they are.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from st3fx.sparsity.granularity import Grouping, magnitudes
from st3fx.sparsity.shards import ALONE, Across, Spread, local, local_part, spread_of, starts
from st3fx.sparsity.stored import Stored
from st3fx.sparsity.tally import Tally, places_of
from st3fx.sparsity.threshold.scan import BLOCK, Band, Source
from st3fx.sparsity.ties import key_of, keys
from st3fx.tensors import memory_order

_MANY = 1 << 24
"""Keys up to which all of a weight in a file are kept at once: 128 MiB."""

_FEW = 16
"""Groups up to which a site gives all of them or none."""


@dataclass(frozen=True)
class Layer:
    """A site as the search sees it; see :meth:`GlobalThreshold.find`."""

    weight: Tensor | Stored
    scale: float
    cost: int
    grouping: Grouping | None
    group: int
    """Weights that go together, at most."""


@dataclass(frozen=True)
class _Tied:
    """A site's magnitudes around ``T``, in all processes.

    Attributes:
        layer: The site.
        spread: Who has parts of it.
        lower: Weights with a lower score.
        count: Weights with this score.
        largest_lower: The largest magnitude of a lower score; 0 if there is none.
        first: The smallest magnitude of the score ``T``,
        last: and the largest: with a scale, or in double precision, a score is of several.
    """

    layer: Layer
    spread: Spread
    lower: int
    count: int
    largest_lower: float
    first: float
    last: float


class _Counts(NamedTuple):
    """What the other stages have to know of a site with lower and equal scores, and their cost."""

    lower: int
    equal: int
    cost: int


class Split(NamedTuple):
    """A site with scores equal to ``T``.

    Attributes:
        threshold: Of no dimensions, or as :func:`st3fx.sparsity.ties.is_split` says.
        is_empty: Whether no weight of the site is left.
    """

    threshold: Tensor
    is_empty: bool


def split(
    layers: Sequence[Layer],
    level: float,
    need: int,
    band: Band | None = None,
    across: Across = ALONE,
) -> dict[int, Split]:
    """The thresholds of sites that have scores equal to ``T``, by their position.

    Args:
        layers: All sites.
        level: ``T``, above 0.
        need: What the weights that go should cost together.
        band: The one that ``T`` was found in, which most often has all that is to be known.
        across: Who has other sites; they come in the order of the stages.
    """
    sites = _counted(layers, level, band) or [_tied(layer, level) for layer in layers]
    here = [_Counts(site.lower, site.count, site.layer.cost) for site in sites]
    stages = across.gather(here)
    everywhere = [(stage, index, own) for stage, owns in enumerate(stages)
                  for index, own in enumerate(owns)]  # fmt: skip
    left = need - sum(own.lower * own.cost for *_, own in everywhere)
    tied = sum(own.equal * own.cost for *_, own in everywhere)
    order = sorted((e for e in everywhere if e[2].equal), key=lambda e: e[2].equal * e[2].cost)
    found = {}
    for stage, index, own in order:
        going = bound = 0
        if stage == across.rank:
            is_last = (stage, index) == order[-1][:2]
            going, bound = _share(sites[index], level, left, tied, is_last=is_last)
        (all_going,) = across.total([going])
        left -= all_going * own.cost
        tied -= own.equal * own.cost
        if stage == across.rank:
            site = sites[index]
            is_empty = site.lower + going == site.layer.weight.numel()
            found[index] = Split(_threshold(site, going, bound), is_empty)
    return found


def _pieces(layer: Layer) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Magnitudes that are here and their scores, as vectors, and where in memory each begins.

    Those of groups are one piece, in row-major order, or as many as are read at a time.
    """
    dtype = torch.promote_types(layer.weight.dtype, torch.float32)
    for start, part in _parts(layer):
        if layer.grouping is not None:
            found = magnitudes(part.to(dtype), *layer.grouping).reshape(-1)
            yield start, found, found.float() / layer.scale
            continue
        source = Source(part, layer.scale)
        for index, block in enumerate(source.flat().split(BLOCK)):
            yield start + index * BLOCK, block.abs().to(dtype), source.scores(block)


def _parts(layer: Layer) -> Iterator[tuple[int, Tensor]]:
    """What is here of a weight, or is read of it, and where it begins."""
    if isinstance(layer.weight, Stored):
        yield from layer.weight.parts(layer.grouping)
    else:
        yield 0, local(layer.weight.detach())


def _counted(layers: Sequence[Layer], level: float, band: Band | None) -> list[_Tied]:
    """As :func:`_tied` of all sites, from what the search has counted; nothing if that is not all.

    A score is a magnitude where nothing divides it. Of lower ones those matter that lie between
    ``T`` and the next number below it in the weight's dtype.
    """
    plain = all(
        layer.grouping is None and layer.scale == 1.0 and layer.weight.dtype != torch.float64
        and not isinstance(layer.weight, Stored) and not spread_of(layer.weight).dims
        for layer in layers
    )  # fmt: skip
    finest = max(torch.finfo(layer.weight.dtype).eps for layer in layers)
    if band is None or not plain:
        return []
    low, high = band.ends
    if low > level * (1 - finest) or high < level:
        return []
    around = band.counts.around(level)
    if around is None:
        return []
    counts = zip(layers, *(column.tolist() for column in around), strict=True)
    return [
        _Tied(layer, Spread(), lower, equal, largest, level, level)
        for layer, lower, equal, largest in counts
    ]


def _tied(layer: Layer, level: float) -> _Tied:
    tally = layer.weight.tally(layer.grouping) if isinstance(layer.weight, Stored) else None
    if tally is not None:
        return _tied_of(tally, layer, level)
    lower, count = 0, 0
    spread = Spread() if isinstance(layer.weight, Stored) else spread_of(layer.weight)
    largest_lower, first, last = 0.0, float("inf"), 0.0
    for _, found, scores in _pieces(layer):
        here, under = found[scores == level], found[scores < level]
        count, lower = count + len(here), lower + len(under)
        if len(here):
            first, last = min(first, float(here.min())), max(last, float(here.max()))
        if len(under):
            largest_lower = max(largest_lower, float(under.max()))
    lower, count = (int(n) for n in spread.reduce([lower, count], dist.ReduceOp.SUM))
    (first,) = spread.reduce([first], dist.ReduceOp.MIN)
    last, largest_lower = spread.reduce([last, largest_lower], dist.ReduceOp.MAX)
    return _Tied(layer, spread, lower, count, largest_lower, first, last)


def _tied_of(tally: Tally, layer: Layer, level: float) -> _Tied:
    """The same of magnitudes that were counted."""
    source = Source(tally, layer.scale)
    scores = source.scores(source.flat()).numpy()
    here, under = scores == np.float32(level), scores < np.float32(level)
    equal, smaller = tally.values[here], tally.values[under]
    return _Tied(
        layer, Spread(), int(tally.counts[under].sum()), int(tally.counts[here].sum()),
        float(smaller[-1]) if len(smaller) else 0.0,
        *((float(equal[0]), float(equal[-1])) if len(equal) else (float("inf"), 0.0)),
    )  # fmt: skip


def _keys(layer: Layer, level: float) -> NDArray[np.int64]:
    """The sorted keys of the weights here whose score is ``T``; those of files are elsewhere."""
    assert isinstance(layer.weight, Tensor)
    part = local(layer.weight.detach())
    found = [start + (scores == level).nonzero()[:, 0] for start, _, scores in _pieces(layer)]
    places = torch.cat(found) if found else part.new_empty(0, dtype=torch.int64)
    shape = tuple(layer.weight.shape)
    if layer.grouping is not None:
        own = local_part(keys(shape, tuple(layer.grouping), part.device), layer.weight)
        return np.sort(own.reshape(-1)[places].cpu().numpy())
    # From memory order to row-major order of the whole weight.
    strides = [math.prod(shape[dim + 1 :]) for dim in range(len(shape))]
    begins = starts(layer.weight)
    whole = torch.full_like(places, sum(map(operator.mul, begins, strides)))
    for dim in reversed(memory_order(part)):
        whole += places % part.shape[dim] * strides[dim]
        places = places // part.shape[dim]
    return np.sort(key_of(whole).cpu().numpy())


def _keys_in_file(site: _Tied, weight: Stored, level: float) -> Iterator[NDArray[np.int64]]:
    """The same of a weight that is read piece by piece, in row-major order, and not sorted."""
    layer, width = site.layer, math.prod(weight.shape[1:])
    if weight.tally(layer.grouping) is not None:
        for start, part in weight.parts(None):
            yield key_of(places_of(part, site.first, site.last) + start).numpy()
        return
    ends = {first * width: last - first for first, last in weight.ends(layer.grouping)}
    for start, _, scores in _pieces(layer):
        places = (scores == level).nonzero()[:, 0]
        if layer.grouping is None:
            own = key_of(places + start)
        else:
            shape = (ends[start], *weight.shape[1:])
            whole = keys(shape, tuple(layer.grouping), places.device, first=start)
            own = whole.reshape(-1)[places]
        yield own.numpy()


def _bound_in_file(site: _Tied, weight: Stored, level: float, need: int) -> tuple[int, int]:
    """How many tied weights go, ``need`` or the rest of a group more, and the bound of their keys.

    Of many keys those are kept that share the first bits of the one that is wanted, which another
    pass finds.
    """
    first, last, before = 0, 2**32, 0
    if site.count > _MANY:
        counts = np.zeros(1 << 16, np.int64)
        for own in _keys_in_file(site, weight, level):
            counts += np.bincount(own >> 16, minlength=len(counts))
        index = int(np.searchsorted(counts.cumsum(), need))
        first, last, before = index << 16, (index + 1) << 16, int(counts[:index].sum())
    parts = _keys_in_file(site, weight, level)
    found = np.concatenate([own[(own >= first) & (own < last)] for own in parts])
    wanted = need - before
    bound = int(np.partition(found, wanted - 1)[wanted - 1]) + 1
    return before + int((found < bound).sum()), bound


def _share(site: _Tied, level: float, left: int, tied: int, *, is_last: bool) -> tuple[int, int]:
    """How many tied weights of a site go, and the key below which they do (0: all, or none).

    Args:
        site: The site.
        level: ``T``.
        left: What those that are left to go cost.
        tied: What all tied ones of this site and those after it cost.
        is_last: Whether no site with tied ones follows.
    """
    cost, count, group = site.layer.cost, site.count, site.layer.group
    wanted = max(0, min(count, -(-left // cost) if is_last else round(left * count / tied)))
    if not is_last and count <= _FEW * group:
        return (count if 2 * left >= tied else 0), 0  # what this is off fits into the last site
    if wanted == 0 or (is_last and count * cost - left <= group * cost):
        return (0 if wanted == 0 else count), 0
    if isinstance(site.layer.weight, Stored):
        return _bound_in_file(site, site.layer.weight, level, wanted)
    own = _keys(site.layer, level)
    bound = _smallest_bound(own, wanted, site.spread)
    (going,) = site.spread.reduce([int(np.searchsorted(own, bound))], dist.ReduceOp.SUM)
    return int(going), bound


def _smallest_bound(own: NDArray[np.int64], need: int, spread: Spread) -> int:
    """The smallest bound below which there are ``need`` keys in all processes.

    Args:
        own: Sorted keys that are here.
        need: 1 or more, at most as many as there are.
        spread: Who has the others.
    """
    first, last = 1, 2**32  # bounds
    while first < last:
        edges = np.unique(np.linspace(first, last, 257)[:-1].astype(np.int64))
        counts = spread.reduce(np.searchsorted(own, edges).tolist(), dist.ReduceOp.SUM)
        enough = np.array(counts) >= need
        index = int(np.argmax(enough)) if enough.any() else len(edges)
        last = int(edges[index]) if index < len(edges) else last
        first = int(edges[index - 1]) + 1 if index else last
    return last


def _threshold(site: _Tied, going: int, bound: int) -> Tensor:
    """A site's threshold below which its lower weights lie and ``going`` of its tied ones."""
    weight = site.layer.weight
    dtype = torch.promote_types(weight.dtype, torch.float32)
    below = site.first * (1 - torch.finfo(weight.dtype).eps)
    under = float(torch.tensor(max(site.largest_lower, below), dtype=dtype))
    level = site.last if going == site.count else under
    single = torch.tensor(level, dtype=torch.float32, device=weight.device)
    if going in (0, site.count) and float(single) == level:
        return single
    # In double precision no float32 may lie between two neighbours: a tie of none.
    values = (under, site.last, bound) if 0 < going < site.count else (level, level, 0)
    return torch.tensor(values, dtype=torch.float64, device=weight.device)
