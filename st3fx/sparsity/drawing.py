"""Masks that are drawn by probability: noise by places alone, and what a site's threshold holds.

While masks are drawn, a site's threshold is five numbers in float64, ``(θ, v, p, n, τ)``: the exact
threshold over probabilities with its ties as :mod:`st3fx.sparsity.ties` has them (``v = −1`` where
there are none), which decides where nothing is drawn; the number ``n`` of the draw; and the
temperature.

The noise of a weight (of a group, that of its first weight) is a hash of the draw's number, a salt
and its place in the whole tensor, so that it is the same on every device and in every process, and
after a resumption: nothing but the threshold is to be kept. The hash is the finalizer of
MurmurHash3, over the keys of :func:`st3fx.sparsity.ties.keys`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from st3fx.sparsity.ties import is_split, keys

_BITS = 2**32 - 1


def with_draw(threshold: Tensor, number: int, temperature: float) -> Tensor:
    """A site's threshold with which its mask is drawn.

    Args:
        threshold: The one that decides, of no dimensions or one that splits a tie.
        number: Of the draw.
        temperature: ``τ > 0``.
    """
    own = threshold.detach().double()
    if not is_split(threshold):
        own = torch.cat([own.reshape(1), own.new_tensor([-1.0, 0.0])])
    return torch.cat([own, own.new_tensor([float(number), temperature])])


def is_drawn(threshold: Tensor) -> bool:
    """Whether a threshold is ``(θ, v, p, n, τ)``: float64, of five values."""
    return threshold.dim() == 1 and threshold.numel() == 5 and threshold.dtype == torch.float64


def decided(threshold: Tensor) -> Tensor:
    """The threshold that decides where nothing is drawn; any other as it is."""
    if not is_drawn(threshold):
        return threshold
    return threshold[:3] if bool(threshold[1] >= 0) else threshold[0].float()


def of_one_shape(threshold: Tensor) -> Tensor:
    """Any scheduled threshold as five numbers, ``n = −1`` where none is drawn.

    Distributed checkpoints are read into tensors of the shapes that they were saved with.
    """
    return threshold if is_drawn(threshold) else with_draw(threshold, -1, 0.0)


def as_it_was(threshold: Tensor) -> Tensor:
    """The inverse of :func:`of_one_shape`; any other threshold as it is."""
    if threshold.dim() != 1 or threshold.numel() != 5 or not bool(threshold[3] < 0):
        return threshold
    return decided(threshold.double())


def _mixed(value: Any) -> Any:
    """An int, or a tensor of int64 between 0 and 2³² − 1, well mixed."""
    value = value ^ (value >> 16)
    value = (value * 0x85EBCA6B) & _BITS
    value = value ^ (value >> 13)
    value = (value * 0xC2B2AE35) & _BITS
    return value ^ (value >> 16)


def logistic_noise(
    shape: tuple[int, ...], number: Tensor | int, salt: int, device: torch.device, *grouping: Any
) -> Tensor:
    """The difference of two Gumbel variables, ``log(u/(1 − u))``, for each weight; fp32.

    Args:
        shape: Of the whole weight.
        number: Of the draw; a tensor of int64 need not be waited for.
        salt: Of the site.
        device: Where to.
        grouping: What is drawn together, as for :func:`st3fx.sparsity.granularity.magnitudes`.
    """
    seed = _mixed(_mixed(number & _BITS) ^ (salt & _BITS))
    bits = _mixed(keys(shape, grouping, device) ^ seed)
    # 23 bits and a half: exact in fp32, and never 0 nor 1.
    uniform = ((bits >> 9).float() + 0.5) * 2.0**-23
    return torch.logit(uniform)
