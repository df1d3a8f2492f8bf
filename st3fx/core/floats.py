"""The order of single-precision floats ≥ 0, by their bits."""

from __future__ import annotations

import numpy as np

TINY = float(np.finfo(np.float32).tiny)
LARGEST = float(np.finfo(np.float32).max)


def bits(score: float) -> int:
    """The position of a float ≥ 0 among all floats ≥ 0."""
    return int(np.float32(score).view(np.int32))


def from_bits(position: int) -> float:
    """The inverse of :func:`bits`."""
    return float(np.int32(position).view(np.float32))


def middle(low: float, high: float) -> float:
    """The float halfway between two, counted in floats."""
    return from_bits((bits(low) + bits(high)) // 2)


def before(score: float) -> float:
    """The next smaller float; negative below 0."""
    return float(np.nextafter(np.float32(score), np.float32(-1)))


def after(score: float) -> float:
    """The next larger float."""
    return from_bits(bits(score) + 1)
