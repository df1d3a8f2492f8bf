"""Where to look for a score: the interval that it is known to be in, and the band to count next."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch.distributed as dist

from st3fx.core import floats
from st3fx.core.band import ScoredSite
from st3fx.core.scan import NONE

SAMPLE = 1 << 16
"""Scores in a sample."""


class Bracket:
    """The interval that a score is known to be in, and the band to look at next."""

    def __init__(self, guesses: Iterator[tuple[float, float]]) -> None:
        self._guesses = guesses
        self._first, self._last = 0.0, floats.LARGEST
        self._low, self._high = next(guesses)
        self._width = 0.0

    def band(self) -> tuple[float, float]:
        """Ends of the band, inside what is known."""
        self._low, self._high = (self._clip(end) for end in (self._low, self._high))
        self._width = max(self._width, self._high - self._low, self._high * 1e-3, floats.TINY)
        return self._low, self._high

    def is_below(self) -> None:
        """The score is below the band."""
        self._last = floats.before(self._low)
        self._next(self._last - 4 * self._width, self._last)

    def is_above(self) -> None:
        """The score is above the band."""
        if self._high >= floats.LARGEST:
            self._last = math.inf
        self._first = floats.after(self._high)
        self._next(self._first, self._first + 4 * self._width)

    def is_crowded(self) -> None:
        """The score is in the band, with too many others to collect."""
        self._first, self._last = self._low, self._high
        self._width = 0.0
        self._next(self._low, floats.middle(self._low, self._high))

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
    sites: Sequence[ScoredSite], share: float, margin: float
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
    return low, middle, high
