"""The exact global threshold: one quantile over the weights of all sites."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def quantile(scores: Tensor, fraction: float) -> Tensor:
    """The ``fraction``-quantile of a vector, linear between order statistics.

    ``idx = (N−1)·fraction``, ``v[⌊idx⌋] + (v[⌈idx⌉] − v[⌊idx⌋])·(idx − ⌊idx⌋)`` with ``v`` the
    sorted scores. Selects instead of sorting, and has no bound on N (``torch.quantile`` fails above
    2²⁴).

    Args:
        scores: Shape (N,), N ≥ 1.
        fraction: Between 0 and 1.

    Returns:
        0-dimensional, of the scores' dtype and device.
    """
    index = (scores.numel() - 1) * fraction
    below = math.floor(index)
    low = torch.kthvalue(scores, below + 1).values
    if index == below:
        return low
    high = torch.where(scores > low, scores, math.inf).min()
    # Scores equal to `low` may fill the next rank too.
    high = torch.where((scores <= low).sum() > below + 1, low, high)
    return low + (high - low) * (index - below)


def global_threshold(weights: Sequence[Tensor], scales: Sequence[float], sparsity: float) -> Tensor:
    """``T``: the ``sparsity``-quantile of ``|w_i| / σ_l(i)`` over all sites.

    Args:
        weights: The sites' weights, any shapes, on one device.
        scales: ``σ_l`` of each site.
        sparsity: Above 0 and below 1.

    Returns:
        0-dimensional fp32 tensor; layer ``l`` has the threshold ``T·σ_l``.
    """
    scores = torch.cat(
        [
            weight.detach().abs().flatten().float() / scale
            for weight, scale in zip(weights, scales, strict=True)
        ]
    )
    return quantile(scores, sparsity)
