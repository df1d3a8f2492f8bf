"""Equal magnitudes that straddle a target: which of them go, by a rule that is the same everywhere.

A threshold alone prunes all weights of one magnitude ``v``, or none. Where that would miss the
target by more than one weight (or group), a site's threshold is three numbers, ``(θ, v, p)``, with
``θ`` just below ``v``: weights up to ``θ`` go, and of those with ``θ < |w| ≤ v`` the ones whose key
is below ``p``. The key is the weight's place in its tensor, counted in row-major order (of a group
that of its first weight), in an order that spreads over all channels evenly:

    key = place · 2654435769 mod 2³²            2654435769 ≈ 2³² / golden ratio, odd: no two alike

So what goes depends on nothing but shapes and magnitudes: not on devices, kernels, memory formats,
nor on how a weight is sharded. Formulas and gradients know nothing of ties: they are given a weight
whose tied ones that go are a little smaller, and ``θ``. Tied weights that stay have ``θ`` below
them, by as little as their precision has: soft thresholds leave almost nothing of them, but not 0.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from st3fx.sparsity.granularity import Grouping, magnitudes, parts

_FACTOR, _KEYS = 2654435769, 2**32

_LESS = 1 - 2.0**-12
"""What a tied weight that goes is multiplied with, beside ``θ/v``: enough for any group's sum."""


def is_split(threshold: Tensor) -> bool:
    """Whether a threshold is ``(θ, v, p)``: float64, of three values; no learned one is."""
    return threshold.dim() == 1 and threshold.numel() == 3 and threshold.dtype == torch.float64


def level(threshold: Tensor) -> Tensor:
    """``θ`` of a site's threshold."""
    return threshold[0] if is_split(threshold) else threshold


def keys(
    shape: tuple[int, ...], grouping: tuple[Any, ...], device: torch.device, *, first: int = 0
) -> Tensor:
    """The key of each weight, int64, of the weight's shape.

    Args:
        shape: Of the whole weight, or of some of its rows.
        grouping: Of a :class:`Grouping`, or nothing.
        device: Where to.
        first: The place in the whole weight of the first that is here.
    """
    count = torch.Size(shape).numel()
    places = torch.arange(first, first + count, device=device).reshape(shape)
    if grouping:
        groups, firsts = Grouping(*grouping), torch.empty_like(places)
        for part, own in zip(parts(places, groups), parts(firsts, groups), strict=True):
            own.view.copy_(part.view.amin(part.dims, keepdim=True))
        places = firsts
    return key_of(places)


def key_of(places: Tensor) -> Tensor:
    """The keys of places in a weight, int64, in place."""
    # Modulo a power of two; of a product that wraps around, too.
    return places.bitwise_and_(_KEYS - 1).mul_(_FACTOR).bitwise_and_(_KEYS - 1)


def untied(
    weight: Tensor, threshold: Tensor, *grouping: Any, first: int = 0
) -> tuple[Tensor, Tensor]:
    """A weight and a threshold of no dimensions that prune together what ``threshold`` does.

    Args:
        weight: The whole weight, any floating dtype, or some of its rows.
        threshold: A site's.
        first: The place in the whole weight of the first that is here.
        grouping: What is pruned together, as for :func:`st3fx.sparsity.granularity.magnitudes`.

    Returns:
        Both as they are, unless the threshold splits a tie; then in fp32 at least.
    """
    if not is_split(threshold):
        return weight, threshold
    weight = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
    below, tied, bound = threshold.unbind()
    magnitude = magnitudes(weight, *grouping)
    goes = (magnitude > below) & (magnitude <= tied)
    goes &= keys(tuple(weight.shape), grouping, weight.device, first=first) < bound
    less = (below / tied * _LESS).to(weight.dtype)
    return torch.where(goes, weight * less, weight), below.to(weight.dtype)


def untied_rows(weight: Tensor, threshold: Tensor, first: int) -> tuple[Tensor, Tensor]:
    """The same of single weights in row-major order: keys are made for the tied ones alone.

    Args:
        weight: Some rows of a weight, on a CPU, not in a graph.
        threshold: One that splits a tie.
        first: The place in the whole weight of the first that is here.
    """
    flat = weight.to(torch.promote_types(weight.dtype, torch.float32), copy=True).reshape(-1)
    below, tied, bound = threshold.unbind()
    magnitude = flat.abs()
    places = ((magnitude > below) & (magnitude <= tied)).nonzero()[:, 0]
    places = places[key_of(places + first) < bound]
    flat[places] *= (below / tied * _LESS).to(flat.dtype)
    return flat.reshape(weight.shape), below.to(flat.dtype)
