"""One pass over the scores of all sites: how many are below a band, and which lie in it.

A score is ``|w| / σ`` in fp32. For fp32 weights on a CPU the pass is the kernel library's, which
reads each weight once; for others, or without the library, it is several operators of torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from st3fx.core.functional import in_memory_order
from st3fx.native import latent

BLOCK = 1 << 20
"""Scores at a time, where each operator writes as many."""

Scores = NDArray[np.float32]
NONE: Scores = np.empty(0, np.float32)


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


class Counts:
    """What the sites have in a band.

    Attributes:
        below: Scores below the band, for each site.
        inside: Scores in it, both ends included.
        largest: The largest score of all; NaN if any is.
    """

    def __init__(self, sites: int) -> None:
        self.below = np.zeros(sites, np.int64)
        self.inside = np.zeros(sites, np.int64)
        self.largest = np.zeros(sites, np.float32)
        self._scores = [NONE]
        self._owners = [np.empty(0, np.int32)]

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
        return np.concatenate(self._scores), np.concatenate(self._owners)


def count(sources: Sequence[Source], low: float, high: float, limit: int) -> Counts:
    """Count and collect the scores of each site in the band ``low ≤ score ≤ high``.

    Args:
        sources: The sites.
        low: Lower end, an fp32 number, 0 or more.
        high: Upper end, an fp32 number, at least ``low``.
        limit: If there are more scores in the band, some may be missing from those collected.
    """
    counts = Counts(len(sources))
    native: dict[int, latent.Scored] = {}
    flats = [source.flat() for source in sources]  # a copy must live as long as its address
    for index, (source, flat) in enumerate(zip(sources, flats, strict=True)):
        if flat.device.type == "cpu" and flat.dtype == torch.float32 and latent.available():
            native[index] = latent.Scored(flat.data_ptr(), flat.numel(), source.scale)
        else:
            for block in flat.split(BLOCK):
                _count_block(index, source.scores(block), (low, high), limit, counts)
    if native:
        indices = np.array(list(native), np.int32)
        tallies, scores, owners = latent.count(list(native.values()), low, high, limit)
        counts.below[indices] = tallies["below"]
        counts.inside[indices] = tallies["inside"]
        counts.largest[indices] = tallies["largest"]
        counts.collect(scores, indices[owners])
    return counts


def _count_block(
    site: int, scores: Tensor, band: tuple[float, float], limit: int, counts: Counts
) -> None:
    if not len(scores):
        return
    low, high = band
    under, inside = scores < low, (scores >= low) & (scores <= high)
    within = int(inside.sum())
    wanted = 0 < within <= limit and counts.inside[site] <= limit
    found = scores[inside].cpu().numpy() if wanted else NONE
    counts.add(site, int(under.sum()), within, float(scores.max()), found)


def smallest_above(source: Source, score: float) -> float:
    """The smallest score of a site above ``score``; infinity if there is none."""
    scores = source.scores(source.flat())
    return float(torch.where(scores > score, scores, torch.inf).min()) if len(scores) else np.inf
