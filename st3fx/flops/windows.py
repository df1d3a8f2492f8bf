"""Where a tensor has real values after explicit padding with zeros."""

from __future__ import annotations

from collections.abc import Sequence

from st3fx.flops.operand import Operand, Window


def padded(x: Operand, before: Sequence[int], after: Sequence[int]) -> Window:
    """The window of ``x`` padded with zeros.

    Args:
        x: What is padded, perhaps padded already.
        before: Zeros before each of the last dimensions; negative ones cut off.
        after: Zeros behind.

    Returns:
        One pair for each of these dimensions, in the coordinates of the padded tensor.
    """
    dims = len(before)
    sizes = x.shape[len(x.shape) - dims :]
    known = [(0, size) for size in sizes]
    if x.window is not None:
        common = min(dims, len(x.window))
        known[dims - common :] = x.window[len(x.window) - common :]
    windows = []
    for (low, high), size, first, last in zip(known, sizes, before, after, strict=True):
        whole = max(0, size + first + last)
        begin = min(max(0, low + first), whole)
        windows.append((begin, max(begin, min(whole, high + first))))
    return tuple(windows)
