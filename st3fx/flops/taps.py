"""How often the taps of a convolution or of a pooling window meet a real value.

A kernel is separable in this: tap ``(k1, k2)`` meets a real value at output ``(o1, o2)`` exactly
where ``k1`` does at ``o1`` and ``k2`` does at ``o2``. So one short list per dimension is enough.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product


def line_hits(
    outputs: int, window: tuple[int, int], *, kernel: int, stride: int, padding: int, dilation: int
) -> list[int]:
    """Output positions at which each tap of one dimension meets a real value.

    Output ``o`` and tap ``k`` meet at input ``o·stride − padding + k·dilation``.

    Args:
        outputs: Number of output positions.
        window: First real position of the input and the one after the last.
        kernel: Number of taps.
        stride: Input positions from one output to the next.
        padding: Positions before the input's first.
        dilation: Input positions from one tap to the next.

    Returns:
        One count per tap.
    """
    low, high = window
    hits = []
    for tap in range(kernel):
        shift = tap * dilation - padding
        first = max(0, -((shift - low) // stride))  # ceil((low − shift) / stride)
        last = min(outputs - 1, (high - 1 - shift) // stride)
        hits.append(max(0, last - first + 1))
    return hits


def transposed_line_hits(
    outputs: int, window: tuple[int, int], *, kernel: int, stride: int, padding: int, dilation: int
) -> list[int]:
    """Real input positions from which each tap of a transposed dimension lands in the output.

    Input ``i`` and tap ``k`` land at output ``i·stride − padding + k·dilation``.
    """
    low, high = window
    hits = []
    for tap in range(kernel):
        shift = tap * dilation - padding
        first = max(low, -(shift // stride))  # ceil(−shift / stride)
        last = min(high - 1, (outputs - 1 - shift) // stride)
        hits.append(max(0, last - first + 1))
    return hits


def all_hits(lines: Sequence[Sequence[int]]) -> list[int]:
    """Positions at which each tap of the whole kernel meets, in row-major order."""
    return [math.prod(combination) for combination in product(*lines)]
