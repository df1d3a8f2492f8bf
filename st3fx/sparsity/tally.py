"""How many scores of each size there are: what is counted in one pass over weights in files.

Weights in half precision have 32,768 magnitudes at most: counting each of them says everything that
any search for a threshold asks, ties included. Of scores in single precision the first 16 of their
31 bits are counted, and a second pass looks at those that share the bits of the one that is wanted.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

HALF = (torch.float16, torch.bfloat16)
"""Types whose magnitudes are counted one by one."""

LOWER = 15
"""Bits of a score in single precision that are left out."""

BINS = 1 << 16
"""How many values the others have."""

_BLOCK = 1 << 18
"""Values at a time: they stay in a cache nearby."""


@dataclass(frozen=True, eq=False)
class Tally:
    """Magnitudes with how often each is there.

    Attributes:
        values: The magnitudes in order, fp32, each once; NaN is at their end.
        counts: How many there are of each, int64.
        zeros: How many of all are 0.
    """

    values: NDArray[np.float32]
    counts: NDArray[np.int64]
    zeros: int

    @property
    def device(self) -> torch.device:
        """The CPU."""
        return torch.device("cpu")

    def numel(self) -> int:
        """How many magnitudes there are."""
        return int(self.counts.sum())


def magnitudes_of(pieces: Iterable[Tensor], dtype: torch.dtype) -> Tally:
    """Count each magnitude of weights in half precision.

    Args:
        pieces: The weights, in row-major order, some after the others.
        dtype: Of all of them, one of :data:`HALF`.
    """
    total = np.zeros(1 << 15, np.int64)
    room = torch.empty(_BLOCK, dtype=torch.int16)
    for piece in pieces:
        for block in piece.reshape(-1).view(torch.int16).split(_BLOCK):
            bits = torch.bitwise_and(block, 0x7FFF, out=room[: len(block)])
            total += torch.bincount(bits, minlength=len(total)).numpy()
    found = np.flatnonzero(total)
    values = torch.from_numpy(found.astype(np.int16)).view(dtype).float().numpy()
    return Tally(values, total[found], int(total[0]))


def first_bits_of(scores: Tensor) -> Tally:
    """Count scores by their first bits.

    Args:
        scores: fp32, 0 or more, any shape, in one piece of memory.

    Returns:
        The smallest number of each kind, and how many there are of it.
    """
    total, zeros = np.zeros(BINS, np.int64), 0
    room = torch.empty(_BLOCK, dtype=torch.int32)
    for block in scores.reshape(-1).view(torch.int32).split(_BLOCK):
        zeros += len(block) - int(block.count_nonzero())
        bits = torch.bitwise_right_shift(block, LOWER, out=room[: len(block)])
        total += torch.bincount(bits, minlength=BINS).numpy()
    found = np.flatnonzero(total)
    return Tally((found << LOWER).astype(np.int32).view(np.float32), total[found], zeros)


def places_of(piece: Tensor, first: float, last: float) -> Tensor:
    """Where a piece in half precision has magnitudes from one to another, in row-major order.

    Args:
        piece: Of a type in :data:`HALF`.
        first: The smallest, a number of that type.
        last: The largest, too.

    Returns:
        Places in the piece, int64.
    """
    low, high = torch.tensor([first, last], dtype=piece.dtype).view(torch.int16).tolist()
    room, found = torch.empty(_BLOCK, dtype=torch.int16), []
    for index, block in enumerate(piece.reshape(-1).view(torch.int16).split(_BLOCK)):
        bits = torch.bitwise_and(block, 0x7FFF, out=room[: len(block)])
        here = bits == low if low == high else (bits >= low) & (bits <= high)
        found.append(here.nonzero()[:, 0] + index * _BLOCK)
    return torch.cat(found) if found else torch.empty(0, dtype=torch.int64)
