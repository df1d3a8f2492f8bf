"""One pass over the scores of all sites: how many are below a band, and which lie in it.

A score is ``|w| / σ`` in fp32. On a CPU the pass goes through blocks that stay in the cache, with
NumPy in threads (its calls cost less than torch's, and release the interpreter), so that it reads
each weight once and writes next to nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from st3fx.functional import in_memory_order

BLOCK = 1 << 16
"""Scores at a time: 256 KiB."""

Scores = NDArray[np.float32]


@dataclass(frozen=True)
class Source:
    """The scores of one site.

    Attributes:
        weight: Any shape, dtype and device; of a sharded weight, the part that is here.
        scale: ``σ``, above 0.
    """

    weight: Tensor
    scale: float = 1.0

    def flat(self) -> Tensor:
        """The weight as a vector in any order, without a copy where its memory is dense."""
        return in_memory_order(self.weight.detach()).reshape(-1)

    def scores(self, part: Tensor) -> Tensor:
        """Scores of a part of :meth:`flat`."""
        magnitude = part.abs().float()
        return magnitude if self.scale == 1.0 else magnitude.div_(self.scale)

    def sample(self, size: int) -> Scores:
        """About ``size`` scores, evenly spaced in memory."""
        flat = self.flat()
        scores: Scores = self.scores(flat[:: max(1, flat.numel() // max(1, size))]).cpu().numpy()
        return scores


@dataclass
class Count:
    """What one site has in a band.

    Attributes:
        below: Scores below the band.
        inside: Scores in it, both ends included.
        largest: The largest score of all; NaN if any is.
        values: Those, in any order; some are missing if there were more than wanted.
    """

    below: int = 0
    inside: int = 0
    largest: float = 0.0
    values: list[Scores] = field(default_factory=list)

    def add(self, other: Count) -> None:
        """Take in what another part of the site has."""
        self.below += other.below
        self.inside += other.inside
        self.largest = _maximum(self.largest, other.largest)
        self.values += other.values


def _maximum(one: float, other: float) -> float:
    """The larger; NaN if either is."""
    return float(np.maximum(one, other))


class _Buffers:
    """What one thread computes in."""

    def __init__(self) -> None:
        self.scores = np.empty(BLOCK, np.float32)
        self.below = np.empty(BLOCK, np.bool_)
        self.upto = np.empty(BLOCK, np.bool_)


def count(sources: Sequence[Source], low: float, high: float, limit: int) -> list[Count]:
    """Count and collect the scores of each site in the band ``low ≤ score ≤ high``.

    Args:
        sources: The sites.
        low: Lower end, an fp32 number.
        high: Upper end, an fp32 number, at least ``low``.
        limit: How many scores to collect from a site (by each thread) before only counting goes on.
    """
    ends = np.float32(low), np.float32(high)
    counts = [Count() for _ in sources]
    blocks = []
    for index, source in enumerate(sources):
        flat = source.flat()
        if flat.device.type == "cpu":
            starts = range(0, flat.numel(), BLOCK)
            blocks += [(index, source, flat[start : start + BLOCK]) for start in starts]
        else:
            counts[index] = _count_on_device(source.scores(flat), low, high, limit)

    def work(part: list[tuple[int, Source, Tensor]]) -> dict[int, Count]:
        buffers, found = _Buffers(), dict[int, Count]()
        for index, source, values in part:
            _count_block(source, values, ends, buffers, found.setdefault(index, Count()), limit)
        return found

    workers = min(torch.get_num_threads(), 1 + len(blocks) // 8)
    parts = [blocks[worker::workers] for worker in range(workers)]
    for found in _pool(workers).map(work, parts) if workers > 1 else map(work, parts):
        for index, part in found.items():
            counts[index].add(part)
    return counts


@functools.lru_cache(maxsize=1)
def _pool(workers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers, thread_name_prefix="st3fx")


def _count_block(
    source: Source,
    values: Tensor,
    ends: tuple[np.float32, np.float32],
    buffers: _Buffers,
    found: Count,
    limit: int,
) -> None:
    size = values.numel()
    if values.dtype == torch.float32:
        scores = buffers.scores[:size]
        np.abs(values.numpy(), out=scores)
        if source.scale != 1.0:
            np.divide(scores, np.float32(source.scale), out=scores)
    else:
        scores = source.scores(values).numpy()
    below, upto = buffers.below[:size], buffers.upto[:size]
    np.less(scores, ends[0], out=below)
    np.less_equal(scores, ends[1], out=upto)
    under = int(np.count_nonzero(below))
    inside = int(np.count_nonzero(upto)) - under
    collect = inside and found.inside <= limit
    found.below += under
    found.inside += inside
    found.largest = _maximum(found.largest, float(scores.max()))
    if collect:
        np.logical_xor(below, upto, out=below)
        found.values.append(scores[below])


def _count_on_device(scores: Tensor, low: float, high: float, limit: int) -> Count:
    below = int((scores < low).sum())
    band = (scores >= low) & (scores <= high)
    inside = int(band.sum())
    values = [scores[band].cpu().numpy()] if 0 < inside <= limit else []
    return Count(below, inside, float(scores.max()) if len(scores) else 0.0, values)


def smallest_above(source: Source, score: float) -> float:
    """The smallest score of a site above ``score``; infinity if there is none."""
    scores = source.scores(source.flat())
    return float(torch.where(scores > score, scores, torch.inf).min()) if len(scores) else np.inf
