"""Latent weights counted by value, those that the threshold prunes apart from the others."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

BINS = 80
"""About how many bins the histogram of all sites has."""

SMALL_BINS = 24
"""Bins of a single site's."""

_FINE = 4096
_INSIDE = 0.999
"""Share of the weights that the histogram shows; the others lie far out."""


@dataclass(frozen=True)
class Weights:
    """The weights of one site.

    Attributes:
        latent: The dense weight.
        effective: What multiplies, of the same shape.
        threshold: Layer threshold; ``None`` while inactive.
    """

    latent: Tensor
    effective: Tensor
    threshold: float | None


@dataclass(frozen=True)
class Counts:
    """A histogram over equal bins.

    Attributes:
        reach: Bins go from ``-reach`` to ``reach``.
        kept: Weights of each bin whose effective weight is not zero.
        pruned: The others.
    """

    reach: float
    kept: tuple[int, ...]
    pruned: tuple[int, ...]

    @property
    def total(self) -> int:
        """All weights in it."""
        return sum(self.kept) + sum(self.pruned)

    @property
    def edges(self) -> tuple[float, ...]:
        """Where the bins begin, and where the last one ends."""
        bins = len(self.kept)
        return tuple(self.reach * (2 * k / bins - 1) for k in range(bins + 1))


@dataclass(frozen=True)
class Spread:
    """The weights of all sites.

    Attributes:
        counts: Their histogram.
        unit: ``weight``, or ``threshold``: the weight over the threshold of its layer, where
            layers have thresholds of their own.
        threshold: In this unit; ``None`` where there is none to show.
        beyond: Weights outside the histogram.
    """

    counts: Counts
    unit: str
    threshold: float | None
    beyond: int


def spread(sites: Sequence[Weights]) -> Spread:
    """The histogram of all sites, with bins that end at the threshold."""
    thresholds = [site.threshold for site in sites]
    active = [value for value in thresholds if value is not None and value > 0]
    common = bool(active) and max(active) - min(active) <= 1e-6 * max(active)
    relative = bool(active) and len(active) == len(sites) and not common
    scales = [t if relative and t else 1.0 for t in thresholds]
    threshold = 1.0 if relative else active[0] if common else None
    reach, bins = _bins(_reach(sites, scales), threshold)
    kept, pruned = [0] * bins, [0] * bins
    for site, scale in zip(sites, scales, strict=True):
        counts = count(site, reach * scale, bins)
        kept = [a + b for a, b in zip(kept, counts.kept, strict=True)]
        pruned = [a + b for a, b in zip(pruned, counts.pruned, strict=True)]
    total = Counts(reach, tuple(kept), tuple(pruned))
    beyond = sum(site.latent.numel() for site in sites) - total.total
    return Spread(total, "threshold" if relative else "weight", threshold, beyond)


def count(site: Weights, reach: float, bins: int) -> Counts:
    """The histogram of one site; weights beyond ``reach`` are left out."""
    latent = site.latent.detach().float().flatten()
    keeps = site.effective.flatten() != 0
    kept, pruned = (
        # In fp64 the counts are whole numbers, however many weights there are.
        torch.histc(latent[chosen].double(), bins, -reach, reach).long().tolist()
        for chosen in (keeps, ~keeps)
    )
    return Counts(reach, tuple(kept), tuple(pruned))


def small(site: Weights) -> Counts:
    """The histogram of one site over its whole range."""
    largest = float(site.latent.detach().abs().max()) if site.latent.numel() else 0.0
    return count(site, largest or 1.0, SMALL_BINS)


def _reach(sites: Sequence[Weights], scales: Iterable[float]) -> float:
    """The magnitude that the histogram has to reach, over the scales."""
    scaled = list(zip(sites, scales, strict=True))
    largest = max((float(s.latent.detach().abs().max()) / scale for s, scale in scaled
                   if s.latent.numel()), default=0.0)  # fmt: skip
    if not largest:
        return 1.0
    fine = torch.zeros(_FINE, dtype=torch.float64)
    for site, scale in scaled:
        magnitudes = site.latent.detach().abs().flatten().double() / scale
        fine += torch.histc(magnitudes, _FINE, 0.0, largest)
    inside = int((fine.cumsum(0) < _INSIDE * fine.sum()).sum()) + 1
    return largest * inside / _FINE


def _bins(reach: float, threshold: float | None) -> tuple[float, int]:
    """Reach and number of bins, so that a bin ends at the threshold."""
    if threshold is None:
        return reach, BINS
    reach = max(reach, 1.5 * threshold)
    width = threshold / max(1, round(threshold * BINS / (2 * reach)))
    half = math.ceil(reach / width)
    return half * width, 2 * half
